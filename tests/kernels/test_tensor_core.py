"""What tensor cores promise: an error that is derived, not felt."""

import shutil

import ml_dtypes
import numpy as np
import pytest
from minift_kernels import matmul

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["tf32", "bfloat16"])
@pytest.mark.parametrize("transposed", [(), (0,), (1,), (0, 1)], ids=["a b", "a^T b", "a b^T", "a^T b^T"])
def test_an_element_is_off_by_no_more_than_its_roundings(dtype, transposed):
    """Factors are rounded to 11 bits (bfloat16 not at all), each sum to 24, and the result to the type's bits.

    A rounding to p bits is off by 2^-p of the number; a tensor core may cut instead, which costs twice that.
    """
    M, K, N = 19, 150, 21
    generator = np.random.default_rng(0)
    factors = [generator.normal(size=size).astype(dtype) for size in ((M, K), (K, N))]
    a, b = (np.asfortranarray(x) if i in transposed else x for i, x in enumerate(factors))
    c = matmul.ladder.rungs["cuda_c_tensor_core"].forward(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_factors = (1 + 2.0**-11) ** 2 - 1 if dtype is np.float32 else 0
    of_result = 0 if dtype is np.float32 else 2.0**-8
    bound = (of_factors + K * 2.0**-23) * (abs(a) @ abs(b))
    bound += of_result * (abs(a @ b) + bound)
    error = abs(c.astype(np.float64) - a @ b)
    assert (error <= bound).all()
    assert error.max() > bound.min() / 1000  # the bound is one that a wrong rounding would break
