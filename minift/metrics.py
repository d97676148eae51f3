"""Metrics: how good a model is, in the numbers that people report.

Each takes what was predicted and what was expected, in this order and of one length, and gives a number that is 1
for a perfect model. Each raises ValueError for two different lengths, and for nothing at all.
"""

from collections.abc import Sequence

import numpy as np

Values = Sequence | np.ndarray


def accuracy(predicted: Values, expected: Values) -> float:
    """The share of predictions that are right: of rows, where a prediction has several parts."""
    predicted, expected = _arrays("accuracy", predicted, expected)
    right = predicted == expected
    return float(right.reshape(len(right), -1).all(axis=1).mean())


# ---- Classes -------------------------------------------------------------------------------------


def f1(found: float, predicted: float, expected: float) -> float:
    """The harmonic mean of precision (found / predicted) and recall (found / expected); 0 where nothing is found."""
    return 2 * found / (predicted + expected) if found else 0.0


def macro_f1(predicted: Values, expected: Values) -> float:
    """The mean of every class's F1, rare classes counting as much as others; classes that never occur do not count.

    Of classes (R,), or of sets of classes (R, C), in which 1 says that row r has class c: there all C count.
    """
    predicted, expected = _arrays("macro_f1", predicted, expected)
    if predicted.ndim == 1:
        classes = np.unique(np.concatenate([predicted, expected]))
        predicted, expected = np.equal.outer(predicted, classes), np.equal.outer(expected, classes)  # (R, C)
    predicted, expected = predicted.astype(bool), expected.astype(bool)
    counts = zip((predicted & expected).sum(axis=0), predicted.sum(axis=0), expected.sum(axis=0), strict=True)
    return float(np.mean([f1(*map(int, count)) for count in counts]))


def micro_f1(predicted: Values, expected: Values) -> float:
    """The F1 of all (row, class) pairs together, of sets of classes (R, C) as `macro_f1` takes them."""
    predicted, expected = (array.astype(bool) for array in _arrays("micro_f1", predicted, expected))  # (R, C)
    return f1(int((predicted & expected).sum()), int(predicted.sum()), int(expected.sum()))


def matthews(predicted: Values, expected: Values) -> float:
    """The correlation of predicted and right classes, 0 for guessing (Gorodkin 2004, R_K; two classes: Matthews 1975).

    Of the C x C table of counts, with c right ones among s: (c s - p t) / sqrt((s^2 - p p) (s^2 - t t)), where p and
    t hold how often each class is predicted and is right. 0 where either names one class alone.
    """
    predicted, expected = _arrays("matthews", predicted, expected)
    classes = np.unique(np.concatenate([predicted, expected]))
    p = np.array([(predicted == each).sum() for each in classes], np.float64)
    t = np.array([(expected == each).sum() for each in classes], np.float64)
    rows, right = float(len(expected)), float((predicted == expected).sum())
    spread = (rows**2 - p @ p) * (rows**2 - t @ t)
    return float((right * rows - p @ t) / np.sqrt(spread)) if spread > 0 else 0.0


# ---- Numbers -------------------------------------------------------------------------------------


def pearson(predicted: Values, expected: Values) -> float:
    """The linear correlation of two rows of numbers; 0 where one of them does not vary."""
    x, y = (array.astype(np.float64) for array in _arrays("pearson", predicted, expected))
    # Not told by the spread: the mean of equal numbers may differ from them in the last digit.
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def spearman(predicted: Values, expected: Values) -> float:
    """The correlation of the ranks, so that only the order counts; equal numbers share the mean of their ranks."""
    predicted, expected = _arrays("spearman", predicted, expected)
    return pearson(ranks(predicted), ranks(expected))


def ranks(values: np.ndarray) -> np.ndarray:
    """The place of each number in the order of all, from 1; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the last place of each distinct number
    return (last - (counts - 1) / 2)[which]


# ---- Spans of a tagged sentence ------------------------------------------------------------------


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The spans that BIO tags mark: (type, first word, word after the last), by the rules of conlleval and seqeval.

    A span begins at every B-, and at an I- that continues nothing: behind O, or behind a tag of another type. So even
    tags that break the scheme, as a model may predict them, mark definite spans.
    """
    found = []
    start, kind = 0, ""  # of the span that is open; the type is empty where none is
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, type_ = tag.partition("-")
        if kind and (prefix != "I" or type_ != kind):
            found.append((kind, start, position))
            kind = ""
        if prefix in ("B", "I") and not kind:
            start, kind = position, type_
    return found


def span_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """{"f1", "precision", "recall"} of the spans in all sentences together, from one list of tags a sentence.

    A span counts where its type and both ends are right (Tjong Kim Sang and De Meulder 2003). 0 where there is nothing
    to divide by.
    """
    if len(predicted) != len(expected) or not len(expected):
        raise ValueError(f"span_scores of {len(predicted)} sentences against {len(expected)}")
    guessed = {(row, *span) for row, tags in enumerate(predicted) for span in spans(tags)}
    right = {(row, *span) for row, tags in enumerate(expected) for span in spans(tags)}
    found = len(guessed & right)
    return {
        "f1": f1(found, len(guessed), len(right)),
        "precision": found / len(guessed) if guessed else 0.0,
        "recall": found / len(right) if right else 0.0,
    }


def _arrays(name: str, predicted: Values, expected: Values) -> tuple[np.ndarray, np.ndarray]:
    if len(predicted) != len(expected) or len(expected) == 0:
        raise ValueError(f"{name} of {len(predicted)} predictions against {len(expected)} labels")
    return np.asarray(predicted), np.asarray(expected)
