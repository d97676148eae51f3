"""Text regression: a number for a text or a pair of texts, such as how similar the two are."""

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
from minift.tasks.task_model import TaskModel
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

    def config_json(self) -> dict[str, Any]:
        # transformers gives a head as many outputs as there are labels, two if none are named.
        return super().config_json() | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
