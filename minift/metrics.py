"""Metrics: how good a model is, in the numbers that people report."""

from collections.abc import Sequence

import numpy as np


def accuracy(predicted: Sequence | np.ndarray, expected: Sequence | np.ndarray) -> float:
    """The share of predictions that are right. Raises ValueError for none, or for two different numbers of them."""
    if len(predicted) != len(expected) or len(expected) == 0:
        raise ValueError(f"accuracy of {len(predicted)} predictions against {len(expected)} labels")
    return float(np.mean(np.asarray(predicted) == np.asarray(expected)))
