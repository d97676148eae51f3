"""Text classification with several labels per text: each of C labels applies or does not, and so may none or all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minift.data import Batch, Columns, Dataset, Text, pack
from minift.errors import InputError
from minift.losses import binary_cross_entropy, sigmoid
from minift.metrics import accuracy, macro_f1, micro_f1
from minift.tasks.task_model import Outcomes, TaskModel, Verdict, plain_text
from minift.tensor import Tensor
from minift.tokenizer import check_characters


class LabelSets(Dataset):
    """Texts or pairs with any number of labels each, in the column `labels` or `label`.

    In JSONL they are a list, ["anger", "joy"]; in a TSV or CSV they stand with commas between them, `anger,joy`, and
    nothing means none.
    """

    LABEL_COLUMNS: ClassVar[tuple[str, ...]] = ("labels", "label")

    def label_text(self, value: Any, number: int) -> str:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(type(name) in (str, int) for name in names):
            found = json.dumps(value)[:60]
            raise self.error(number, f"the labels were to be a list, or a text with commas, found {found}")
        check_characters("".join(map(str, names)), f"{self.path}, line {number}: a label")
        return json.dumps(sorted({str(name).strip() for name in names} - {""}))

    @property
    def label_sets(self) -> list[list[str]]:
        """The distinct sets of labels, in the order of `values`."""
        return [json.loads(str(value)) for value in self.values]

    def indicators(self, names: Sequence[str]) -> np.ndarray:
        """(R, C) float32: 1 where row r has label names[c]. Raises InputError, with the line, for another label."""
        rows = np.zeros((len(self.values), len(names)), np.float32)
        for code, labels in enumerate(self.label_sets):
            for label in labels:
                if label not in names:
                    expected = ", ".join(map(repr, names))
                    raise self.error(self.first_line(code), f"label {label!r}, expected some of: {expected}")
                rows[code, names.index(label)] = 1
        return self.each(rows)


class LabelsPrediction(NamedTuple):
    """What the model says of one text: the labels that are more likely than not, and every label's probability."""

    labels: list[str]
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{label} {self.probabilities[label]:.3f}" for label in self.labels) or "(none)"


class MultiLabelClassification(TaskModel):
    """Any of C labels for each text: a sigmoid on each of the head's C outputs, binary cross-entropy for each."""

    head = "SequenceClassification"
    problem_type = "multi_label_classification"
    has_labels = True
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> LabelSets:
        """Texts or pairs with a list of labels each: .tsv, .csv or .jsonl, see `LabelSets`."""
        return LabelSets(path, *columns, require_label=labelled)

    @classmethod
    def labels_in(cls, examples: LabelSets) -> list[str]:
        found = sorted({label for labels in examples.label_sets for label in labels})
        if not found:
            raise InputError(f"{examples.path}: no text in it has a label, so there is none to learn")
        return found

    @property
    def outputs(self) -> int:
        return len(self.labels)

    def targets(self, examples: LabelSets) -> np.ndarray:
        return examples.indicators(self.labels)  # (R, C)

    def pack(self, inputs: list[Text], targets: Sequence[np.ndarray] | None = None) -> Batch:
        return pack(self.tokenizer.encode(inputs), targets)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return binary_cross_entropy(output, batch.labels)

    def decode(self, output: np.ndarray, batch: Batch) -> list[LabelsPrediction]:
        found = [dict(zip(self.labels, row.tolist(), strict=True)) for row in sigmoid(output)]
        return [
            LabelsPrediction([label for label in row if row[label] > 0.5], probabilities=row) for row in found
        ]

    def metrics(self, predictions: list[LabelsPrediction], examples: LabelSets) -> dict[str, float]:
        """{"micro_f1", "macro_f1", "accuracy"}; accuracy is the share of texts all of whose labels are right."""
        predicted = np.array([[label in each.labels for label in self.labels] for each in predictions])
        expected = self.targets(examples) > 0.5
        return {
            "micro_f1": micro_f1(predicted, expected),
            "macro_f1": macro_f1(predicted, expected),
            "accuracy": accuracy(predicted, expected),
        }

    def verdict(self, given: Text, target: np.ndarray, prediction: LabelsPrediction) -> Verdict:
        """The score is the mean over all labels of the probability of what is right."""
        probabilities = np.array([prediction.probabilities[label] for label in self.labels])
        score = float(np.where(target > 0.5, probabilities, 1 - probabilities).mean())
        right = [label for label, applies in zip(self.labels, target, strict=True) if applies]
        said = ", ".join(prediction.labels) or "(none)"
        return Verdict(plain_text(given), ", ".join(right) or "(none)", said, score)

    def outcomes(self, targets: np.ndarray, predictions: list[LabelsPrediction]) -> Outcomes:
        """For each label how often it was told and how often not, where it applies and where not."""
        said = np.array([[label in each.labels for label in self.labels] for each in predictions])
        right = targets > 0.5
        counts = [right & said, right & ~said, ~right & said, ~right & ~said]
        columns = ["found", "missed", "false alarm", "rightly left out"]
        return Outcomes(
            list(self.labels), columns, np.stack([each.sum(axis=0) for each in counts], 1).tolist()
        )

    def balance(self, targets: np.ndarray) -> dict[str, int]:
        return dict(zip(self.labels, (targets > 0.5).sum(axis=0).tolist(), strict=True))
