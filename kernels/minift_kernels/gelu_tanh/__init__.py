"""GELU's approximation with tanh: y = x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3).

    reference   the formula
    numba_cpu   one pass over memory, exp as vector instructions

From Hendrycks and Gimpel 2016, section 2; GPT-2 uses it. Since (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), it is x times
the share that a sigmoid lets pass. Shapes: any; elements are independent.
"""

from minift_kernels.arrays import check_array
from minift_kernels.gelu_tanh import numba_cpu, reference
from minift_kernels.ladder import Ladder

ladder = Ladder("gelu_tanh", {"reference": reference, "numba_cpu": numba_cpu})


def forward(x):
    """y from x, of the same shape."""
    return ladder.rung(x).forward(x)


def backward(dy, x):
    """dx = dy (s + x s (1 - s) 2 u'), s = 1 / (1 + exp(-2 u)); from forward's input x."""
    check_array("gelu_tanh", "dy", dy, x.shape, x.dtype)
    return ladder.rung(dy).backward(dy, x)
