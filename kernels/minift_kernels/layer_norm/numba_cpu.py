"""Rung 2, compiled loops. A row stays in the first-level cache through all its steps, so memory is read and written
once. The gradients of weight and bias are sums over all rows: each block of rows adds up its own share, in an order
that does not depend on the number of threads."""

import numpy as np

from minift_kernels.host import compiled, contiguous, prange

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
    dweight, dbias = _backward(
        contiguous(dy), contiguous(normalized), contiguous(rstd), contiguous(weight), dx
    )
    return dx, dweight, dbias


@compiled
def _forward(x, residual, weight, bias, eps, y, normalized, rstd):
    rows, columns = x.shape
    for r in prange(rows):
        total = np.float32(0)
        for c in range(columns):
            value = x[r, c]
            if len(residual) > 0:
                value += residual[r, c]
            normalized[r, c] = value
            total += value
        mean = total / np.float32(columns)
        squares = np.float32(0)
        for c in range(columns):
            normalized[r, c] -= mean
            squares += normalized[r, c] * normalized[r, c]
        rstd[r] = np.float32(1) / np.sqrt(squares / np.float32(columns) + eps)
        for c in range(columns):
            normalized[r, c] *= rstd[r]
            y[r, c] = normalized[r, c] * weight[c] + bias[c]


@compiled
def _backward(dy, normalized, rstd, weight, dx):
    rows, columns = dy.shape
    blocks = (rows + _BLOCK_ROWS - 1) // _BLOCK_ROWS
    dweights = np.zeros((blocks, columns), np.float32)
    dbiases = np.zeros((blocks, columns), np.float32)
    for block in prange(blocks):
        for r in range(block * _BLOCK_ROWS, min(rows, (block + 1) * _BLOCK_ROWS)):
            total, dot = np.float32(0), np.float32(0)
            for c in range(columns):
                dbiases[block, c] += dy[r, c]
                dweights[block, c] += dy[r, c] * normalized[r, c]
                dnormalized = dy[r, c] * weight[c]
                total += dnormalized
                dot += dnormalized * normalized[r, c]
            mean_term = total / np.float32(columns)
            rstd_term = dot / np.float32(columns)
            for c in range(columns):
                dnormalized = dy[r, c] * weight[c]
                dx[r, c] = (dnormalized - mean_term - normalized[r, c] * rstd_term) * rstd[r]
    dweight, dbias = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
    for block in range(blocks):
        for c in range(columns):
            dweight[c] += dweights[block, c]
            dbias[c] += dbiases[block, c]
    return dweight, dbias
