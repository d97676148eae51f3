"""Metrics against values computed by hand; scikit-learn and seqeval referee them in peers/."""

import math

import numpy as np
import pytest

from minift import metrics

# A table of two classes: 3 right ones of class 1, 1 missed, 2 false alarms, 4 right ones of class 0.
EXPECTED = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
PREDICTED = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]


def test_accuracy():
    assert metrics.accuracy(PREDICTED, EXPECTED) == 0.7
    assert metrics.accuracy([[1, 0], [1, 1]], [[1, 0], [1, 0]]) == 0.5  # a row is right as a whole


def test_macro_f1():
    assert metrics.macro_f1(PREDICTED, EXPECTED) == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert metrics.macro_f1([0, 0], [0, 0]) == 1  # of the class 1 there is nothing to find
    assert metrics.macro_f1([0, 0], [0, 2]) == pytest.approx((2 / 3 + 0) / 2)


def test_f1_of_sets():
    predicted, expected = [[1, 0, 0], [1, 1, 0]], [[1, 1, 0], [0, 1, 0]]
    assert metrics.micro_f1(predicted, expected) == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.macro_f1(predicted, expected) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_matthews_of_two_classes_is_the_correlation():
    tp, fn, fp, tn = 3, 1, 2, 4
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.matthews(PREDICTED, EXPECTED) == pytest.approx(by_hand)
    assert metrics.matthews(PREDICTED, EXPECTED) == pytest.approx(metrics.pearson(PREDICTED, EXPECTED))
    assert metrics.matthews([1, 1, 1], [0, 1, 2]) == 0  # one class alone says nothing
    assert metrics.matthews([2, 0, 1], [2, 0, 1]) == pytest.approx(1)


def test_correlations():
    assert metrics.pearson([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert metrics.pearson([1, 2, 3], [1, 0, 1]) == 0
    assert metrics.pearson([5, 5, 5], [1, 2, 3]) == 0
    assert metrics.pearson([0.1] * 3, [0.1] * 3) == 0  # whose mean is not quite 0.1
    assert math.isnan(metrics.pearson([math.nan, 1, 2], [1, 2, 3]))
    assert metrics.spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert metrics.spearman([4, 3, 2, 1], [1, 10, 100, 1000]) == pytest.approx(-1)


def test_equal_numbers_share_the_mean_of_their_ranks():
    assert metrics.ranks(np.array([2.0, 9.0, 2.0, 1.0])).tolist() == [2.5, 4, 2.5, 1]
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 1 - 6 sum(d^2) / (n^3 - n) would hold without ties only.
    assert metrics.spearman([1, 5, 5, 7], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("O I-PER I-PER", [("PER", 1, 3)]),  # what breaks the scheme marks spans all the same
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("I-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_spans(tags, found):
    assert metrics.spans(tags.split()) == found


def test_span_scores():
    expected = ["B-PER I-PER O B-LOC".split(), "O B-ORG".split()]
    predicted = ["B-PER I-PER O O".split(), "B-ORG I-ORG".split()]
    assert metrics.span_scores(predicted, expected) == pytest.approx(
        {"f1": 2 / 5, "precision": 1 / 2, "recall": 1 / 3}
    )
    assert metrics.span_scores([["O"]], [["O"]]) == {"f1": 0, "precision": 0, "recall": 0}


@pytest.mark.parametrize(
    "metric",
    [
        metrics.accuracy,
        metrics.macro_f1,
        metrics.matthews,
        metrics.pearson,
        metrics.spearman,
        metrics.span_scores,
    ],
)
def test_two_lengths_and_nothing_at_all(metric):
    for predicted, expected in (([1, 2], [1]), ([], [])):
        with pytest.raises(ValueError, match=r"of \d (predictions|sentences) against \d"):
            metric(predicted, expected)
