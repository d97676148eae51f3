"""What all tasks have in common: a pre-trained body, a head that answers the task's question, and a tokenizer.

A task is one file with one subclass of `TaskModel`, and one line in the table of `tasks/__init__.py`. The training
loop, the evaluation and the command line know of a task only what this class declares.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from minift import checkpoint
from minift.data import Batch, Columns, rows_of_batches, warn_of_truncated
from minift.device import COMPUTE_DTYPES
from minift.errors import InputError
from minift.models.architecture import Architecture, Body, ModelConfig
from minift.nn import Module, Parameter, evaluating
from minift.tensor import Tensor
from minift.tokenizer import Tokenizer

BREAKS = str.maketrans({each: repr(each)[1:-1] for each in "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"})
"""Tabs and whatever ends a line, as they are written in Python: \\n."""


class Examples(Protocol):
    """What a task reads from a file: `examples[i]` is (input, label), the input as `predict` takes it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class Verdict(NamedTuple):
    """What was right for one example and what the model said of it, in words for a reader."""

    text: str
    expected: str
    said: str
    score: float
    """How good that was: more is better; what it measures, the task says."""


class Outcomes(NamedTuple):
    """A table of how often (`counts`, integers, a list a row) what was right (`rows`) met what was said (`columns`)."""

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]


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
    smooths_labels: ClassVar[bool] = False
    """Whether the loss heeds `label_smoothing`."""
    asked_with: ClassVar[str] = '--text "..."'
    """The options of `minift predict` that give it an input."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The attributes that config.json keeps beside the model's shape."""

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
        self.source = ""
        """What the model was loaded from, under the name that `minift.load` was given; a directory in full."""
        self.drawn: tuple[str, ...] = ()
        """The parameters that it lacked, which were drawn anew; they belong to what must be trained and saved."""
        self.method: Any = None
        """How it is fine-tuned, a `minift.methods.Method`, once `minift.apply_method` has said so; None: in full."""
        setattr(self, architecture.body_name, architecture.body(config))
        architecture.heads[self.head].build(self, config, self.outputs)

    @classmethod
    def made(cls, config: Mapping[str, Any], architecture: Architecture) -> bool:
        """Whether a config.json, which is of this architecture, is of a model for this task."""
        trained_for = str((config.get("architectures") or [""])[0])
        # Where it does not say the problem, transformers concludes it from the number of outputs.
        one_output = len(config.get("id2label") or ()) == 1
        problem = config.get("problem_type") or (
            "regression" if one_output else "single_label_classification"
        )
        return trained_for == architecture.class_name(cls.head) and cls.problem_type in (None, problem)

    @property
    def body(self) -> Body:
        """The model without its head."""
        return getattr(self, self.architecture.body_name)

    def answer(self, batch: Batch) -> Tensor:
        """What the head says of a packed batch, by way of the method, if there is one."""
        return self.plain_answer(batch) if self.method is None else self.method.answer(self, batch)

    def plain_answer(self, batch: Batch) -> Tensor:
        """What the head says of a packed batch; in float32 where the model computes in bfloat16."""
        output = self.architecture.heads[self.head].forward(self, batch)
        return output.astype(np.float32) if output.dtype == COMPUTE_DTYPES["bf16"] else output

    def parts(self) -> dict[str, dict[str, Parameter]]:
        """All parameters by their paths, in parts from the lowest to the highest: "embeddings", "layer 0", ..., "head".

        Each stands once, in the lowest of its parts; what stands neither in a layer nor below one belongs to the head.
        """
        modules = {f"layer {index}": [layer] for index, layer in enumerate(self.body.layers)}
        part_of = {
            id(parameter): name
            for name, each in {"embeddings": self.body.foundation, **modules}.items()
            for module in each
            for parameter in module.parameters()
        }
        parts: dict[str, dict[str, Parameter]] = {name: {} for name in ("embeddings", *modules, "head")}
        for path, parameter in self.named_parameters():
            parts[part_of.get(id(parameter), "head")][path] = parameter
        return parts

    # ---- What a task declares --------------------------------------------------------------------

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Examples:
        """The examples of a file, each as (input, label). Raises InputError, with the line, for what is wrong in it.

        With `labelled=False` a file without labels will do, and whatever stands for a label is not looked at.
        """
        raise NotImplementedError

    @classmethod
    def labels_in(cls, examples: Any) -> list[str] | None:
        """The names of the classes that a new head needs for these examples; None where there are no classes."""
        return None

    @property
    def outputs(self) -> int:
        """The width of the head."""
        raise NotImplementedError

    def prepare(self, examples: Any) -> None:
        """Take over from the training examples what the model must know beside its labels: nothing, in most tasks."""

    def targets(self, examples: Any) -> Sequence[Any] | np.ndarray:
        """For each example what `pack` makes labels of. Raises InputError for a label that the model does not have."""
        raise NotImplementedError

    def pack(self, inputs: list[Any], targets: Sequence[Any] | None = None) -> Batch:
        """One packed batch of the inputs, with labels where there are targets."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """How wrong `output` is, the mean over the batch's targets."""
        raise NotImplementedError

    def decode(self, output: np.ndarray, batch: Batch) -> list[Any]:
        """What `output` means: one prediction, a dataclass, for each input of the batch."""
        raise NotImplementedError

    def metrics(self, predictions: list[Any], examples: Any) -> dict[str, float]:
        """How good the predictions for all examples are; the metric that counts first comes first."""
        raise NotImplementedError

    def shown(self, text: Any) -> str:
        """What `minift predict` shows of an input."""
        return plain_text(text)

    def verdict(self, given: Any, target: Any, prediction: Any) -> Verdict:
        """One example's input, its entry in `targets` and the prediction for it, in words."""
        raise NotImplementedError

    def outcomes(self, targets: Any, predictions: list[Any]) -> Outcomes | None:
        """What was said where what was right; None where the task has no table that would show it."""
        return None

    def balance(self, targets: Any) -> dict[str, int]:
        """How often each label is right among the targets; nothing where there are no labels to count."""
        return {}

    # ---- What follows from it --------------------------------------------------------------------

    def in_words(self, text: Any, prediction: Any) -> str:
        """The line that `minift predict` prints of an input and its prediction: `positive  0.981  what a film`."""
        return f"{prediction}  {self.shown(text)}".translate(BREAKS)

    def take(self, examples: Any) -> tuple[Any, Any]:
        """The examples, as this model cuts them, and their targets.

        Raises InputError for a list, and for a label that the model does not have.
        """
        if isinstance(examples, list | tuple):
            raise InputError(
                f"examples were to be those of a file, as minift.Dataset('dev.tsv') reads them, found a "
                f"{type(examples).__name__}"
            )
        targets = self.targets(examples)
        return copy(examples), targets  # a copy, because another model may cut them anew while these are read

    def batches(
        self, examples: Any, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """The examples once, with their labels, in the order that `data.rows_of_batches` gives them.

        Raises InputError at once, as `take` does.
        """
        examples, targets = self.take(examples)
        order = rows_of_batches(len(examples), batch_size, seed=seed, epoch=epoch, start=start)
        return (
            self.pack([examples[int(row)][0] for row in rows], [targets[row] for row in rows])
            for rows in order
        )

    def encode(self, inputs: Any) -> Batch:
        """The packed batch of an input, or of a list of inputs."""
        return self.pack(inputs if isinstance(inputs, list) else [inputs])

    def forward(self, inputs: Any) -> Tensor:
        """What the head says of an input, a list of inputs or a packed batch: (B, C), or token by token (T, C)."""
        output = self.answer(inputs if isinstance(inputs, Batch) else self.encode(inputs))
        output.labels = self.labels
        return output

    def predict(self, inputs: Any, batch_size: int = 32) -> list[Any]:
        """One prediction for each input, in evaluation mode, whatever mode the model is in.

        A warning says how many texts were longer than the maximum.
        """
        inputs = inputs if isinstance(inputs, list) else [inputs]
        predictions: list[Any] = []
        truncated = 0
        with evaluating(self):
            for rows in rows_of_batches(len(inputs), batch_size):
                batch = self.pack([inputs[row] for row in rows])
                predictions += self.decode(self(batch).numpy(), batch)
                truncated += batch.truncated
        warn_of_truncated(truncated, len(inputs), self.tokenizer.max_length)
        return predictions

    # ---- Saving ----------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write a directory that `minift.load` reads: the whole model, or what its method trains, with the head.

        Every file appears whole or not at all; a model that the directory held in another format is then removed.
        Raises InputError where the directory cannot be written, or is that of the base model of what is saved.
        """
        directory = Path(directory)
        checkpoint.make_directory(directory)
        if self.method is None:
            self.save_whole(directory)
        else:
            self.method.save(self, directory)

    def save_whole(self, directory: Path) -> None:
        """Write the whole model into the directory, as transformers' from_pretrained reads it."""
        tensors = {name: parameter.numpy().astype(np.float32) for name, parameter in self.named_parameters()}
        checkpoint.write_tensors(directory / checkpoint.WEIGHTS, tensors)
        self.save_description(directory)
        checkpoint.remove_other_formats(directory, "transformers")

    def save_description(self, directory: Path) -> None:
        """Write what the directory of a model, or of a part of one, holds beside weights: tokenizer and config.json."""
        self.tokenizer.save(directory)
        checkpoint.write_json(directory / "config.json", self.config_json())

    def config_json(self) -> dict[str, Any]:
        """What config.json says of the model."""
        config: dict[str, Any] = {
            "architectures": [self.architecture.class_name(self.head)],
            "model_type": self.architecture.model_type,
            **vars(self.config),
            "dtype": "float32",
        }
        if self.labels is not None:
            config["id2label"] = {str(index): label for index, label in enumerate(self.labels)}
            config["label2id"] = {label: index for index, label in enumerate(self.labels)}
        if self.problem_type is not None:
            config["problem_type"] = self.problem_type
        return config | {name: getattr(self, name) for name in self.settings}


def plain_text(text: Any) -> str:
    """A text, or a pair of texts, as one."""
    return text if isinstance(text, str) else " | ".join(text)
