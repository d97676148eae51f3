"""Rung 3, the first version for a GPU, in Python: each block leaves the sum of its squares, and one more block
adds these up. One launch for each array; Numba's kernels take no tables of addresses."""

import math
from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.numba_device import block_sum

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 32
"""In a block; a power of two. (Numba's simulator starts a real thread for each.)"""

CHUNK = 1 << 14
"""Elements whose squares a block adds up."""


def forward(gradients):
    """The norm as an array of no dimensions: on a GPU it stays there, and nobody waits for it."""
    xp = array_namespace(gradients[0])
    blocks = [-(-gradient.size // CHUNK) for gradient in gradients]
    sums, norm = xp.empty(sum(blocks), np.float64), xp.empty(1, np.float64)
    first = 0
    for gradient, count in zip(gradients, blocks, strict=True):
        flat = gpu.contiguous(gradient).reshape(-1)
        _sums_of_squares.launch((count,), (THREADS,), (flat, sums[first : first + count]))
        first += count
    _root_of_total.launch((1,), (THREADS,), (sums, norm))
    return norm[0]


@gpu.numba_kernel
def _sums_of_squares(g, sums):
    partial = cuda.shared.array(THREADS, np.float64)  # one number a thread, seen by the whole block
    t = cuda.threadIdx.x
    start = cuda.blockIdx.x * CHUNK
    total = 0.0
    for i in range(start + t, min(start + CHUNK, g.size), THREADS):
        total += np.float64(g[i]) * np.float64(g[i])
    total = block_sum(total, partial)
    if t == 0:
        sums[cuda.blockIdx.x] = total


@gpu.numba_kernel
def _root_of_total(sums, norm):
    partial = cuda.shared.array(THREADS, np.float64)
    t = cuda.threadIdx.x
    total = 0.0
    for i in range(t, sums.size, THREADS):
        total += sums[i]
    total = block_sum(total, partial)
    if t == 0:
        norm[0] = math.sqrt(total)
