"""Which lane holds which element of a matrix instruction's operands, as NVIDIA's manual has it.

The formulas below are those of the PTX ISA ("Warp-level matrix instructions", "Matrix Fragments for mma.m16n8k16 with
floating point type" and "for mma.m16n8k8"), in its words: no code of the emulator is used to fill the
registers. If the emulator read them otherwise, a kernel that is right here would be wrong on a GPU.
"""

import ml_dtypes
import numpy as np
import pytest
from cuda_cases import KERNELS
from minift_kernels.cuda_cpu import Module, launch


def of_a_16_bit(groupID, threadID_in_group, i):
    """The row and the column of a_i, i from 0 to 7; two make a register."""
    row = groupID if 0 <= i < 2 or 4 <= i < 6 else groupID + 8
    col = threadID_in_group * 2 + (i & 1) + (0 if i < 4 else 8)
    return row, col


def of_b_16_bit(groupID, threadID_in_group, i):
    row = threadID_in_group * 2 + (i & 1) + (0 if i < 2 else 8)
    return row, groupID


def of_a_tf32(groupID, threadID_in_group, i):
    row = groupID if i in (0, 2) else groupID + 8
    col = threadID_in_group if i in (0, 1) else threadID_in_group + 4
    return row, col


def of_b_tf32(groupID, threadID_in_group, i):
    row = threadID_in_group if i == 0 else threadID_in_group + 4
    return row, groupID


def of_c(groupID, threadID_in_group, i):
    row = groupID if i < 2 else groupID + 8
    col = threadID_in_group * 2 + (i & 1)
    return row, col


def fragments(matrix, place, count):
    """(32, count): what each lane holds."""
    lanes = [[matrix[place(lane >> 2, lane % 4, i)] for i in range(count)] for lane in range(32)]
    return np.array(lanes, matrix.dtype)


def matrix_of(registers, place, shape):
    matrix = np.full(shape, np.nan)
    for lane, held in enumerate(registers):
        for i, x in enumerate(held):
            matrix[place(lane >> 2, lane % 4, i)] = x
    return matrix


@pytest.mark.parametrize(
    ("name", "dtype", "K", "a_place", "b_place"),
    [
        ("multiply_bf16", ml_dtypes.bfloat16, 16, of_a_16_bit, of_b_16_bit),
        ("multiply_f16", np.float16, 16, of_a_16_bit, of_b_16_bit),
        ("multiply_tf32", np.float32, 8, of_a_tf32, of_b_tf32),
    ],
)
def test_a_product_whose_operands_are_spread_as_the_manual_says(name, dtype, K, a_place, b_place):
    generator = np.random.default_rng(0)
    # Small whole numbers, which all types hold: the product is exact.
    a, b, c = (generator.integers(-9, 10, shape).astype(dtype) for shape in ((16, K), (K, 8), (16, 8)))
    held = K // 4  # elements of b's registers, and half of a's
    of_a = fragments(a, a_place, 2 * held if dtype != np.float32 else 4)
    of_b = fragments(b, b_place, held)
    of_d = fragments(c.astype(np.float32), of_c, 4)
    launch(
        Module(KERNELS / "fragments.cu").get_function(name), (1,), (32,),
        (np.ascontiguousarray(of_a).view(np.uint32), np.ascontiguousarray(of_b).view(np.uint32), of_d),
    )  # fmt: skip
    want = a.astype(np.float64) @ b.astype(np.float64) + c.astype(np.float64)
    np.testing.assert_array_equal(matrix_of(of_d, of_c, (16, 8)), want)
