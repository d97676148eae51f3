"""Text regression: a number for a text or a pair of texts, such as how similar the two are."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minift.data import Batch, Columns, Dataset, Text, pack
from minift.losses import mse_loss
from minift.metrics import pearson, spearman
from minift.tasks.task_model import Outcomes, TaskModel, Verdict, plain_text
from minift.tensor import Tensor

LARGEST = float(np.finfo(np.float32).max)

RANGES = 6
"""In how many ranges of one width the report counts numbers."""


class Scores(Dataset):
    """Texts or pairs with a number each, in the column `score` or `label`."""

    LABEL_COLUMNS: ClassVar[tuple[str, ...]] = ("score", "label")

    def label_text(self, value: Any, number: int) -> str:
        try:
            score = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not abs(score) <= LARGEST:  # which NaN is not, either
            found = json.dumps(value)[:60]
            raise self.error(number, f"the score was to be a number (of float32), found {found}")
        return str(score)

    @property
    def scores(self) -> np.ndarray:
        """(R,) float32: the number of each row."""
        return self.each([float(value) for value in self.values]).astype(np.float32)


class ScorePrediction(NamedTuple):
    """The number that the model gives to one text."""

    score: float

    def __str__(self) -> str:
        return f"{self.score:.3f}"


class TextRegression(TaskModel):
    """One number for each text: the head's only output, mean squared error against the right number."""

    head = "SequenceClassification"
    problem_type = "regression"

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Scores:
        """Texts or pairs with a score each: .tsv, .csv or .jsonl, see `Scores`."""
        return Scores(path, *columns, require_label=labelled)

    @property
    def outputs(self) -> int:
        return 1

    edges: np.ndarray | None = None
    """The ends of the ranges in which numbers are counted: of the training examples' numbers, once it has seen them."""

    def prepare(self, examples: Scores) -> None:
        self.edges = np.histogram_bin_edges(examples.scores.astype(np.float64), RANGES)

    def targets(self, examples: Scores) -> np.ndarray:
        return examples.scores  # (R,)

    def pack(self, inputs: list[Text], targets: Sequence[float] | None = None) -> Batch:
        return pack(self.tokenizer.encode(inputs), targets)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return mse_loss(output.reshape(-1), batch.labels)

    def decode(self, output: np.ndarray, batch: Batch) -> list[ScorePrediction]:
        return [ScorePrediction(score) for score in output[:, 0].tolist()]

    def metrics(self, predictions: list[ScorePrediction], examples: Scores) -> dict[str, float]:
        """{"pearson", "spearman"}: the correlation of the numbers, and of their ranks."""
        predicted = [prediction.score for prediction in predictions]
        return {
            "pearson": pearson(predicted, examples.scores),
            "spearman": spearman(predicted, examples.scores),
        }

    def verdict(self, given: Text, target: float, prediction: ScorePrediction) -> Verdict:
        """The score is the distance from what is right, below 0."""
        error = abs(prediction.score - float(target))
        return Verdict(plain_text(given), f"{target:.2f}", f"{prediction.score:.2f}", -error)

    def outcomes(self, targets: np.ndarray, predictions: list[ScorePrediction]) -> Outcomes:
        """How often a number of each range was said where one of each range was right."""
        assert self.edges is not None
        said = np.array([each.score for each in predictions])
        right, said = (np.clip(each, self.edges[0], self.edges[-1]) for each in (targets, said))
        counts, _, _ = np.histogram2d(right, said, (self.edges, self.edges))
        return Outcomes(self.ranges, self.ranges, counts.astype(int).tolist())

    def balance(self, targets: np.ndarray) -> dict[str, int]:
        assert self.edges is not None
        counts, _ = np.histogram(np.clip(targets, self.edges[0], self.edges[-1]), self.edges)
        return dict(zip(self.ranges, counts.tolist(), strict=True))

    @property
    def ranges(self) -> list[str]:
        """What the ranges are called. The outermost hold what lies beyond them, too."""
        assert self.edges is not None
        return [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(self.edges)]

    def config_json(self) -> dict[str, Any]:
        # transformers gives a head as many outputs as there are labels, two if none are named.
        return super().config_json() | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
