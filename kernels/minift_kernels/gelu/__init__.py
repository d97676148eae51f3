"""GELU in its exact form: y = x Phi(x), Phi(x) = (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016).

    reference    the formula, erf from the standard library element by element
    numba_cpu    one pass over memory, erf and exp as vector instructions
    numba_cuda   a thread for each element, in Python
    cuda_c       a thread for each 16 bytes, which one instruction loads

Shapes: any; elements are independent.
"""

from minift_kernels.arrays import check_array
from minift_kernels.gelu import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "gelu", {"reference": reference, "numba_cpu": numba_cpu, "numba_cuda": numba_cuda, "cuda_c": cuda_c}
)


def forward(x):
    """y from x, of the same shape."""
    return ladder.rung(x).forward(x)


def backward(dy, x):
    """dx = dy (Phi(x) + x phi(x)), phi the normal density; from forward's input x."""
    check_array("gelu", "dy", dy, x.shape, x.dtype)
    return ladder.rung(dy).backward(dy, x)
