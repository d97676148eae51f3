"""The same metrics as scikit-learn, SciPy and seqeval, on random predictions."""

import warnings

import numpy as np
import pytest

from minift import metrics

pytestmark = pytest.mark.peers
RANDOM = np.random.default_rng(4)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes(classes):
    referee = pytest.importorskip("sklearn.metrics")
    for rows in (1, 5, 200):
        expected, predicted = RANDOM.integers(classes, size=(2, rows))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert metrics.accuracy(predicted, expected) == referee.accuracy_score(expected, predicted)
            f1 = referee.f1_score(expected, predicted, average="macro")
            assert metrics.macro_f1(predicted, expected) == pytest.approx(f1, abs=1e-12)
            correlation = referee.matthews_corrcoef(expected, predicted)
            assert metrics.matthews(predicted, expected) == pytest.approx(correlation, abs=1e-12)


def test_sets_of_classes():
    referee = pytest.importorskip("sklearn.metrics")
    expected, predicted = RANDOM.random((2, 60, 5)) < [0.5, 0.1, 0.02, 0.9, 0.0]
    for average, metric in (("micro", metrics.micro_f1), ("macro", metrics.macro_f1)):
        f1 = referee.f1_score(expected, predicted, average=average, zero_division=0)
        assert metric(predicted, expected) == pytest.approx(f1, abs=1e-12)
    assert metrics.accuracy(predicted, expected) == referee.accuracy_score(expected, predicted)


def test_correlations():
    referee = pytest.importorskip("scipy.stats")
    for x, y in (RANDOM.standard_normal((2, 50)), RANDOM.integers(5, size=(2, 50)), ([1, 2], [2, 1])):
        assert metrics.pearson(x, y) == pytest.approx(referee.pearsonr(x, y)[0], abs=1e-12)
        assert metrics.spearman(x, y) == pytest.approx(referee.spearmanr(x, y)[0], abs=1e-12)


def test_spans_of_any_tags_even_broken_ones():
    referee = pytest.importorskip("seqeval.metrics")
    entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-creative-work"]
    for _ in range(300):
        expected, predicted = (
            [[str(tag) for tag in RANDOM.choice(tags, length)] for length in (1, 4, 9)] for _ in range(2)
        )
        for sentence in predicted:
            assert metrics.spans(sentence) == [
                (kind, first, last + 1) for kind, first, last in entities(sentence)
            ]
        found = metrics.span_scores(predicted, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert found["f1"] == pytest.approx(referee.f1_score(expected, predicted), abs=1e-12)
            assert found["precision"] == pytest.approx(
                referee.precision_score(expected, predicted), abs=1e-12
            )
            assert found["recall"] == pytest.approx(referee.recall_score(expected, predicted), abs=1e-12)
