"""Text regression: a number for a text or a pair of texts, such as how similar the two are."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from minift.data import Batch, Columns, Dataset, Text, pack
from minift.losses import mse_loss
from minift.metrics import pearson, spearman
from minift.tasks.task_model import Outcomes, TaskModel, Verdict, plain_text
from minift.tensor import Tensor


class Scores(Dataset):
    """Texts or pairs with a number each, in the column `score` or `label`."""

    LABEL_COLUMNS: ClassVar[tuple[str, ...]] = ("score", "label")

    def label_text(self, value: Any, number: int) -> str:
        try:
            score = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise self.error(number, f"the score was to be a number, found {json.dumps(value)[:60]}")
        return str(score)

    @property
    def scores(self) -> np.ndarray:
        """(R,) float32: the number of each row."""
        return self.each([float(value) for value in self.values]).astype(np.float32)


@dataclass(frozen=True)
class ScorePrediction:
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
        """How often a number of each range was said where one of each range was right; what is said beyond the ranges
        counts in the outermost."""
        edges, names = ranges(targets)
        said = np.clip([each.score for each in predictions], edges[0], edges[-1])
        counts, _, _ = np.histogram2d(targets, said, (edges, edges))
        return Outcomes(names, names, counts.astype(int).tolist())

    def balance(self, targets: np.ndarray) -> dict[str, int]:
        edges, names = ranges(targets)
        return dict(zip(names, np.histogram(targets, edges)[0].tolist(), strict=True))

    def config_json(self) -> dict[str, Any]:
        # transformers gives a head as many outputs as there are labels, two if none are named.
        return super().config_json() | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def ranges(numbers: np.ndarray, count: int = 6) -> tuple[np.ndarray, list[str]]:
    """The edges of `count` ranges of one width from the least number to the largest, and what to call the ranges."""
    edges = np.histogram_bin_edges(np.asarray(numbers, np.float64), count)
    return edges, [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
