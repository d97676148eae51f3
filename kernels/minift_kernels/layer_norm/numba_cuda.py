"""Rungs 3 and 4, the first versions for a GPU, in Python: a kernel is what one thread does.

layer_norm.cu has the same two steps in CUDA C, and goes on from there.
"""

import math
from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.numba_device import block_sum

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 32
"""In a block; for `Shared` a power of two. (Numba's simulator starts a real thread for each.)"""


class Naive:
    """Rung 3, one thread a row: the formula in three loops."""

    def forward(self, x, residual, weight, bias, eps):
        return _forward(_naive_forward, -(-len(x) // THREADS), x, residual, weight, bias, eps)

    def backward(self, dy, normalized, rstd, weight):
        return _backward(_naive_backward, -(-len(dy) // THREADS), dy, normalized, rstd, weight)


class Shared:
    """Rung 4, one block a row. Threads read neighbouring columns, and meet in shared memory."""

    def forward(self, x, residual, weight, bias, eps):
        return _forward(_shared_forward, len(x), x, residual, weight, bias, eps)

    def backward(self, dy, normalized, rstd, weight):
        return _backward(_shared_backward, len(dy), dy, normalized, rstd, weight)


naive, shared = Naive(), Shared()


def _forward(kernel, blocks, x, residual, weight, bias, eps):
    xp = array_namespace(x)
    y, normalized, rstd = (xp.empty(shape, np.float32) for shape in (x.shape, x.shape, len(x)))
    if residual is None:  # a kernel of Numba takes no None
        residual = xp.empty((0, x.shape[1]), np.float32)
    x, residual, weight, bias = map(gpu.contiguous, (x, residual, weight, bias))
    kernel.launch((blocks,), (THREADS,), (x, residual, weight, bias, np.float32(eps), y, normalized, rstd))
    return y, normalized, rstd


def _backward(kernel, blocks, dy, normalized, rstd, weight):
    xp = array_namespace(dy)
    dx, dweight, dbias = (xp.empty(shape, np.float32) for shape in (dy.shape, weight.shape, weight.shape))
    dy, normalized, rstd, weight = map(gpu.contiguous, (dy, normalized, rstd, weight))
    kernel.launch((blocks,), (THREADS,), (dy, normalized, rstd, weight, dx))
    _column_sums.launch((-(-dy.shape[1] // THREADS),), (THREADS,), (dy, normalized, dweight, dbias))
    return dx, dweight, dbias


# -- naive ---------------------------------------------------------------------------------------------------


@gpu.numba_kernel
def _naive_forward(x, residual, weight, bias, eps, y, normalized, rstd):
    r = cuda.grid(1)  # this thread's number in the whole grid
    if r < x.shape[0]:  # the last block has threads to spare
        size = np.float32(x.shape[1])
        total = np.float32(0)
        for c in range(x.shape[1]):
            s = x[r, c]
            if residual.shape[0] > 0:
                s += residual[r, c]
            normalized[r, c] = s
            total += s
        mean = total / size
        squares = np.float32(0)
        for c in range(x.shape[1]):
            deviation = normalized[r, c] - mean
            squares += deviation * deviation
        rstd[r] = np.float32(1) / math.sqrt(squares / size + eps)
        for c in range(x.shape[1]):
            n = (normalized[r, c] - mean) * rstd[r]
            normalized[r, c] = n
            y[r, c] = n * weight[c] + bias[c]


@gpu.numba_kernel
def _naive_backward(dy, normalized, rstd, weight, dx):
    r = cuda.grid(1)
    if r < dy.shape[0]:
        size = np.float32(dy.shape[1])
        total, dot = np.float32(0), np.float32(0)
        for c in range(dy.shape[1]):
            dnormalized = dy[r, c] * weight[c]
            total += dnormalized
            dot += dnormalized * normalized[r, c]
        for c in range(dy.shape[1]):
            dx[r, c] = (dy[r, c] * weight[c] - total / size - normalized[r, c] * dot / size) * rstd[r]


@gpu.numba_kernel
def _column_sums(dy, normalized, dweight, dbias):
    c = cuda.grid(1)  # one thread a column
    if c < dy.shape[1]:
        dot, total = np.float32(0), np.float32(0)
        for r in range(dy.shape[0]):
            dot += dy[r, c] * normalized[r, c]
            total += dy[r, c]
        dweight[c] = dot
        dbias[c] = total


# -- shared --------------------------------------------------------------------------------------------------


@gpu.numba_kernel
def _shared_forward(x, residual, weight, bias, eps, y, normalized, rstd):
    partial = cuda.shared.array(THREADS, np.float32)  # one number a thread, seen by the whole block
    r, t = cuda.blockIdx.x, cuda.threadIdx.x
    size = np.float32(x.shape[1])
    total = np.float32(0)
    for c in range(t, x.shape[1], THREADS):
        s = x[r, c]
        if residual.shape[0] > 0:
            s += residual[r, c]
        normalized[r, c] = s  # read again by this thread alone
        total += s
    mean = block_sum(total, partial) / size

    squares = np.float32(0)
    for c in range(t, x.shape[1], THREADS):
        deviation = normalized[r, c] - mean
        squares += deviation * deviation
    of_row = np.float32(1) / math.sqrt(block_sum(squares, partial) / size + eps)
    for c in range(t, x.shape[1], THREADS):
        n = (normalized[r, c] - mean) * of_row
        normalized[r, c] = n
        y[r, c] = n * weight[c] + bias[c]
    if t == 0:
        rstd[r] = of_row


@gpu.numba_kernel
def _shared_backward(dy, normalized, rstd, weight, dx):
    partial = cuda.shared.array(THREADS, np.float32)
    r, t = cuda.blockIdx.x, cuda.threadIdx.x
    size = np.float32(dy.shape[1])
    total, dot = np.float32(0), np.float32(0)
    for c in range(t, dy.shape[1], THREADS):
        dnormalized = dy[r, c] * weight[c]
        total += dnormalized
        dot += dnormalized * normalized[r, c]
    total, dot = block_sum(total, partial), block_sum(dot, partial)
    for c in range(t, dy.shape[1], THREADS):
        dx[r, c] = (dy[r, c] * weight[c] - total / size - normalized[r, c] * dot / size) * rstd[r]
