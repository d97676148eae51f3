"""Matrix product with a bias: c = a b + bias.

    reference               the array library's own product, then one more pass over c for the bias
    numba_cpu_blas          parts shared among the threads, BLAS on each, the bias added in cache
    numba_cpu_tiled         the same with our own product: tiles in registers, the bias added as they are written
    numba_cuda_naive        one thread an element of c, in Python
    numba_cuda_tiled        tiles in shared memory
    cuda_c_naive            one thread an element, a warp down a column of c
    cuda_c_coalesced        a warp along a row of c, so that its threads read neighbours in memory
    cuda_c_tiled            tiles in shared memory: each number is fetched once for 16 uses
    cuda_c_register_tiled   8 x 8 sums in each thread's registers, numbers loaded in fours
    cuda_c_tensor_core      matrix instructions in bfloat16 or tf32, copies while they compute
    cuda_c_cublas           NVIDIA's own product, between our kernels for the bias and its gradient

Shapes: a (M, K), b (K, N), c (M, N). Either factor may be a transposed view (`w.T`): no rung copies it.

There is no backward of its own, since the gradients are products themselves:

    da = dc b^T       forward(dc, b.T)
    db = a^T dc       forward(a.T, dc)
    dbias = sum of the rows of dc       sum_rows(dc)

A linear layer, y = x W^T + bias, needs all three of one dy. `linear_backward` asks for them at once, which lets
a rung share them among its threads as it likes; a rung without this function is called three times.
"""

from minift_kernels.arrays import check_same_dtype, check_shape
from minift_kernels.ladder import Ladder
from minift_kernels.matmul import cuda_c, numba_cpu, numba_cuda, reference

ladder = Ladder(
    "matmul",
    {
        "reference": reference,
        "numba_cpu_blas": numba_cpu.blas,
        "numba_cpu_tiled": numba_cpu.tiled,
        "numba_cuda_naive": numba_cuda.naive,
        "numba_cuda_tiled": numba_cuda.tiled,
        "cuda_c_naive": cuda_c.naive,
        "cuda_c_coalesced": cuda_c.coalesced,
        "cuda_c_tiled": cuda_c.tiled,
        "cuda_c_register_tiled": cuda_c.register_tiled,
        "cuda_c_tensor_core": cuda_c.tensor_core,
        "cuda_c_cublas": cuda_c.cublas,
    },
)


def forward(a, b, bias=None):
    """c (M, N) from a (M, K), b (K, N) and, where given, bias (N,), added to every row.

    A bias may be float32 where a and b are bfloat16.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul: a {a.shape} and b {b.shape} do not fit")
    check_same_dtype("matmul", "b", b, a.dtype)
    if bias is not None:
        check_shape("matmul", "bias", bias, b.shape[1:])
    return ladder.rung(a).forward(a, b, bias)


def sum_rows(x):
    """(C,) from x (R, C): the gradient of a bias that was added to every row; float32 from bfloat16."""
    return ladder.rung(x).sum_rows(x)


def linear_backward(dy, x, weight, bias: bool):
    """dx (T, in), dweight (out, in) and dbias (out,) of y = x W^T + bias, from dy (T, out), x and W (out, in).

    None for a gradient that is not needed: dx where `weight` is None, dweight where `x` is, dbias unless `bias`.
    dweight lies in memory as `weight` does: a checkpoint that holds W^T has its gradient in that order too, and
    nobody copies it. It may be float32 where dy and x are bfloat16, as dbias is.
    """
    if weight is not None and weight.shape[:1] != dy.shape[1:]:
        raise ValueError(f"matmul: dy {dy.shape} and weight {weight.shape} do not fit")
    if x is not None and x.shape[:1] != dy.shape[:1]:
        raise ValueError(f"matmul: dy {dy.shape} and x {x.shape} do not fit")
    for name, factor in (("weight", weight), ("x", x)):
        if factor is not None:
            check_same_dtype("matmul", name, factor, dy.dtype)
    rung = ladder.rung(dy)
    if hasattr(rung, "linear_backward"):
        return rung.linear_backward(dy, x, weight, bias)
    return reference.linear_gradients(rung, dy, x, weight, bias)
