"""Rungs 4 and 5, the first versions for a GPU, in Python: a kernel is what one thread does.

naive.cu and tiled.cu have the same two steps in CUDA C. Arrays of Numba know how far apart their rows and columns are,
so a transposed view is an array like any other.
"""

from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

TILE = 8
"""A block has TILE x TILE threads. (Numba's simulator starts a real thread for each.)"""


class _Product:
    """What both steps share: they differ in the kernel."""

    kernel: gpu.NumbaKernel

    def forward(self, a, b, bias=None):
        xp, shape = array_namespace(a), (a.shape[0], b.shape[1])
        c = xp.empty(shape, np.float32)
        if bias is None:
            bias = xp.zeros(shape[1], np.float32)
        grid = -(-shape[1] // TILE), -(-shape[0] // TILE)
        self.kernel.launch(grid, (TILE, TILE), (a, b, bias, c))
        return c

    def sum_rows(self, x):
        sums = array_namespace(x).empty(x.shape[1], np.float32)
        _sum_rows.launch((-(-x.shape[1] // 32),), (32,), (x, sums))
        return sums


@gpu.numba_kernel
def _naive(a, b, bias, c):
    column, row = cuda.grid(2)  # neighbouring threads have neighbouring columns
    if row < c.shape[0] and column < c.shape[1]:
        total = bias[column]
        for k in range(a.shape[1]):
            total += a[row, k] * b[k, column]
        c[row, column] = total


@gpu.numba_kernel
def _tiled(a, b, bias, c):
    tile_a = cuda.shared.array((TILE, TILE), np.float32)
    tile_b = cuda.shared.array((TILE, TILE), np.float32)
    column, row = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = np.float32(0)
    for k in range(0, a.shape[1], TILE):
        tile_a[ty, tx] = np.float32(0)  # beyond the edges
        tile_b[ty, tx] = np.float32(0)
        if row < c.shape[0] and k + tx < a.shape[1]:
            tile_a[ty, tx] = a[row, k + tx]
        if k + ty < a.shape[1] and column < c.shape[1]:
            tile_b[ty, tx] = b[k + ty, column]
        cuda.syncthreads()  # the tiles are complete
        for i in range(TILE):
            total += tile_a[ty, i] * tile_b[i, tx]
        cuda.syncthreads()  # everybody has read them
    if row < c.shape[0] and column < c.shape[1]:
        c[row, column] = total + bias[column]


@gpu.numba_kernel
def _sum_rows(x, sums):
    column = cuda.grid(1)
    if column < x.shape[1]:
        total = np.float32(0)
        for row in range(x.shape[0]):
            total += x[row, column]
        sums[column] = total


class Naive(_Product):
    """Rung 4, one thread an element of c, in Python."""

    kernel = _naive


class Tiled(_Product):
    """Rung 5, tiles in shared memory, each number of which is used TILE times."""

    kernel = _tiled


naive, tiled = Naive(), Tiled()
