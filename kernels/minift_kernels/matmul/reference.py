"""Rung 1, the formula. (Of bfloat16, NumPy's product is float32; cuBLAS adds up in float32 and then rounds.)"""

from minift_kernels.arrays import lies_transposed, wide


def forward(a, b, bias=None):
    c = a @ b
    return (c if bias is None else c + bias).astype(a.dtype, copy=False)


def sum_rows(x):
    return wide(x).sum(axis=0)


def linear_gradients(rung, dy, x, weight, bias):
    """The gradients of a linear layer, each by a call of `rung`."""
    dx = None if weight is None else rung.forward(dy, weight)
    if x is None:
        dweight = None
    elif lies_transposed(weight):
        dweight = rung.forward(x.T, dy).T
    else:
        dweight = rung.forward(dy.T, x)
    return dx, dweight, rung.sum_rows(dy) if bias else None
