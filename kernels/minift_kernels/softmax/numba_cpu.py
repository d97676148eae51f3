"""Rung 2, compiled loops. Rows are shared out among the cores; each row is read, exponentiated and divided
while it is in the first-level cache, where the reference walks through all of memory once for each step."""

import numpy as np
from numba import prange

from minift_kernels.host import compiled, contiguous, inlined
from minift_kernels.math32 import exp, largest


def forward(x):
    y = np.empty(x.shape, np.float32)
    _forward(_rows(x), _rows(y))
    return y


def backward(dy, y):
    dx = np.empty(y.shape, np.float32)
    _backward(_rows(dy), _rows(y), _rows(dx))
    return dx


def _rows(x):
    return contiguous(x).reshape(-1, x.shape[-1])


@compiled
def _forward(x, y):
    for r in prange(len(x)):
        _softmax(x[r], y[r])


@inlined
def _softmax(x, y):
    shift = largest(x)
    total = np.float32(0)
    for c in range(len(x)):
        y[c] = exp(x[c] - shift)
    # A loop of its own. In the one above x and y might overlap, for all that the compiler knows, so where they lie near
    # each other it takes numbers one by one: a sum would then be rounded in another order.
    for c in range(len(y)):
        total += y[c]
    for c in range(len(y)):
        y[c] *= np.float32(1) / total


@compiled
def _backward(dy, y, dx):
    for r in prange(len(y)):
        _softmax_backward(dy[r], y[r], dx[r])


@inlined
def _softmax_backward(dy, y, dx):
    dot = np.float32(0)
    for c in range(len(y)):
        dot += dy[c] * y[c]
    for c in range(len(y)):
        dx[c] = y[c] * (dy[c] - dot)
