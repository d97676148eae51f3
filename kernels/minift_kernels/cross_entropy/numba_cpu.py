"""Rung 2, compiled loops: a row of logits is read twice in forward and once in backward, and nothing of its
size is written but the gradient itself."""

import numpy as np
from numba import prange

from minift_kernels.arrays import check_indices
from minift_kernels.host import compiled, contiguous, inlined
from minift_kernels.math32 import exp, largest


def forward(logits, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    targets, weights = _prepare(logits, targets, class_weights, ignore_index)
    losses, logsumexp = np.empty(len(logits), np.float32), np.empty(len(logits), np.float32)
    _forward(
        contiguous(logits), targets, weights, ignore_index, np.float32(label_smoothing), losses, logsumexp
    )
    return losses, logsumexp


def backward(dlosses, logits, logsumexp, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    targets, weights = _prepare(logits, targets, class_weights, ignore_index)
    dlogits = np.empty(logits.shape, np.float32)
    _backward(
        contiguous(dlosses),
        contiguous(logits),
        contiguous(logsumexp),
        targets,
        weights,
        weights.sum(),
        ignore_index,
        np.float32(label_smoothing),
        dlogits,
    )
    return dlogits


def _prepare(logits, targets, class_weights, ignore_index):
    """The targets as int64, none of them outside the row, and a weight for each class."""
    check_indices("target class", targets[targets != ignore_index], logits.shape[1])
    if class_weights is None:
        class_weights = np.ones(logits.shape[1], np.float32)
    return contiguous(targets.astype(np.int64, copy=False), np.int64), contiguous(class_weights)


@compiled
def _forward(logits, targets, weights, ignore_index, smoothing, losses, logsumexp):
    for r in prange(len(logits)):
        shift, log_total = _log_sum_exp(logits[r])
        logsumexp[r] = shift + log_total
        losses[r] = np.float32(0)
        if targets[r] != ignore_index:
            target = targets[r]
            # Not logsumexp - logit: where both are large, the small log_total would be rounded away between
            # them.
            loss = weights[target] * (shift - logits[r, target] + log_total)
            losses[r] = (np.float32(1) - smoothing) * loss
            if smoothing > 0:
                total = np.float32(0)
                for c in range(logits.shape[1]):
                    total += weights[c] * (shift - logits[r, c] + log_total)
                losses[r] += smoothing * total / np.float32(logits.shape[1])


@inlined
def _log_sum_exp(row):
    """log(sum(exp(row))) in two parts that add up to it: the largest value, and a small number."""
    shift = largest(row)
    total = np.float32(0)
    for c in range(len(row)):
        total += exp(row[c] - shift)
    return shift, np.log(total)


@compiled
def _backward(dlosses, logits, logsumexp, targets, weights, all_weights, ignore_index, smoothing, dlogits):
    # losses = sum_c pull_c (logsumexp - logits_c): each pull lifts its own logit, and all of them weigh on p.
    smoothing_pull = smoothing / np.float32(logits.shape[1])
    for r in prange(len(logits)):
        if targets[r] == ignore_index:
            for c in range(logits.shape[1]):
                dlogits[r, c] = np.float32(0)
        else:
            target_pull = (np.float32(1) - smoothing) * weights[targets[r]]
            all_pulls = target_pull + smoothing_pull * all_weights
            for c in range(logits.shape[1]):
                p = exp(logits[r, c] - logsumexp[r])
                dlogits[r, c] = dlosses[r] * (all_pulls * p - smoothing_pull * weights[c])
            dlogits[r, targets[r]] -= dlosses[r] * target_pull
