"""Rung 2, BLAS from inside a compiled loop. Each thread multiplies with a BLAS that uses that one thread. BLAS
fills c with zeros before it adds up products, so filling c with the bias instead costs nothing.

BLAS copies both factors into the order in which it reads them, and two threads that share a product both copy
the factor that they share. So a product is cut along its longer side, where the shared factor is the smaller
one; and the two products of a linear layer's backward are not cut on two threads: each takes a whole one, and
its part of the columns whose sum is the bias's gradient.

BLAS's own threads are as fast at one product, but between products they spin, and the loops of all other
operations wait. The order in which BLAS adds up depends on the shape of a part, so another number of threads
may change the last bits."""

from math import gcd

import numpy as np
from numba import prange

from minift_kernels.arrays import lies_transposed
from minift_kernels.host import (
    HAS_SGEMM,
    NO_TRANSPOSE,
    ROW_MAJOR,
    TRANSPOSE,
    address,
    check_dtype,
    compiled,
    contiguous,
    float32_array,
    inlined,
    sgemm,
    single_threaded_blas,
    thread_count,
)
from minift_kernels.matmul import reference

_ITEM = 4  # bytes of a float32

_BLOCK_ROWS = 64
"""Rows whose sum is taken by itself, so that a long sum is a sum of short ones, which rounds less."""

_NO_ROWS = np.empty((0, 0), np.float32)


def forward(a, b, bias=None):
    if not HAS_SGEMM:
        return reference.forward(a, b, bias)
    c = np.empty((a.shape[0], b.shape[1]), np.float32)
    bias = None if bias is None else contiguous(bias)
    a, b = _layout(a), _layout(b)
    _run([_product(a, b, c, bias)], _NO_ROWS)
    return c


def linear_backward(dy, x, weight, bias):
    if not HAS_SGEMM:
        return reference.linear_gradients(reference, dy, x, weight, bias)
    dy = _layout(dy)
    products, dx, dweight = [], None, None
    if weight is not None:
        weight = _layout(weight)
        dx = np.empty((dy.shape[0], weight.shape[1]), np.float32)
        products.append(_product(dy, weight, dx))
    if x is not None:
        x = _layout(x)
        if lies_transposed(weight):
            dweight = np.empty((x.shape[1], dy.shape[1]), np.float32)
            products.append(_product(x.T, dy, dweight))
            dweight = dweight.T
        else:
            dweight = np.empty((dy.shape[1], x.shape[1]), np.float32)
            products.append(_product(dy.T, x, dweight))
    sums = _run(products, contiguous(dy) if bias else _NO_ROWS)
    return dx, dweight, sums if bias else None


def sum_rows(x):
    return _run([], contiguous(x))


def _layout(x):
    """x, or a copy if BLAS cannot read it where it is: one of its axes must be contiguous, the other in whole items."""
    check_dtype(x)
    down, across = (stride // _ITEM for stride in x.strides)
    if x.flags.aligned and ((across == 1 and down >= x.shape[1]) or (down == 1 and across >= x.shape[0])):
        return x
    return np.ascontiguousarray(x)


def _product(a, b, c, bias=None):
    """What BLAS must know of c = a b + bias: shape, then of each array its address, and how it lies there."""
    start = 0 if bias is None else address(bias)
    return (*c.shape, a.shape[1], *_place(a), *_place(b), start, address(c))


def _place(x):
    down, across = (stride // _ITEM for stride in x.strides)
    if x.size == 0:  # whose strides say nothing
        return address(x), NO_TRANSPOSE, max(1, x.shape[1])
    if across == 1 and down >= x.shape[1]:
        return address(x), NO_TRANSPOSE, down
    return address(x), TRANSPOSE, across


def _run(products, x):
    """Compute all products; returns the sum of the rows of x (C,)."""
    threads = thread_count()
    parts = threads // gcd(threads, max(1, len(products)))  # the fewest that give all threads as many
    sums = np.zeros(x.shape[1], np.float32)
    table = np.array(products, np.int64).reshape(-1, 11)
    with single_threaded_blas():
        _compute(table, parts, x, sums, threads)
    return sums


@compiled
def _compute(products, parts, x, sums, threads):
    for thread in prange(threads):
        for task in range(thread, len(products) * parts, threads):
            _multiply(products[task // parts], task % parts, parts)
        left, right = x.shape[1] * thread // threads, x.shape[1] * (thread + 1) // threads
        _sum_rows(x, left, right, sums[left:right])


@inlined
def _sum_rows(x, left, right, sums):
    """Add the rows of x, from column `left` to `right`: blocks of rows first, in an order that no thread changes."""
    block = np.empty_like(sums)
    for top in range(0, len(x), _BLOCK_ROWS):
        block[:] = 0
        for r in range(top, min(top + _BLOCK_ROWS, len(x))):
            _add(block, x[r, left:right])
        _add(sums, block)


@inlined
def _add(total, row):
    for c in range(len(row)):
        total[c] += row[c]


@inlined
def _multiply(product, part, parts):
    """One part of a product: some of the rows of c, or some of its columns, whichever are more."""
    rows, columns, inner, a, transpose_a, a_row, b, transpose_b, b_row, bias, c = product
    top, bottom, left, right = np.int64(0), rows, np.int64(0), columns
    if rows >= columns:
        top, bottom = _share(rows, part, parts)
    else:
        left, right = _share(columns, part, parts)
    if top < bottom and left < right:
        if bias != 0:
            values = float32_array(bias, columns)
            for r in range(top, bottom):
                _copy(values[left:right], float32_array(c + _ITEM * r * columns, columns)[left:right])
        sgemm(
            ROW_MAJOR, np.int32(transpose_a), np.int32(transpose_b),
            bottom - top, right - left, inner,
            np.float32(1), a + _ITEM * top * (a_row if transpose_a == NO_TRANSPOSE else 1), a_row,
            b + _ITEM * left * (1 if transpose_b == NO_TRANSPOSE else b_row), b_row,
            np.float32(1 if bias != 0 else 0),
            c + _ITEM * (top * columns + left), columns,
        )  # fmt: skip


@inlined
def _copy(values, row):
    """row[:] = values, which Numba would compile for seconds, with a message for lengths that differ."""
    for c in range(len(row)):
        row[c] = values[c]


@inlined
def _share(count, part, parts):
    """Where this part of `count` begins and ends: at multiples of 16, the width of BLAS's innermost loop."""
    return min(count, count * part // parts // 16 * 16), (
        count if part + 1 == parts else count * (part + 1) // parts // 16 * 16
    )
