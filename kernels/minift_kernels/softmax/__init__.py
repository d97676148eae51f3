"""Softmax over the last axis: y_j = exp(x_j) / sum_k exp(x_k).

    reference   three passes in array operations
    numba_cpu   one row at a time in cache, exp as a polynomial that vectorises

Shapes: R rows, C columns; both rungs take any number of leading axes as rows.
"""

from minift_kernels.arrays import check_shape
from minift_kernels.ladder import Ladder
from minift_kernels.softmax import numba_cpu, reference

ladder = Ladder("softmax", {"reference": reference, "numba_cpu": numba_cpu})


def forward(x):
    """y (R, C) from x (R, C). A row of -inf alone gives NaN, as the formula does."""
    return ladder.rung(x).forward(x)


def backward(dy, y):
    """dx (R, C) from the output y and its gradient dy: dx_i = y_i (dy_i - sum_j dy_j y_j)."""
    check_shape("softmax", "dy", dy, y.shape)
    return ladder.rung(dy).backward(dy, y)
