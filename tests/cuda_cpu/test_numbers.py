"""The 16-bit types and tf32 round as the hardware does, bit by bit."""

from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from cuda_cases import KERNELS, round_to_tf32
from minift_kernels.cuda_cpu import Module, launch


@cache
def numbers():
    return Module(KERNELS / "numbers.cu")


def run(name, *arguments):
    launch(
        numbers().get_function(name),
        (-(-arguments[0].size // 256),),
        (256,),
        (*arguments, np.int32(arguments[0].size)),
    )


def hard_cases(dtype):
    """Every number of the type, the ties halfway to the next, and what lies right beside these."""
    all_bits = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    finite = np.unique(all_bits[np.isfinite(all_bits)])
    ties = (finite[:-1].astype(np.float64) + finite[1:]) / 2
    ties = ties.astype(np.float32)
    around = [np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    special = np.float32([np.inf, -np.inf, np.nan, 65504, 65519.996, 65520, 3.4e38, 1e-45, -1e-45, -0.0])
    return np.concatenate([finite, ties, *around, special])


@pytest.mark.parametrize(("name", "dtype"), [("half", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_narrowing_and_widening(name, dtype):
    x = hard_cases(dtype)
    narrow, wide = np.zeros(x.size, dtype), np.zeros(x.size, np.float32)
    run(f"narrow_to_{name}", x, narrow, wide)
    with np.errstate(over="ignore"):
        expected = x.astype(dtype)
    is_nan = np.isnan(x)
    assert np.array_equal(np.isnan(wide), is_nan)
    np.testing.assert_array_equal(narrow[~is_nan].view(np.uint16), expected[~is_nan].view(np.uint16))
    np.testing.assert_array_equal(wide[~is_nan], expected[~is_nan].astype(np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("half", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_arithmetic_rounds_once_to_the_nearest(name, dtype):
    numbers = np.random.default_rng(0).integers(0, 2**16, (3, 1000), dtype=np.uint16).view(dtype)
    numbers[:, 500:] = random_near_one(dtype)
    numbers = np.where(np.isfinite(numbers.astype(np.float32)), numbers, dtype(1)).astype(dtype)
    results = np.zeros((5, 1000), dtype)
    a, b, c = (np.ascontiguousarray(row) for row in numbers)
    run(f"arithmetic_{name}", a, b, c, results)
    for i, (x, y, z) in enumerate(
        zip(*(map(Fraction, row.astype(float).tolist()) for row in (a, b, c)), strict=True)
    ):
        exact = (x + y, x - y, x * y, x / y if y else None, x * y + z)
        for result, expected in zip(results[:, i], exact, strict=True):
            assert expected is None or is_nearest(result, expected, dtype), (x, y, z, result)


def random_near_one(dtype):
    """Three rows of numbers from 1 to 2, whose sums and products come close to ties."""
    return np.random.default_rng(1).uniform(1, 2, (3, 500)).astype(np.float32).astype(dtype)


def is_nearest(result, exact, dtype):
    """Whether no number of the type is nearer to the fraction `exact`, nor as near with a last bit of 0."""
    largest = Fraction(float(np.finfo(dtype).max if dtype is np.float16 else ml_dtypes.finfo(dtype).max))
    if not np.isfinite(float(result)):
        step = largest - Fraction(float(neighbours(dtype(float(largest)), dtype)[0]))
        return abs(exact) >= largest + step / 2 and (float(result) > 0) == (exact > 0)
    distance = abs(Fraction(float(result)) - exact)
    for other in neighbours(result, dtype):
        if np.isfinite(float(other)):
            theirs = abs(Fraction(float(other)) - exact)
            if theirs < distance or (theirs == distance and result.view(np.uint16) & 1):
                return False
    return True


def neighbours(x, dtype):
    """The next numbers of the type towards zero and away from it."""
    magnitude, sign = int(x.view(np.uint16)) & 0x7FFF, int(x.view(np.uint16)) & 0x8000
    beside = [magnitude - 1 | sign if magnitude else 0x8001 ^ sign, magnitude + 1 | sign]
    return np.array(beside, np.uint16).view(dtype)


def test_tf32_rounds_ties_away_from_zero():
    x = np.concatenate([hard_cases(np.float16), np.float32([1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23])])
    x = x[np.isfinite(x) & (np.abs(x) > 1e-37)]
    rounded = np.zeros_like(x)
    run("to_tf32", x, rounded)
    np.testing.assert_array_equal(rounded, round_to_tf32(x).astype(np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("pairs", np.float16), ("bfloat16_pairs", ml_dtypes.bfloat16)])
def test_pairs(name, dtype):
    x = np.arange(-50, 50, dtype=np.float32).astype(dtype)
    y = np.zeros_like(x)
    run(name, x, y)
    np.testing.assert_array_equal(y.astype(np.float32), 2 * x.astype(np.float32) + 1)


def test_intrinsics():
    x = np.random.default_rng(0).integers(0, 2**32, (2, 1000), dtype=np.uint32)
    out = np.zeros((4, 1000), np.uint32)
    run("integers", x[0], x[1], out)
    np.testing.assert_array_equal(out[0], x[0].astype(np.uint64) * x[1] >> 32)
    np.testing.assert_array_equal(out[1], [bin(int(v)).count("1") for v in x[0]])
    np.testing.assert_array_equal(out[2], [32 - int(v).bit_length() for v in x[0]])
    np.testing.assert_array_equal(out[3], [(int(v) << 13 | int(v) >> 19) & 0xFFFFFFFF for v in x[0]])


def test_float_to_integer_saturates():
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, np.nan, np.inf, 2147483520.0, 7.9, -7.9])
    out = np.zeros((4, x.size), np.int32)
    run("to_integer", x, out)
    most, least = 2**31 - 1, -(2**31)
    assert out[0].tolist() == [
        0,
        2,
        2,
        0,
        -2,
        most,
        least,
        0,
        most,
        2147483520,
        8,
        -8,
    ]  # to nearest, ties to even
    assert out[1].tolist() == [0, 1, 2, 0, -1, most, least, 0, most, 2147483520, 7, -7]  # towards zero
    assert out[2].tolist() == [0, 1, 2, -1, -2, most, least, 0, most, 2147483520, 7, -8]  # down
    assert out[3].tolist() == [1, 2, 3, 0, -1, most, least, 0, most, 2147483520, 8, -7]  # up
