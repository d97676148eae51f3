"""What all tasks have in common: a pre-trained body, a head that answers the task's question, and a tokenizer.

A task is one file with one subclass of `TaskModel`, and one line in the table of `tasks/__init__.py`. The training
loop, the evaluation and the command line know of a task only what this class declares.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from minift import checkpoint
from minift.data import Batch, Columns
from minift.errors import InputError
from minift.models.architecture import Architecture, Body, ModelConfig
from minift.nn import Module
from minift.tensor import Tensor
from minift.tokenizer import Tokenizer


class Examples(Protocol):
    """What a task reads from a file: examples that can be counted."""

    def __len__(self) -> int: ...


class TaskModel(Module):
    """A body under its own name (`model.bert`), and beside it the modules of a head (`model.classifier`).

    The path of every parameter is its key in transformers' checkpoint of the same model.
    """

    head: ClassVar[str]
    """Which head it takes: what transformers' class names end with, such as SequenceClassification."""
    problem_type: ClassVar[str | None] = None
    """What config.json says beside it where several tasks share a head, such as regression."""
    has_labels: ClassVar[bool] = False
    """Whether the outputs are classes that have names."""

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        labels: Sequence[str] | None,
        tokenizer: Tokenizer,
    ):
        """A model with new weights; `labels` names the classes, where the task has classes.

        Raises InputError where the architecture has no such head.
        """
        if self.head not in architecture.heads:
            raise InputError(
                f"{architecture.model_type} has no head for {self.head}; it has {', '.join(architecture.heads)}"
            )
        self.architecture = architecture
        self.config = config
        self.tokenizer = tokenizer
        self.labels = None if labels is None else tuple(labels)
        self.label_smoothing = 0.0
        """The share of each target that is spread over all classes, in training."""
        setattr(self, architecture.body_name, architecture.body(config))
        architecture.heads[self.head].build(self, config, self.outputs)

    @property
    def body(self) -> Body:
        """The model without its head."""
        return getattr(self, self.architecture.body_name)

    def answer(self, batch: Batch) -> Tensor:
        """What the head says of a packed batch."""
        return self.architecture.heads[self.head].forward(self, batch)

    # ---- What a task declares --------------------------------------------------------------------

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Examples:
        """The examples of a file. Raises InputError, with the line, for what is wrong in it."""
        raise NotImplementedError

    @classmethod
    def labels_in(cls, examples: Examples) -> list[str] | None:
        """The names of the classes that a new head needs for these examples; None where there are no classes."""
        return None

    @property
    def outputs(self) -> int:
        """The width of the head."""
        raise NotImplementedError

    def batches(
        self, examples: Examples, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """The examples once, with their labels, as `data.batches` gives them.

        Raises InputError for a label that the model does not have.
        """
        raise NotImplementedError

    def forward(self, inputs: Any) -> Tensor:
        """What the head says of a packed batch, or of inputs that are packed first."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """How wrong `output` is, the mean over the batch's targets."""
        raise NotImplementedError

    def metrics(self, outputs: list[np.ndarray], examples: Examples) -> dict[str, float]:
        """How good the outputs for all batches of the examples are; the metric that counts first comes first."""
        raise NotImplementedError

    def predict(self, inputs: Any, batch_size: int = 32) -> list[Any]:
        """One prediction for each input, in evaluation mode, whatever mode the model is in."""
        raise NotImplementedError

    # ---- Saving ----------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write a directory that `minift.load` and transformers' from_pretrained both read.

        Every file appears whole or not at all. Raises InputError where the directory cannot be written.
        """
        directory = Path(directory)
        checkpoint.make_directory(directory)
        tensors = {name: parameter.numpy().astype(np.float32) for name, parameter in self.named_parameters()}
        checkpoint.write_tensors(directory / checkpoint.WEIGHTS, tensors)
        self.tokenizer.save(directory)
        checkpoint.write_json(directory / "config.json", self.config_json())

    def config_json(self) -> dict[str, Any]:
        """What config.json says of the model."""
        config: dict[str, Any] = {
            "architectures": [f"{self.architecture.class_prefix}For{self.head}"],
            "model_type": self.architecture.model_type,
            **vars(self.config),
            "dtype": "float32",
        }
        if self.labels is not None:
            config["id2label"] = {str(index): label for index, label in enumerate(self.labels)}
            config["label2id"] = {label: index for index, label in enumerate(self.labels)}
        if self.problem_type is not None:
            config["problem_type"] = self.problem_type
        return config
