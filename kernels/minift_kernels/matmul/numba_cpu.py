"""Rung 2, BLAS from inside a compiled loop. Each thread multiplies a block of rows (of columns, where there
are few rows) with a BLAS that uses that one thread. BLAS fills c with zeros before it adds up products, so
filling c with the bias instead costs nothing.

BLAS's own threads are as fast at this, but between products they spin, and the loops of all other operations
wait."""

import numpy as np
from numba import prange

from minift_kernels.host import (
    HAS_SGEMM,
    NO_TRANSPOSE,
    ROW_MAJOR,
    TRANSPOSE,
    check_dtype,
    compiled,
    contiguous,
    sgemm,
    single_threaded_blas,
    thread_count,
)
from minift_kernels.matmul import reference

_ITEM = 4  # bytes of a float32

_BLOCK_ROWS = 64
"""Rows that one thread adds up: few enough to balance, enough to pay."""


def forward(a, b, bias=None):
    if not HAS_SGEMM:
        return reference.forward(a, b, bias)
    (rows, inner), columns = a.shape, b.shape[1]
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
    """x or a copy, as BLAS wants it: whether it lies transposed in memory, and how far apart its rows are."""
    check_dtype(x)
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
    for block in prange(threads):
        top, bottom, left, right = 0, rows, 0, columns
        if by_rows:
            top, bottom = rows * block // threads, rows * (block + 1) // threads
        else:
            left, right = columns * block // threads, columns * (block + 1) // threads
        if top < bottom and left < right:
            if len(bias) > 0:
                for r in range(top, bottom):
                    for column in range(left, right):
                        c[r, column] = bias[column]
            sgemm(
                ROW_MAJOR, transpose_a, transpose_b,
                bottom - top, right - left, inner,
                np.float32(1), a + _ITEM * top * (a_row if transpose_a == NO_TRANSPOSE else 1), a_row,
                b + _ITEM * left * (1 if transpose_b == NO_TRANSPOSE else b_row), b_row,
                np.float32(1 if len(bias) > 0 else 0),
                c.ctypes.data + _ITEM * (top * columns + left), columns,
            )  # fmt: skip


def sum_rows(x):
    blocks = (len(x) + _BLOCK_ROWS - 1) // _BLOCK_ROWS
    partial = np.zeros((blocks, x.shape[1]), np.float32)
    _sum_rows(contiguous(x), partial)
    return partial.sum(axis=0)


@compiled
def _sum_rows(x, partial):
    """Rows are added up block by block, so that the order does not depend on the number of threads."""
    for block in prange(len(partial)):
        for r in range(block * _BLOCK_ROWS, min(len(x), (block + 1) * _BLOCK_ROWS)):
            for c in range(x.shape[1]):
                partial[block, c] += x[r, c]
