"""exp, erf and the largest of a row against float64, and that they became vector instructions."""

import math
import platform
import re

import numpy as np
import pytest
from minift_kernels import OPERATIONS, math32
from numba import njit


def elementwise(function):
    @njit
    def loop(x, y):
        for i in range(len(x)):
            y[i] = function(x[i])

    def apply(x):
        y = np.empty_like(x)
        loop(x, y)
        return y

    return apply


exp, erf = elementwise(math32.exp), elementwise(math32.erf)


def units_in_the_last_place(got, want):
    return np.max(np.abs(got - want) / np.spacing(np.abs(want.astype(np.float32))))


def test_exp():
    x = np.linspace(-103, 88.7, 1_000_001).astype(np.float32)  # the smallest results are denormal
    assert units_in_the_last_place(exp(x), np.exp(x.astype(np.float64))) <= 1
    limits = np.array([np.nan, np.inf, -np.inf, 0, 200, -200, 88.8, -104.5], np.float32)
    np.testing.assert_array_equal(exp(limits), np.float32([np.nan, np.inf, 0, 1, np.inf, 0, np.inf, 0]))


def test_erf():
    x = np.concatenate([np.linspace(-4.5, 4.5, 100_001), np.logspace(-30, 0, 10_001)]).astype(np.float32)
    x = x[x != 0]
    want = np.array([math.erf(value) for value in x.tolist()])
    assert units_in_the_last_place(erf(x), want) <= 6
    limits = np.array([np.nan, np.inf, -np.inf, 0, 30, -30], np.float32)
    np.testing.assert_array_equal(erf(limits), np.float32([np.nan, 1, -1, 0, 1, -1]))


def test_largest():
    @njit
    def largest(x):
        return math32.largest(x)

    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=37).astype(np.float32) - seed
        assert largest(x) == x.max()
    assert largest(np.float32([-np.inf, -1e30, -2e30])) == np.float32(-1e30)
    assert largest(np.float32([-np.inf, -np.inf])) == -np.inf
    assert np.isnan(largest(np.float32([1, np.nan, np.inf])))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the names of x86 instructions")
@pytest.mark.parametrize("operation", ["softmax", "gelu", "cross_entropy"])
def test_loops_with_exp_and_erf_are_vector_loops(operation):
    """A scalar exp costs as much as the rest of a layer's element-wise work; nothing else would notice."""
    kernel = OPERATIONS[operation].rungs["numba_cpu"]._forward
    fresh = njit(parallel=True, fastmath=kernel.targetoptions["fastmath"], error_model="numpy")(
        kernel.py_func
    )
    fresh.compile(_SIGNATURES[operation])
    assembly = fresh.inspect_asm(fresh.signatures[0])
    of_several_numbers = re.findall(r"\b(?:v?mulps|v?addps|vfmadd\d+ps)\b", assembly)
    assert len(of_several_numbers) >= 12  # the steps of one polynomial, at the least
    assert "expf" not in assembly and "erff" not in assembly


_SIGNATURES = {
    "softmax": "(float32[:,::1], float32[:,::1])",
    "gelu": "(float32[::1], float32[::1])",
    "cross_entropy": (
        "(float32[:,::1], int64[::1], float32[::1], int64, float32, float32[::1], float32[::1])"
    ),
}
