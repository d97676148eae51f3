"""Rungs 3 and 4, the first versions for a GPU, in Python: a kernel is what one thread does.

softmax.cu has the same two steps in CUDA C, and goes on from there.
"""

import math
from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.numba_device import block_max, block_sum

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 32
"""In a block; for `Shared` a power of two. (Numba's simulator starts a real thread for each.)"""


class Naive:
    """Rung 3, one thread a row: the formula in three loops."""

    def forward(self, x):
        return _launch(_naive_forward, _blocks_of_rows, x)

    def backward(self, dy, y):
        return _launch(_naive_backward, _blocks_of_rows, dy, y)


class Shared:
    """Rung 4, one block a row. Threads read neighbouring columns, and meet in shared memory."""

    def forward(self, x):
        return _launch(_shared_forward, _a_block_a_row, x)

    def backward(self, dy, y):
        return _launch(_shared_backward, _a_block_a_row, dy, y)


naive, shared = Naive(), Shared()


def _launch(kernel, blocks, *inputs):
    result = array_namespace(inputs[0]).empty(inputs[0].shape, np.float32)
    rows = [gpu.contiguous(x).reshape(-1, x.shape[-1]) for x in (*inputs, result)]
    kernel.launch((blocks(len(rows[0])),), (THREADS,), rows)
    return result


def _blocks_of_rows(rows):
    return -(-rows // THREADS)


def _a_block_a_row(rows):
    return rows


# -- naive ---------------------------------------------------------------------------------------------------


@gpu.numba_kernel
def _naive_forward(x, y):
    r = cuda.grid(1)  # this thread's number in the whole grid
    if r < x.shape[0]:  # the last block has threads to spare
        largest = x[r, 0]
        for c in range(x.shape[1]):
            largest = max(largest, x[r, c])
        total = np.float32(0)
        for c in range(x.shape[1]):
            total += math.exp(x[r, c] - largest)
        for c in range(x.shape[1]):
            y[r, c] = math.exp(x[r, c] - largest) / total


@gpu.numba_kernel
def _naive_backward(dy, y, dx):
    r = cuda.grid(1)
    if r < y.shape[0]:
        dot = np.float32(0)
        for c in range(y.shape[1]):
            dot += dy[r, c] * y[r, c]
        for c in range(y.shape[1]):
            dx[r, c] = y[r, c] * (dy[r, c] - dot)


# -- shared --------------------------------------------------------------------------------------------------


@gpu.numba_kernel
def _shared_forward(x, y):
    partial = cuda.shared.array(THREADS, np.float32)  # one number a thread, seen by the whole block
    r, t = cuda.blockIdx.x, cuda.threadIdx.x
    largest = np.float32(-np.inf)
    for c in range(t, x.shape[1], THREADS):
        largest = max(largest, x[r, c])
    largest = block_max(largest, partial)

    total = np.float32(0)
    for c in range(t, x.shape[1], THREADS):
        total += math.exp(x[r, c] - largest)
    total = block_sum(total, partial)
    for c in range(t, x.shape[1], THREADS):
        y[r, c] = math.exp(x[r, c] - largest) / total


@gpu.numba_kernel
def _shared_backward(dy, y, dx):
    partial = cuda.shared.array(THREADS, np.float32)
    r, t = cuda.blockIdx.x, cuda.threadIdx.x
    dot = np.float32(0)
    for c in range(t, y.shape[1], THREADS):
        dot += dy[r, c] * y[r, c]
    dot = block_sum(dot, partial)
    for c in range(t, y.shape[1], THREADS):
        dx[r, c] = y[r, c] * (dy[r, c] - dot)
