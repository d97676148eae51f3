"""Softmax over the last axis: y_j = exp(x_j) / sum_k exp(x_k).

    reference           three passes in array operations
    numba_cpu           one row at a time in cache, exp as a polynomial that vectorises
    numba_cuda_naive    one thread a row, in Python
    numba_cuda_shared   one block a row, whose threads meet in shared memory
    cuda_c_naive        the same two steps in CUDA C: one thread a row,
    cuda_c_shared       then one block a row, so that neighbouring threads read neighbouring columns
    cuda_c_warp         shuffles, 16-byte loads, and one loop for maximum and sum

Shapes: R rows, C columns; all rungs take any number of leading axes as rows.
"""

from minift_kernels.arrays import check_array
from minift_kernels.ladder import Ladder
from minift_kernels.softmax import cuda_c, numba_cpu, numba_cuda, reference

ladder = Ladder(
    "softmax",
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


def forward(x):
    """y (R, C) from x (R, C). A row of -inf alone gives NaN, as the formula does."""
    return ladder.rung(x).forward(x)


def backward(dy, y):
    """dx (R, C) from the output y and its gradient dy: dx_i = y_i (dy_i - sum_j dy_j y_j)."""
    check_array("softmax", "dy", dy, y.shape, y.dtype)
    return ladder.rung(dy).backward(dy, y)
