"""Text classification: which of C classes a text, or a pair of texts, belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift.data import Batch, Columns, Dataset, Text, batches, pack, warn_of_truncated
from minift.losses import cross_entropy
from minift.metrics import accuracy
from minift.nn import evaluating
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text: the most probable label, and every label's probability."""

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """How sure the model is of `label`."""
        return self.probabilities[self.label]

    def __str__(self) -> str:
        return f"{self.label}  {self.probability:.3f}"


class TextClassification(TaskModel):
    """One of C classes for each text: softmax over the head's C outputs, cross-entropy against the right class."""

    head = "SequenceClassification"
    problem_type = "single_label_classification"
    has_labels = True
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Dataset:
        """Texts or pairs with a label each: .tsv, .csv or .jsonl, see `Dataset`."""
        return Dataset(path, *columns, require_label=labelled)

    @classmethod
    def labels_in(cls, examples: Dataset) -> list[str]:
        return [str(label) for label in examples.labels]

    @property
    def outputs(self) -> int:
        return len(self.labels)

    def batches(
        self, examples: Dataset, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        labels = examples.label_ids(self.labels)
        return batches(
            examples, self.tokenizer, batch_size, labels=labels, seed=seed, epoch=epoch, start=start
        )

    def encode(self, texts: Text | list[Text]) -> Batch:
        """The packed batch of a text, or of a list of texts or pairs."""
        return pack(self.tokenizer.encode(texts if isinstance(texts, list) else [texts]))

    def forward(self, inputs: Text | list[Text] | Batch) -> Tensor:
        """Logits (B, C): the higher, the likelier. `inputs` is a text, a list of them, or a packed batch."""
        batch = inputs if isinstance(inputs, Batch) else self.encode(inputs)
        logits = self.answer(batch)  # (B, C)
        logits.labels = self.labels
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(output, batch.labels, label_smoothing=smoothing)

    def metrics(self, outputs: list[np.ndarray], examples: Dataset) -> dict[str, float]:
        """{"accuracy"}: the share of texts whose most probable class is the right one."""
        predicted = np.concatenate(outputs).argmax(axis=1)
        return {"accuracy": accuracy(predicted, examples.label_ids(self.labels))}

    def predict(self, inputs: Text | list[Text], batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in evaluation mode, whatever mode the model is in.

        A warning says how many texts were longer than the maximum.
        """
        texts = inputs if isinstance(inputs, list) else [inputs]
        logits = []
        truncated = 0
        with evaluating(self):
            for batch in batches([(text, None) for text in texts], self.tokenizer, batch_size):
                logits.append(self(batch).numpy())
                truncated += batch.truncated
        warn_of_truncated(truncated, len(texts), self.tokenizer.max_length)
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True)))
            for rows in logits
            for row in softmax_kernels.forward(rows)
        ]
