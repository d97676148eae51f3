"""Text classification: which of C classes a text, or a pair of texts, belongs to."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift.data import Batch, Columns, Dataset, Text, pack
from minift.errors import InputError
from minift.losses import cross_entropy
from minift.metrics import accuracy, macro_f1, matthews
from minift.tasks.task_model import Outcomes, TaskModel, Verdict, plain_text
from minift.tensor import Tensor


class Prediction(NamedTuple):
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
    smooths_labels = True
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

    def prepare(self, examples: Dataset) -> None:
        if self.outputs < 2:
            only = ", ".join(self.labels)
            raise InputError(f"{examples.path}: only one label, {only!r}; two or more are expected")

    def targets(self, examples: Dataset) -> np.ndarray:
        return examples.label_ids(self.labels)  # (R,)

    def pack(self, inputs: list[Text], targets: Sequence[int] | None = None) -> Batch:
        return pack(self.tokenizer.encode(inputs), targets)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(output, batch.labels, label_smoothing=smoothing)

    def decode(self, output: np.ndarray, batch: Batch) -> list[Prediction]:
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True)))
            for row in softmax_kernels.forward(output)
        ]

    def metrics(self, predictions: list[Prediction], examples: Dataset) -> dict[str, float]:
        """{"accuracy", "macro_f1", "matthews"}: see `metrics.py`."""
        predicted = [self.labels.index(prediction.label) for prediction in predictions]
        expected = self.targets(examples)
        return {
            "accuracy": accuracy(predicted, expected),
            "macro_f1": macro_f1(predicted, expected),
            "matthews": matthews(predicted, expected),
        }

    def verdict(self, given: Text, target: int, prediction: Prediction) -> Verdict:
        """The score is the probability of the right class."""
        right = self.labels[target]
        return Verdict(plain_text(given), right, prediction.label, prediction.probabilities[right])

    def outcomes(self, targets: np.ndarray, predictions: list[Prediction]) -> Outcomes:
        """The confusion matrix."""
        return confusion(self.labels, targets, [self.labels.index(each.label) for each in predictions])

    def balance(self, targets: np.ndarray) -> dict[str, int]:
        return dict(zip(self.labels, np.bincount(targets, minlength=len(self.labels)).tolist(), strict=True))


def confusion(labels: Sequence[str], expected: Sequence[int] | np.ndarray, said: Sequence[int]) -> Outcomes:
    """How often each class was said where each was right."""
    cells = len(labels) * np.asarray(expected) + np.asarray(said)
    counts = np.bincount(cells, minlength=len(labels) ** 2).reshape(len(labels), -1)
    return Outcomes(list(labels), list(labels), counts.tolist())
