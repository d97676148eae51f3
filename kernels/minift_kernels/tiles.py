"""A matrix product on one core: tiles of the result that fit into its registers (Goto and van de Geijn 2008).

A core can multiply and add far more numbers than it can load. So a tile of c, with AVX-512 of 8 rows and 48 columns,
stays in registers while a and b pass by: a step along the inner axis loads 48 numbers of b and 8 of a, for 384
multiplications and additions.

                      a row of the panel: 48 numbers of b in three registers
    8 numbers of a    8 x 48 sums in 24 registers
    (a column)

48 columns of b are first copied into the order in which the tiles read them, a panel. It stays in the second-level
cache until all rows of a have gone by, and the next 48 columns follow. a is read where it lies. Only if it is
transposed, so that each of a tile's steps would read far from the last, in a large matrix from another page of memory,
it is copied too: a block of rows at a time, and the panels once more for each block.

Numba does not keep an array in registers. So the innermost loop is written in the language of its compiler, LLVM,
where a register's worth of numbers is a type.

A step is 24 multiply-adds, of which a core does two a cycle, and 11 loads: 35 instructions in 12 cycles. A recent core
of Intel's starts six a cycle, but shares them between two threads: if another program runs on the second, 36 are left.
So nothing else should be in the loop over the inner axis. It is unrolled, and compiled for each way in which a may lie,
so that where its numbers are costs no arithmetic.
"""

import os
from functools import cache

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from minift_kernels.host import BLAS, blas_product, float32_array, inlined, machine_code


def _has_avx512() -> bool:
    try:
        return bool(llvm.get_host_cpu_features().get("avx512f", False))
    except RuntimeError:  # LLVM cannot tell, which happens on other processors than x86
        return False


_HAS_AVX512 = _has_avx512()

LANES = 16 if _HAS_AVX512 else 8
"""How many float32 numbers a register holds."""

ROWS, VECTORS = (8, 3) if _HAS_AVX512 else (6, 2)
"""A tile's rows, and the registers in each: with a row of the panel and a number of a, 28 of 32 or 15 of 16."""

COLUMNS = VECTORS * LANES

DEPTH = 768
"""Rows of a panel, at most: 150 kB."""

BLOCK, TOGETHER = 1024, 16
"""Rows of a that are copied at a time, and how many of their tiles in turn: the copies lie on pages of their own."""

FEWEST = 32
"""The shortest side from which on a small product, such as attention's, takes less time in tiles than in BLAS."""

AHEAD = 8
"""A row of b, where b is not transposed, is asked for so many rows before it is copied."""

UNROLLED = 8
"""Steps along the inner axis between two looks at whether it has ended, and that are copied for one tile in turn."""

PAYS = (
    _HAS_AVX512
    and not os.environ.get("NUMBA_CPU_NAME")  # else Numba compiles for another processor than this
    and BLAS == "NumPy's OpenBLAS"
    and not os.environ.get("MINIFT_BLAS")
)
"""Whether tiles take less time than BLAS: than OpenBLAS where there is AVX-512, than MKL nowhere so far."""

_ITEM, _LINE = 4, 64  # bytes of a float32, and of what a cache fetches at once


def multiply_address() -> int:
    """Where the machine code of the product lies, which compiled loops are given to call (`multiply`, `product`)."""
    return _machine_code().address  # pyright: ignore[reportReturnType]


@cache  # the address holds as long as this is kept
def _machine_code() -> CFunc:
    return machine_code(_multiply, _SIGNATURE)


@inlined
def multiply(
    in_tiles, rows, columns, inner, alpha,
    a, a_down, a_across, b, b_down, b_across, start, start_down, c, c_down,
):  # fmt: skip
    """c = start + alpha a b on the core that asks, in compiled code; `in_tiles` is the `multiply_address`.

    Of each matrix its address, and how far it is from one row and from one column to the next, in elements; one of a's
    two distances is 1. `start` is a matrix, or one row for all rows where `start_down` is 0; there is none where its
    address is 0.
    """
    _call(  # pyright: ignore[reportCallIssue]
        in_tiles,
        (
            np.int64(rows), np.int64(columns), np.int64(inner), np.float32(alpha),
            a, np.int64(a_down), np.int64(a_across), b, np.int64(b_down), np.int64(b_across),
            start, np.int64(start_down), c, np.int64(c_down),
        ),
    )  # fmt: skip


@inlined
def product(in_tiles, alpha, a, b, beta, c):
    """c = alpha a b + beta c, for views a (M, K), b (K, N), c (M, N) and beta 0 or 1, in compiled code.

    BLAS has it where `in_tiles` is 0, and where a side is short: of small matrices it copies none.
    """
    if in_tiles == 0 or min(len(a), *b.shape) < FEWEST:
        blas_product(alpha, a, b, beta, c)
        return
    c_down = c.strides[0] // _ITEM
    multiply(
        in_tiles, a.shape[0], b.shape[1], a.shape[1], alpha,
        a.ctypes.data, a.strides[0] // _ITEM, a.strides[1] // _ITEM,
        b.ctypes.data, b.strides[0] // _ITEM, b.strides[1] // _ITEM,
        c.ctypes.data if beta != 0 else 0, c_down, c.ctypes.data, c_down,
    )  # fmt: skip


def _multiply(
    rows, columns, inner, alpha, a, a_down, a_across, b, b_down, b_across, start, start_down, c, c_down
):
    """What `multiply` calls. From here on all distances are in bytes."""
    a_down, a_across, b_down, b_across, start_down, c_down = (
        _ITEM * a_down, _ITEM * a_across, _ITEM * b_down, _ITEM * b_across, _ITEM * start_down, _ITEM * c_down,
    )  # fmt: skip
    parts = max(1, (inner + DEPTH - 1) // DEPTH)
    panel = np.empty((min(inner, DEPTH), COLUMNS), np.float32)
    in_place = a_across == _ITEM
    most = rows if in_place else min(rows, BLOCK)
    # One row more than needed: copies that lie a multiple of 4 kB apart push each other out of the cache.
    copied = np.empty((0 if in_place else most // ROWS, min(inner, DEPTH) + 1, ROWS), np.float32)
    for top in range(0, rows, most):
        height = min(most, rows - top)
        for part in range(parts):
            first, last = inner * part // parts, inner * (part + 1) // parts
            block = a + top * a_down + first * a_across
            if not in_place:
                _copy_tiles(block, a_across, height, last - first, copied)
            for left in range(0, columns, COLUMNS):
                width = min(COLUMNS, columns - left)
                _pack(b + first * b_down + left * b_across, b_down, b_across, width, panel[: last - first])
                target = c + top * c_down + _ITEM * left
                if part > 0:  # it adds to the sums of those before
                    begin, begin_down = target, c_down
                elif start != 0:
                    begin, begin_down = start + top * start_down + _ITEM * left, start_down
                else:
                    begin, begin_down = 0, 0
                _multiply_panel(
                    height, width, last - first, alpha, block, a_down, a_across, copied, panel.ctypes.data,
                    begin, begin_down, target, c_down,
                )  # fmt: skip


@inlined
def _multiply_panel(
    rows, width, inner, alpha, a, a_down, a_across, copied, panel, start, start_down, c, c_down
):
    """Tile after tile, down the columns of a panel. Of `rows` that fill no tile, each is one."""
    r = 0
    while r < rows:
        height = ROWS if r + ROWS <= rows else 1
        tile, down, across = a + r * a_down, a_down, a_across
        if height == ROWS and len(copied) > 0:
            tile, down, across = copied[r // ROWS].ctypes.data, _ITEM, _ITEM * ROWS
        multiply_tile(  # pyright: ignore[reportCallIssue]
            height, width, inner, alpha, tile, down, across, panel,
            start + r * start_down, start_down, c + r * c_down, c_down,
        )  # fmt: skip
        r += height


@inlined
def _copy_tiles(a, a_across, rows, depth, copied):
    """Copy a block of a transposed a, the numbers of a tile's rows that a step takes side by side."""
    whole = rows // ROWS
    for left in range(0, whole, TOGETHER):
        for k in range(0, depth, UNROLLED):
            for tile in range(left, min(left + TOGETHER, whole)):
                source, target = a + k * a_across + _ITEM * ROWS * tile, copied[tile, k:]
                if k + UNROLLED <= depth:
                    _copy_steps(source, a_across, target.ctypes.data)  # pyright: ignore[reportCallIssue]
                else:  # the last steps, number by number
                    for step in range(depth - k):
                        for r in range(ROWS):
                            target[step, r] = float32_array(source + step * a_across, ROWS)[r]


@inlined
def _pack(b, b_down, b_across, width, panel):
    """Copy `width` columns of b into a panel, as many rows as it has."""
    address, down = panel.ctypes.data, _ITEM * COLUMNS
    if width < COLUMNS:  # what is there by chance may be slow to multiply, though nobody reads the result
        for k in range(len(panel)):
            for j in range(width, (width + LANES - 1) // LANES * LANES):
                panel[k, j] = 0
    if b_across == _ITEM:
        for k in range(len(panel)):
            for place in range(0, down, _LINE):
                _prefetch(b + (k + AHEAD) * b_down + place)  # pyright: ignore[reportCallIssue]
            values, places = float32_array(b + k * b_down, width), float32_array(address + k * down, width)
            for j in range(width):
                places[j] = values[j]
        return
    deep, wide = 0, 0
    if b_down == _ITEM:
        deep, wide = len(panel) // LANES * LANES, width // LANES * LANES
    for j in range(0, wide, LANES):
        for k in range(0, deep, LANES):
            for i in range(LANES):
                _prefetch(b + (k + 4 * LANES) * b_down + (j + i) * b_across)  # pyright: ignore[reportCallIssue]
            source, target = b + k * b_down + j * b_across, address + k * down + _ITEM * j
            _transpose(source, b_across, target, down)  # pyright: ignore[reportCallIssue]
    for k in range(len(panel)):
        for j in range(wide if k < deep else 0, width):
            panel[k, j] = float32_array(b + k * b_down + j * b_across, 1)[0]


# ------------------------------------------------------------------------------------------------------------
# In LLVM's language

_INT, _SIZE, _FLOAT, _POINTER = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(8).as_pointer()
_VECTOR, _COLUMN = ir.VectorType(_FLOAT, LANES), ir.VectorType(_FLOAT, ROWS)
_INTS, _BITS = ir.VectorType(_INT, LANES), ir.VectorType(ir.IntType(1), LANES)
_SIGNATURE = types.void(*3 * [types.int64], types.float32, *10 * [types.int64])


def _ask(builder, name, result, *arguments):
    """A call of one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _offset(builder, address, *steps):
    """address + the sum of all steps, each a distance and how many times."""
    for distance, times in steps:
        address = builder.add(address, builder.mul(distance, times))
    return address


def _load(builder, address, kind):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=_ITEM)


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=_ITEM)


def _in_all_lanes(builder, value, kind=_VECTOR):
    nothing = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(nothing, value, _INT(0)), nothing, ir.Constant(_INTS, None)
    )


def _generate_prefetch(builder, address, to_write, locality):
    pointer = builder.inttoptr(address, _POINTER)
    _ask(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, _INT(to_write), _INT(locality), _INT(1))


@intrinsic
def _prefetch(typing_context, address):
    """Have the memory at an address brought into the second-level cache, while the work goes on."""

    def generate(context, builder, signature, arguments):
        _generate_prefetch(builder, *arguments, to_write=0, locality=2)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _copy_steps(typing_context, source, source_down, target):
    """Copy what UNROLLED steps of a tile take of a transposed a, each of them ROWS numbers that lie side by side.

    As so many are loaded one after the other, the memory looks for all of them at once.
    """

    def generate(context, builder, signature, arguments):
        source, source_down, target = arguments
        for step in range(UNROLLED):
            numbers = _load(builder, _offset(builder, source, (source_down, _SIZE(step))), _COLUMN)
            _store(builder, numbers, builder.add(target, _SIZE(step * _ITEM * ROWS)))
        return context.get_dummy_value()

    return types.void(*3 * [types.int64]), generate


@intrinsic
def multiply_tile(
    typing_context,
    height, width, inner, alpha, a, a_down, a_across, panel, start, start_down, c, c_down,
):  # fmt: skip
    """c = start + alpha a panel for one tile, of ROWS rows or one, and of 1 to COLUMNS columns.

    ROWS rows of a are read where they lie, each row's numbers side by side, or from the copy, each step's numbers side
    by side. A single row is read where it lies, whatever the distance between its numbers.
    """

    def generate(context, builder, signature, arguments):
        height, width, inner, alpha, a, a_down, a_across, *others = arguments
        vectors = builder.udiv(builder.add(width, _SIZE(LANES - 1)), _SIZE(LANES))
        item = _SIZE(_ITEM)
        in_rows, copied, single = (
            (ROWS, a_down, item),
            (ROWS, item, _SIZE(_ITEM * ROWS)),
            (1, a_down, a_across),
        )
        for rows, down, across in (in_rows, copied, single):
            for count in range(1, VECTORS + 1):
                pairs = (height, _SIZE(rows)), (a_across, across), (vectors, _SIZE(count))
                with builder.if_then(_all_equal(builder, *pairs)):
                    _generate_tile(builder, rows, count, width, inner, alpha, a, down, across, *others)
        return context.get_dummy_value()

    sizes, float32 = [types.int64], [types.float32]
    return types.void(*3 * sizes, *float32, *8 * sizes), generate


def _all_equal(builder, *pairs):
    result = ir.Constant(ir.IntType(1), 1)
    for one, other in pairs:
        result = builder.and_(result, builder.icmp_unsigned("==", one, other))
    return result


def _generate_tile(
    builder, rows, vectors, width, inner, alpha, a, a_down, a_across, panel, start, start_down, c, c_down
):
    """The tile of this many rows and registers: its loops over both are unrolled, so they are part of the code."""
    places = [(r, v) for r in range(rows) for v in range(vectors)]
    register, fma = _SIZE(_ITEM * LANES), f"llvm.fma.v{LANES}f32"

    def at(matrix, down, r, v):
        return _offset(builder, matrix, (down, _SIZE(r)), (register, _SIZE(v)))

    def multiply_and_add(k):
        """Step k: add a's column times the panel's row to all sums."""
        column_of_a = _offset(builder, a, (a_across, k))
        row_of_b = _offset(builder, panel, (_SIZE(_ITEM * COLUMNS), k))
        of_b = [_load(builder, at(row_of_b, _SIZE(0), 0, v), _VECTOR) for v in range(vectors)]
        for r in range(rows):
            of_a = _in_all_lanes(builder, _load(builder, at(column_of_a, a_down, r, 0), _FLOAT))
            for v in range(vectors):
                total = _ask(builder, fma, _VECTOR, of_a, of_b[v], builder.load(sums[r, v]))
                builder.store(total, sums[r, v])

    # The compiler keeps these variables, whose address nobody takes, in registers.
    zeros = ir.Constant(_VECTOR, None)
    sums = {place: cgutils.alloca_once_value(builder, zeros) for place in places}
    for r, v in places:  # c is written at the end, but asked for now
        _generate_prefetch(builder, at(c, c_down, r, v), to_write=1, locality=3)
    whole = builder.and_(inner, _SIZE(-UNROLLED))
    with cgutils.for_range_slice(builder, _SIZE(0), whole, _SIZE(UNROLLED)) as (first, _):
        for step in range(UNROLLED):
            multiply_and_add(builder.add(first, _SIZE(step)))
    with cgutils.for_range_slice(builder, whole, inner, _SIZE(1)) as (k, _):
        multiply_and_add(k)
    # Of the last register in a row, c may have room for a part only.
    in_last = builder.trunc(builder.sub(width, _SIZE(LANES * (vectors - 1))), _INT)
    lanes = ir.Constant(_INTS, list(range(LANES)))
    has_room = builder.icmp_unsigned("<", lanes, _in_all_lanes(builder, in_last, _INTS))
    # A masked load from no memory at all loads nothing, as it should, but slowly: without a start it is of the panel.
    is_given = builder.icmp_unsigned("!=", start, _SIZE(0))
    start, has_start = builder.select(is_given, start, panel), _in_all_lanes(builder, is_given, _BITS)
    kind, factor = f"v{LANES}f32.p0", _in_all_lanes(builder, alpha)
    for r, v in places:
        mask = has_room if v == vectors - 1 else ir.Constant(_BITS, LANES * [True])
        source = builder.inttoptr(at(start, start_down, r, v), _VECTOR.as_pointer())
        target = builder.inttoptr(at(c, c_down, r, v), _VECTOR.as_pointer())
        given = builder.and_(mask, has_start)
        begin = _ask(builder, f"llvm.masked.load.{kind}", _VECTOR, source, _INT(_ITEM), given, zeros)
        total = _ask(builder, fma, _VECTOR, factor, builder.load(sums[r, v]), begin)
        _ask(builder, f"llvm.masked.store.{kind}", ir.VoidType(), total, target, _INT(_ITEM), mask)


@intrinsic
def _transpose(typing_context, source, source_down, target, target_down):
    """target = source^T, LANES rows and columns, without a single number moved by itself.

    Two halves of the rows are shuffled into each other like cards, number by number. The place of a number, its row
    and its column one after the other in binary, is thereby turned round by one digit; after log2(LANES) times row
    and column have changed places.
    """

    def generate(context, builder, signature, arguments):
        source, source_down, target, target_down = arguments
        half = LANES // 2
        orders = [
            ir.Constant(_INTS, [first + i // 2 + i % 2 * LANES for i in range(LANES)]) for first in (0, half)
        ]
        rows = [
            _load(builder, _offset(builder, source, (source_down, _SIZE(r))), _VECTOR) for r in range(LANES)
        ]
        for _ in range(half.bit_length()):
            rows = [
                builder.shuffle_vector(rows[i], rows[i + half], order)
                for i in range(half)
                for order in orders
            ]
        for r, row in enumerate(rows):
            _store(builder, row, _offset(builder, target, (target_down, _SIZE(r))))
        return context.get_dummy_value()

    return types.void(*4 * [types.int64]), generate


@intrinsic
def _call(typing_context, function, arguments):
    """Call the machine code of `_multiply` at an address, with a tuple of its arguments."""

    def generate(context, builder, signature, given):
        function, arguments = given
        kinds = [context.get_value_type(kind) for kind in _SIGNATURE.args]
        pointer = builder.inttoptr(function, ir.FunctionType(ir.VoidType(), kinds).as_pointer())
        builder.call(pointer, cgutils.unpack_tuple(builder, arguments))
        return context.get_dummy_value()

    return types.void(types.int64, types.Tuple(_SIGNATURE.args)), generate
