"""Rung 1, the formula."""

import math

from minift_kernels.arrays import array_namespace, wide

_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def forward(x):
    dtype, x = x.dtype, wide(x)
    return (x * _passed(x)).astype(dtype, copy=False)


def backward(dy, x):
    # y = x s, s = (1 + tanh(u)) / 2, so dy/dx = s + x s', and s' = s (1 - s) 2 u'
    dtype, x = x.dtype, wide(x)
    s = _passed(x)
    u_slope = _SLOPE * (1 + 3 * _CUBIC * x * x)
    return (wide(dy) * (s + x * (s * (1 - s)) * 2 * u_slope)).astype(dtype, copy=False)


def _passed(x):
    """(1 + tanh(u)) / 2: the share of x that passes."""
    return (1 + array_namespace(x).tanh(_SLOPE * (x + _CUBIC * x * x * x))) / 2
