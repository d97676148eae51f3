"""Rungs 2 and 3, compiled loops: a product is cut into parts, and each thread multiplies its own.

A part goes to BLAS, which then uses that one thread, or to our own product in tiles. BLAS copies both factors into the
order in which it reads them, tiles copy b, and a if it is transposed; two threads that share a factor both copy it. So
a product is cut where least is copied twice; and the two products of a linear layer's backward are not cut on two
threads: each takes a whole one, and its part of the columns whose sum is the bias's gradient.

BLAS's own threads are as fast at one product, but between products they spin, and the loops of all other
operations wait. The order in which BLAS adds up depends on the shape of a part, so another number of threads
may change the last bits. That of tiles does not, but what is too small for them goes to BLAS."""

from math import gcd

import numpy as np
from numba import prange

from minift_kernels import tiles
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

_BLAS_UNIT = 16
"""Rows or columns that BLAS's innermost loop takes at once."""

_COPY = 16
"""To copy a factor into the order of tiles takes as long as to multiply it with so many rows."""


class _InParts:
    """What both rungs share: they differ in who multiplies a part."""

    tiled: bool

    def forward(self, a, b, bias=None):
        if not HAS_SGEMM:
            return reference.forward(a, b, bias)
        c = np.empty((a.shape[0], b.shape[1]), np.float32)
        bias = None if bias is None else contiguous(bias)
        a, b = _layout(a), _layout(b)
        self._run([_product(a, b, c, bias)], _NO_ROWS)
        return c

    def linear_backward(self, dy, x, weight, bias):
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
        sums = self._run(products, contiguous(dy) if bias else _NO_ROWS)
        return dx, dweight, sums if bias else None

    def sum_rows(self, x):
        return self._run([], contiguous(x))

    def _run(self, products, x):
        """Compute all products; returns the sum of the rows of x (C,)."""
        threads = thread_count()
        parts = threads // gcd(threads, max(1, len(products)))  # the fewest that give all threads as many
        sums = np.zeros(x.shape[1], np.float32)
        table = np.array(products, np.int64).reshape(-1, 11)
        in_tiles = tiles.multiply_address() if self.tiled else 0
        with single_threaded_blas():
            _compute(table, in_tiles, parts, x, sums, threads)
        return sums


class Blas(_InParts):
    """Rung 2, BLAS from inside a compiled loop. It fills c with zeros before it adds up products, so filling c with the
    bias instead costs nothing."""

    tiled = False


class Tiled(_InParts):
    """Rung 3, our own product, in tiles that fit into a core's registers: see `tiles.py`."""

    tiled = True
    pays = tiles.PAYS


blas, tiled = Blas(), Tiled()


def _layout(x):
    """x, or a copy if BLAS cannot read it where it is: one of its axes must be contiguous, the other in whole items."""
    check_dtype(x)
    down, across = _distances(x)
    if x.flags.aligned and ((across == 1 and down >= x.shape[1]) or (down == 1 and across >= x.shape[0])):
        return x
    return np.ascontiguousarray(x)


def _distances(x):
    """How many elements it is from one row, and from one column, to the next. A stride of an axis of 1 says nothing."""
    down = x.strides[0] // _ITEM if x.shape[0] > 1 and x.size > 0 else max(1, x.shape[1])
    return down, x.strides[1] // _ITEM if x.shape[1] > 1 and x.size > 0 else 1


def _product(a, b, c, bias=None):
    """What there is to know of c = a b + bias: shape, then of each array its address, and how it lies there."""
    start = 0 if bias is None else address(bias)
    return (*c.shape, a.shape[1], address(a), *_distances(a), address(b), *_distances(b), start, address(c))


@compiled
def _compute(products, in_tiles, parts, x, sums, threads):
    for thread in prange(threads):
        for task in range(thread, len(products) * parts, threads):
            _multiply(products[task // parts], in_tiles, task % parts, parts)
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
def _multiply(product, in_tiles, part, parts):
    """One part of a product: some of the rows of c, or some of its columns."""
    rows, columns, inner, a, a_down, a_across, b, b_down, b_across, bias, c = product
    # To copy b for fewer rows costs more than to multiply it, and fewer columns leave most of a register empty.
    tiled = in_tiles != 0 and min(rows, columns) >= tiles.ROWS
    row_unit, column_unit = (tiles.ROWS, tiles.COLUMNS) if tiled else (_BLAS_UNIT, _BLAS_UNIT)
    top, bottom, left, right = np.int64(0), rows, np.int64(0), columns
    if _columns_are_cut(rows, columns, parts, tiled):
        left, right = _share(columns, part, parts, column_unit)
    else:
        top, bottom = _share(rows, part, parts, row_unit)
    if top < bottom and left < right:
        rows, size = bottom - top, right - left
        a, b, c = a + _ITEM * top * a_down, b + _ITEM * left * b_across, c + _ITEM * (top * columns + left)
        bias = bias + _ITEM * left if bias != 0 else np.int64(0)
        if tiled:
            tiles.multiply(
                in_tiles, rows, size, inner, 1, a, a_down, a_across, b, b_down, b_across, bias, 0, c, columns
            )
        else:
            _by_blas(rows, size, inner, a, a_down, a_across, b, b_down, b_across, bias, c, columns)


@inlined
def _columns_are_cut(rows, columns, parts, tiled):
    """Whether each part has all rows and some of the columns, or the reverse.

    BLAS copies both factors, so the smaller one is shared. With tiles it is the largest part that counts, and how much
    of b it copies. That a is copied too where it is transposed is left out of account.
    """
    if not tiled:
        return columns > rows
    panels = (columns + tiles.COLUMNS - 1) // tiles.COLUMNS
    registers = (columns + tiles.LANES - 1) // tiles.LANES
    by_columns = (rows + _COPY) * tiles.VECTORS * ((panels + parts - 1) // parts)
    return by_columns < ((rows + parts - 1) // parts + _COPY) * registers


@inlined
def _share(count, part, parts, unit):
    """Where this part of `count` begins and ends: at multiples of what the innermost loop takes at once."""
    return min(count, count * part // parts // unit * unit), (
        count if part + 1 == parts else count * (part + 1) // parts // unit * unit
    )


@inlined
def _by_blas(rows, columns, inner, a, a_down, a_across, b, b_down, b_across, bias, c, c_down):
    """c = a b + bias, described as for `tiles.multiply`."""
    if bias != 0:
        values = float32_array(bias, columns)
        for r in range(rows):
            _copy(values, float32_array(c + _ITEM * r * c_down, columns))
    a_in_rows = a_across == 1 and a_down >= inner
    b_in_rows = b_across == 1 and b_down >= columns
    sgemm(
        ROW_MAJOR,
        np.int32(NO_TRANSPOSE if a_in_rows else TRANSPOSE),
        np.int32(NO_TRANSPOSE if b_in_rows else TRANSPOSE),
        rows, columns, inner,
        np.float32(1), a, a_down if a_in_rows else a_across, b, b_down if b_in_rows else b_across,
        np.float32(1 if bias != 0 else 0), c, c_down,
    )  # fmt: skip


@inlined
def _copy(values, row):
    """row[:] = values, which Numba would compile for seconds, with a message for lengths that differ."""
    for c in range(len(row)):
        row[c] = values[c]
