"""What tensor cores promise: an error that is derived, not felt."""

import shutil

import ml_dtypes
import numpy as np
import pytest
from minift_kernels import attention, matmul

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


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["tf32", "bfloat16"])
def test_attention_is_off_by_no_more_than_its_roundings(dtype):
    """A score is off by at most e, so a probability by the factor exp(2 e): its own score, and its row's total.

    Then it is rounded, as v is, and their sum is out. In float32, 2^-21 leaves room for the exponential and sums.
    """
    T, D, scale = 140, 16, 0.25
    generator = np.random.default_rng(0)
    q, k, v = (generator.normal(size=(T, D)).astype(dtype) for _ in range(3))
    segments = np.array([[0, T]])
    out, _ = attention.ladder.rungs["cuda_c_flash_tensor_core"].forward(q, k, v, segments, segments, 1, scale)
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    want, logsumexp = attention.ladder.rungs["reference"].forward(q, k, v, segments, segments, 1, scale)

    rounding = 2.0**-11 if dtype is np.float32 else 0  # of q, k and v
    of_weights = 2.0**-11 if dtype is np.float32 else 2.0**-8
    of_result = 0 if dtype is np.float32 else 2.0**-8
    score_error = (
        ((1 + rounding) ** 2 - 1 + D * 2.0**-23) * scale * (abs(q) @ abs(k).T).max(axis=1, keepdims=True)
    )
    factor = np.exp(2 * score_error) * (1 + of_weights) * (1 + rounding) * (1 + T * 2.0**-21)
    probabilities = np.exp(scale * q @ k.T - logsumexp.T)
    bound = (factor - 1) * (probabilities @ abs(v))
    bound += of_result * (abs(want) + bound)
    error = abs(out.astype(np.float64) - want)
    assert (error <= bound).all()
    assert error.max() > bound.min() / 100
