"""Rung 2, compiled loops. A row stays in the first-level cache through all its steps, so memory is read and
written once. The gradients of weight and bias are sums over all rows: each block of rows adds up its own
share, in an order that does not depend on the number of threads."""

import numpy as np
from numba import prange

from minift_kernels.host import compiled, contiguous, inlined

_BLOCK_ROWS = 64
"""Rows whose share of dweight and dbias is added up together: few enough to balance, enough to pay."""


def forward(x, residual, weight, bias, eps):
    y, normalized = np.empty_like(x, order="C"), np.empty_like(x, order="C")
    rstd = np.empty(len(x), np.float32)
    residual = np.empty((0, x.shape[1]), np.float32) if residual is None else contiguous(residual)
    _forward(
        contiguous(x), residual, contiguous(weight), contiguous(bias), np.float32(eps), y, normalized, rstd
    )
    return y, normalized, rstd


def backward(dy, normalized, rstd, weight):
    dx = np.empty_like(normalized, order="C")
    blocks = (len(dy) + _BLOCK_ROWS - 1) // _BLOCK_ROWS
    dweights = np.zeros((blocks, dy.shape[1]), np.float32)
    dbiases = np.zeros((blocks, dy.shape[1]), np.float32)
    _backward(
        contiguous(dy), contiguous(normalized), contiguous(rstd), contiguous(weight), dx, dweights, dbiases
    )
    return dx, dweights.sum(axis=0), dbiases.sum(axis=0)


@compiled
def _forward(x, residual, weight, bias, eps, y, normalized, rstd):
    for r in prange(len(x)):
        if len(residual) > 0:
            for c in range(x.shape[1]):
                normalized[r, c] = x[r, c] + residual[r, c]
        else:
            for c in range(x.shape[1]):
                normalized[r, c] = x[r, c]
        rstd[r] = _normalize(normalized[r], eps)
        for c in range(x.shape[1]):
            y[r, c] = normalized[r, c] * weight[c] + bias[c]


@inlined
def _normalize(x, eps):
    """Give x mean 0 and variance 1, in place; returns 1 / the standard deviation it had."""
    size = np.float32(len(x))
    total = np.float32(0)
    for c in range(len(x)):
        total += x[c]
    mean = total / size
    squares = np.float32(0)
    for c in range(len(x)):
        x[c] -= mean
        squares += x[c] * x[c]
    rstd = np.float32(1) / np.sqrt(squares / size + eps)
    for c in range(len(x)):
        x[c] *= rstd
    return rstd


@compiled
def _backward(dy, normalized, rstd, weight, dx, dweights, dbiases):
    for block in prange(len(dbiases)):
        for r in range(block * _BLOCK_ROWS, min(len(dy), (block + 1) * _BLOCK_ROWS)):
            _backward_row(dy[r], normalized[r], rstd[r], weight, dx[r], dweights[block], dbiases[block])


@inlined
def _backward_row(dy, normalized, rstd, weight, dx, dweight, dbias):
    size = np.float32(len(dy))
    total, dot = np.float32(0), np.float32(0)
    for c in range(len(dy)):
        dbias[c] += dy[c]
        dweight[c] += dy[c] * normalized[c]
        dnormalized = dy[c] * weight[c]
        total += dnormalized
        dot += dnormalized * normalized[c]
    mean_term, rstd_term = total / size, dot / size
    for c in range(len(dy)):
        dx[c] = (dy[c] * weight[c] - mean_term - normalized[c] * rstd_term) * rstd
