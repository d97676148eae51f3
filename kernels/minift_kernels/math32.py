"""exp, erf and the largest of a row for float32 in compiled loops, written so that the compiler turns them
into vector instructions.

A call of the C library's exp handles one number at a time; these handle eight, because they are nothing but
additions and multiplications without a branch.
"""

import numpy as np

from minift_kernels.host import inlined_as_written

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # has few digits, so its product with a small integer is exact
_LN2_LOW = np.float32(-2.12194440e-4)  # ln(2) - _LN2_HIGH
_ROUNDER = np.float32(1.5 * 2**23)  # a float32 this large has no room for a fraction
_ROUNDER_BITS = _ROUNDER.view(np.int32)


@inlined_as_written
def exp(x):
    """e^x = 2^n e^r, with n an integer and |r| <= ln(2)/2; within 1 unit in the last place.

    exp(-inf) = 0, exp(inf) = inf, NaN stays NaN, and results too small for a normal float32 are denormal.
    """
    x = np.float32(-104) if x < np.float32(-104) else x  # e^-104 rounds to 0
    x = np.float32(89) if x > np.float32(89) else x  # e^89 overflows to infinity
    shifted = np.float32(x * _LOG2_E + _ROUNDER)
    n = shifted - _ROUNDER
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    # e^r = 1 + r + r^2 (1/2 + r/6 + ...), the coefficients adjusted to the interval
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + np.float32(1)
    # The last bits of `shifted` are n. Written into the exponent's place they are 2^n; two halves, since 2^n
    # alone may be too small for a float32 where the product is not.
    bits = np.int32(shifted.view(np.int32) - _ROUNDER_BITS)
    half = np.int32(bits >> 1)
    return p * _power_of_two(half) * _power_of_two(np.int32(bits - half))


@inlined_as_written
def _power_of_two(n):
    return np.int32((n + 127) << 23).view(np.float32)


# erf(x) = x P(x^2) / Q(x^2): both polynomials of degree 5, fitted for the smallest relative error over |x| <=
# 3.925, beyond which erf(x) rounds to 1.
_ERF_P = tuple(
    np.float32(c)
    for c in (1.128379107, 1.905952245e-1, 5.276949704e-2, 3.772614058e-3, 2.848451259e-4, 2.046018153e-6)
)
_ERF_Q = tuple(
    np.float32(c)
    for c in (1.0, 5.022433400e-1, 1.141833365e-1, 1.498332620e-2, 1.163873589e-3, 3.804776134e-5)
)


@inlined_as_written
def erf(x):
    """2/sqrt(pi) times the integral of exp(-t^2) from 0 to x, within 6 units in the last place."""
    x = np.float32(-3.925) if x < np.float32(-3.925) else x
    x = np.float32(3.925) if x > np.float32(3.925) else x
    s = x * x
    p = _ERF_P[5]
    p = p * s + _ERF_P[4]
    p = p * s + _ERF_P[3]
    p = p * s + _ERF_P[2]
    p = p * s + _ERF_P[1]
    p = p * s + _ERF_P[0]
    q = _ERF_Q[5]
    q = q * s + _ERF_Q[4]
    q = q * s + _ERF_Q[3]
    q = q * s + _ERF_Q[2]
    q = q * s + _ERF_Q[1]
    q = q * s + _ERF_Q[0]
    return x * p / q


@inlined_as_written
def largest(row):
    """The largest value of a row. Where there is a NaN the result may be NaN.

    A comparison of float32 that respects NaN does not vectorise, one of integers does. The bits of a positive
    float32, read as an integer, order as the numbers do; those of a negative one order backwards until all
    but the sign flip."""
    result = np.int32(-(2**31))
    for i in range(len(row)):
        result = max(result, _order(np.float32(row[i]).view(np.int32)))
    return np.int32(_order(result)).view(np.float32)


@inlined_as_written
def _order(bits):
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
