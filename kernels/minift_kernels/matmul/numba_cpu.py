"""Rung 2, BLAS from inside a compiled loop. Each thread multiplies a block of rows (of columns, where there are few
rows) with a BLAS that uses that one thread, and adds the bias while the block is still in its cache.

BLAS's own threads are as fast at this, but between products they spin, and the loops of all other operations wait.
"""

import numpy as np

from minift_kernels.host import (
    HAS_SGEMM,
    NO_TRANSPOSE,
    ROW_MAJOR,
    TRANSPOSE,
    compiled,
    contiguous,
    prange,
    sgemm,
    single_threaded_blas,
    thread_count,
)
from minift_kernels.matmul import reference

_ITEM = 4  # bytes of a float32


def forward(a, b, bias=None):
    if not HAS_SGEMM:
        return reference.forward(a, b, bias)
    (rows, inner), columns = a.shape, b.shape[1]
    if b.shape[0] != inner:
        raise ValueError(f"matmul: a {a.shape} and b {b.shape} do not fit")
    c = np.empty((rows, columns), np.float32)
    a, transpose_a, a_row = _layout(a)
    b, transpose_b, b_row = _layout(b)
    bias = np.empty(0, np.float32) if bias is None else contiguous(bias)
    with single_threaded_blas():
        _product(
            a.ctypes.data,
            transpose_a,
            a_row,
            b.ctypes.data,
            transpose_b,
            b_row,
            inner,
            bias,
            c,
            thread_count(),
        )
    return c


def _layout(x):
    """x or a copy, as BLAS wants it: whether it lies transposed in memory, and the distance of its rows there."""
    down, across = (stride // _ITEM for stride in x.strides)
    if across == 1 and down >= x.shape[1]:
        return x, NO_TRANSPOSE, down
    if down == 1 and across >= x.shape[0]:
        return x, TRANSPOSE, across
    return np.ascontiguousarray(x), NO_TRANSPOSE, max(1, x.shape[1])


@compiled
def _product(a, transpose_a, a_row, b, transpose_b, b_row, inner, bias, c, threads):
    rows, columns = c.shape
    by_rows = rows >= columns or rows >= 64 * threads
    length = rows if by_rows else columns
    for block in prange(threads):
        start, end = length * block // threads, length * (block + 1) // threads
        top, bottom = (start, end) if by_rows else (0, rows)
        left, right = (0, columns) if by_rows else (start, end)
        if top < bottom and left < right:
            sgemm(
                ROW_MAJOR,
                transpose_a,
                transpose_b,
                bottom - top,
                right - left,
                inner,
                np.float32(1),
                a + _ITEM * top * (a_row if transpose_a == NO_TRANSPOSE else 1),
                a_row,
                b + _ITEM * left * (1 if transpose_b == NO_TRANSPOSE else b_row),
                b_row,
                np.float32(0),
                c.ctypes.data + _ITEM * (top * columns + left),
                columns,
            )
            if len(bias) > 0:
                for r in range(top, bottom):
                    for column in range(left, right):
                        c[r, column] += bias[column]


def sum_rows(x):
    return _sum_rows(contiguous(x))


@compiled
def _sum_rows(x):
    """Blocks of rows are added up side by side, then the blocks: the same order, whatever the number of threads."""
    rows, columns = x.shape
    block_rows = 64
    blocks = (rows + block_rows - 1) // block_rows
    partial = np.zeros((blocks, columns), np.float32)
    for block in prange(blocks):
        for r in range(block * block_rows, min(rows, (block + 1) * block_rows)):
            for c in range(columns):
                partial[block, c] += x[r, c]
    total = np.zeros(columns, np.float32)
    for block in range(blocks):
        for c in range(columns):
            total[c] += partial[block, c]
    return total
