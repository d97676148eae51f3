"""Layer normalisation of x + residual over the last axis (Ba, Kiros and Hinton 2016).

    y = (s - mean(s)) rstd * weight + bias,  s = x + residual,  rstd = 1 / sqrt(variance(s) + eps)

    reference           one array operation after another
    numba_cpu           one pass over memory, a row at a time in cache
    numba_cuda_naive    one thread a row, in Python
    numba_cuda_shared   one block a row, whose threads meet in shared memory
    cuda_c_naive        the same two steps in CUDA C: one thread a row,
    cuda_c_shared       then one block a row, and the sums over rows in two stages, without atomics
    cuda_c_warp         one warp a row, which stays in registers: read once, 16 bytes a load

A transformer normalises the sum of a layer's output and its input, so the sum is part of the operation: it is
never written to memory. Shapes: T rows, H columns.
"""

from minift_kernels.arrays import check_array, wide_dtype
from minift_kernels.ladder import Ladder
from minift_kernels.layer_norm import cuda_c, numba_cpu, numba_cuda, reference

ladder = Ladder(
    "layer_norm",
    {
        "reference": reference,
        "numba_cpu": numba_cpu,
        "numba_cuda_naive": numba_cuda.naive,
        "numba_cuda_shared": numba_cuda.shared,
        "cuda_c_naive": cuda_c.naive,
        "cuda_c_shared": cuda_c.shared,
        "cuda_c_warp": cuda_c.warp,
    },
)


def forward(x, residual, weight, bias, eps):
    """y (T, H), normalized (T, H) and rstd (T,) from x and residual (T, H), weight and bias (H,).

    `residual` may be None. The last two results are what backward needs.
    """
    if residual is not None:
        check_array("layer_norm", "residual", residual, x.shape, x.dtype)
    check_array("layer_norm", "weight", weight, x.shape[1:], wide_dtype(x))
    check_array("layer_norm", "bias", bias, x.shape[1:], wide_dtype(x))
    return ladder.rung(x).forward(x, residual, weight, bias, eps)


def backward(dy, normalized, rstd, weight):
    """dx (T, H), dweight (H,) and dbias (H,). The gradient of the residual is dx as well."""
    check_array("layer_norm", "dy", dy, normalized.shape, normalized.dtype)
    check_array("layer_norm", "rstd", rstd, normalized.shape[:1], wide_dtype(dy))
    check_array("layer_norm", "weight", weight, normalized.shape[1:], wide_dtype(dy))
    return ladder.rung(dy).backward(dy, normalized, rstd, weight)
