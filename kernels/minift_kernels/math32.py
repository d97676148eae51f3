"""exp and erf for float32 in compiled loops, written so that the compiler turns them into vector instructions.

A call of the C library's exp handles one number at a time; these handle eight, because they are nothing but
additions and multiplications without a branch.
"""

import numpy as np
from numba import njit

# No fast-math here: the error-free steps below depend on the order in which they are written.
_inlined = njit(cache=True, error_model="numpy", forceinline=True)

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # has few digits, so its product with a small integer is exact
_LN2_LOW = np.float32(-2.12194440e-4)  # ln(2) - _LN2_HIGH
_ROUNDER = np.float32(1.5 * 2**23)  # a float32 this large has no room for a fraction
_ROUNDER_BITS = _ROUNDER.view(np.int32)


@_inlined
def exp(x):
    """e^x = 2^n e^r, with n an integer and |r| <= ln(2)/2; within 2 units in the last place.

    exp(-inf) = 0, exp(inf) = inf, NaN stays NaN, and results too small for a normal float32 are denormal.
    """
    x = np.float32(-104) if x < np.float32(-104) else x  # e^-104 rounds to 0
    x = np.float32(89) if x > np.float32(89) else x  # e^89 overflows to infinity
    shifted = x * _LOG2_E + _ROUNDER
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
    # The last bits of `shifted` are n. Written into the exponent's place they are 2^n; two halves, since 2^n alone
    # may be too small for a float32 where the product is not.
    bits = np.float32(shifted).view(np.int32) - _ROUNDER_BITS
    half = bits >> np.int32(1)
    return p * _power_of_two(half) * _power_of_two(bits - half)


@_inlined
def _power_of_two(n):
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)
