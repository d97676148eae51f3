"""Rungs 5 to 7, CUDA C: how the kernels of layer_norm.cu are launched. The lesson is in that file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace

FILE = Path(__file__).with_name("layer_norm.cu")

WARP = 32
_BLOCK = 256
"""Threads of a block in the first two steps; BLOCK in layer_norm.cu."""

_WARPS = 4
"""Rows that a block has under way in the last step; WARPS in layer_norm.cu."""

_PARTS = 396
"""Among how many blocks the rows are dealt out for the sums over them: three for each of an H100's 132
processors. The same on every GPU, so that every GPU adds up in the same order."""


class _LayerNorm:
    """What the steps share: they differ in their kernels and in the shape of a launch."""

    def forward(self, x, residual, weight, bias, eps):
        x, residual, weight, bias = map(gpu.contiguous, (x, residual, weight, bias))
        xp = array_namespace(x)
        y, normalized, rstd = xp.empty_like(x), xp.empty_like(x), xp.empty(len(x), np.float32)
        self._forward(x, residual, weight, bias, np.float32(eps), y, normalized, rstd)
        return y, normalized, rstd

    def backward(self, dy, normalized, rstd, weight):
        dy, normalized, rstd, weight = map(gpu.contiguous, (dy, normalized, rstd, weight))
        dx = array_namespace(dy).empty_like(dy)
        dweight, dbias = self._backward(dy, normalized, rstd, weight, dx)
        return dx, dweight, dbias

    def _forward(self, x, residual, weight, bias, eps, y, normalized, rstd):
        raise NotImplementedError

    def _backward(self, dy, normalized, rstd, weight, dx):
        """Fills dx; returns dweight and dbias."""
        raise NotImplementedError


class Naive(_LayerNorm):
    """Rung 5, one thread a row. A warp reads 32 rows at once, so most of every memory access is wasted."""

    def _forward(self, x, *others):
        rows, columns = x.shape
        kernel = f"layer_norm_naive_forward<{gpu.c_type(x)}>"
        arguments = (x, *others, np.int64(rows), np.int32(columns))
        gpu.launch(FILE, kernel, (_ceil(rows, _BLOCK),), (_BLOCK,), arguments)

    def _backward(self, dy, normalized, rstd, weight, dx):
        rows, columns = dy.shape
        T, size = gpu.c_type(dy), (np.int64(rows), np.int32(columns))
        sums = array_namespace(dy).empty((2, columns), np.float32)
        grid, arguments = (_ceil(rows, _BLOCK),), (dy, normalized, rstd, weight, dx, *size)
        gpu.launch(FILE, f"layer_norm_naive_backward<{T}>", grid, (_BLOCK,), arguments)
        grid, arguments = (_ceil(columns, _BLOCK),), (dy, normalized, sums, *size)
        gpu.launch(FILE, f"layer_norm_naive_columns<{T}>", grid, (_BLOCK,), arguments)
        return sums[0], sums[1]


class Shared(_LayerNorm):
    """Rung 6, one block a row. A warp reads neighbouring columns; the threads meet in shared memory."""

    def _forward(self, x, *others):
        kernel = f"layer_norm_shared_forward<{gpu.c_type(x)}>"
        gpu.launch(FILE, kernel, (len(x),), (_BLOCK,), (x, *others, np.int32(x.shape[1])))

    def _backward(self, dy, normalized, rstd, weight, dx):
        rows, columns = dy.shape
        T = gpu.c_type(dy)
        arguments = (dy, normalized, rstd, weight, dx, np.int32(columns))
        gpu.launch(FILE, f"layer_norm_shared_backward<{T}>", (rows,), (_BLOCK,), arguments)
        block = WARP, _BLOCK // WARP
        partials = _partials(dy, block[1])
        grid = _ceil(columns, WARP), len(partials)
        arguments = (dy, normalized, partials, np.int64(rows), np.int32(columns))
        gpu.launch(FILE, f"layer_norm_shared_columns<{T}>", grid, block, arguments)
        return _sum_parts(partials)


class Warp(_LayerNorm):
    """Rung 7, one warp a row. The row stays in registers, between 16-byte loads and sums by shuffles.

    Rows of more than 1024 numbers, or of no whole number of packs, take the rung before.
    """

    def _forward(self, x, *others):
        count = _packs_a_lane(x)
        if count is None:
            return shared._forward(x, *others)
        kernel = f"layer_norm_warp_forward<{gpu.c_type(x)}, {count}>"
        arguments = (x, *others, np.int64(len(x)), np.int32(x.shape[1]))
        return gpu.launch(FILE, kernel, (_ceil(len(x), _WARPS),), (WARP, _WARPS), arguments)

    def _backward(self, dy, normalized, rstd, weight, dx):
        count = _packs_a_lane(dy)
        if count is None:
            return shared._backward(dy, normalized, rstd, weight, dx)
        kernel = f"layer_norm_warp_backward<{gpu.c_type(dy)}, {count}>"
        partials = _partials(dy, _WARPS)
        arguments = (dy, normalized, rstd, weight, dx, partials, np.int64(len(dy)), np.int32(dy.shape[1]))
        gpu.launch(FILE, kernel, (len(partials),), (WARP, _WARPS), arguments)
        return _sum_parts(partials)


naive, shared, warp = Naive(), Shared(), Warp()

_NUMBERS_A_LANE = 16, 32
"""How many numbers of a row a lane can hold; backward holds four arrays of as many in its registers."""


def _packs_a_lane(x):
    """How many packs of 16 bytes each lane holds of a row of x; None where a row does not fit."""
    columns, size = x.shape[1], 16 // x.itemsize
    fitting = (n // size for n in _NUMBERS_A_LANE if columns <= WARP * n and columns % size == 0)
    return next(fitting, None)


def _partials(dy, rows_at_a_time):
    """(parts, 2, H), room for the parts of dweight and dbias."""
    parts = min(_PARTS, _ceil(len(dy), rows_at_a_time))
    return array_namespace(dy).empty((parts, 2, dy.shape[1]), np.float32)


def _sum_parts(partials):
    """dweight and dbias: the sums of all parts, 0 of none."""
    parts, _, columns = partials.shape
    sums = array_namespace(partials).empty((2, columns), np.float32)
    arguments = (partials, sums, np.int32(parts), np.int32(2 * columns))
    gpu.launch(FILE, "layer_norm_sum_parts", (_ceil(2 * columns, WARP),), (WARP, WARP), arguments)
    return sums[0], sums[1]


def _ceil(a, b):
    """a / b, rounded up."""
    return -(-a // b)
