"""Rung 2, one parallel loop over chunks that stay in cache: vector loops for sums and zeros, then one over the bits.

The exponent of a float32 is 8 of its bits, so counting magnitudes by powers of two needs no logarithm: it is one
count for each of 256 exponents, of which 0 is that of denormal numbers and 255 that of NaN and infinities. The chunks
are added up in their order, so that the result does not depend on the number of threads.
"""

import math

import numpy as np
from numba import prange

from minift_kernels.host import compiled, contiguous
from minift_kernels.summary.reference import BINS, LOWEST, stride

_CHUNK = 1 << 14
"""Elements that a thread looks at a time: 64 kB."""

_FIRST = 127 + LOWEST
"""The exponent of the first bin, as float32 writes it."""

_NONE, _ONE = np.uint32(0), np.uint32(1)
_FRACTION, _EXPONENT = np.uint32(23), np.uint32(255)  # a float32: sign, 8 bits of exponent, 23 of fraction
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def forward(x):
    x = contiguous(x).reshape(-1)
    chunks = -(-x.size // _CHUNK)
    moments = np.zeros((chunks, 2), np.float64)
    special = np.zeros((chunks, 4), np.uint32)
    exponents = np.zeros((chunks, 256), np.uint32)
    _count(x, x.view(np.uint32), stride(x.size), moments, special, exponents)

    squares, total = moments.sum(axis=0).tolist()
    zeros, nans, infinities = special[:, :3].sum(axis=0, dtype=np.int64).tolist()
    largest = special[:, 3].max(initial=0).astype(np.uint32).view(np.float32)
    of_exponent = exponents.sum(axis=0, dtype=np.int64)
    counts = np.empty(3 + BINS, np.int64)
    counts[:3] = zeros, nans, infinities
    counts[3:] = of_exponent[_FIRST : _FIRST + BINS]
    counts[3] += of_exponent[:_FIRST].sum()
    counts[-1] += of_exponent[_FIRST + BINS : 255].sum()
    moments = np.array([math.sqrt(squares), total / max(x.size - nans - infinities, 1), largest])
    return moments, counts


@compiled
def _count(x, bits, stride, moments, special, exponents):
    for chunk in prange(len(moments)):
        start, end = chunk * _CHUNK, min((chunk + 1) * _CHUNK, x.size)
        # Slices and unsigned numbers, since an index that may be negative has to be tested for it.
        values, words = x[start:end], bits[start:end]

        # Magnitudes are in the order of their bits, which integers compare faster than floats.
        largest, zeros = _NONE, _NONE
        for i in range(len(words)):
            largest = max(largest, words[i] & _MAGNITUDE)
            zeros += _ONE if words[i] & _MAGNITUDE == _NONE else _NONE
        special[chunk, 0] = zeros
        if largest == _NONE:  # most of the gradient of an embedding
            continue

        squares, total = 0.0, 0.0
        if largest < _INFINITY:
            for i in range(len(values)):
                squares += np.float64(values[i]) * np.float64(values[i])
                total += np.float64(values[i])
        else:
            largest, nans, infinities = _NONE, _NONE, _NONE
            for i in range(len(words)):
                magnitude = words[i] & _MAGNITUDE
                if magnitude > _INFINITY:
                    nans += _ONE
                elif magnitude == _INFINITY:
                    infinities += _ONE
                else:
                    largest = max(largest, magnitude)
                    squares += np.float64(values[i]) * np.float64(values[i])
                    total += np.float64(values[i])
            special[chunk, 1], special[chunk, 2] = nans, infinities
        moments[chunk, 0], moments[chunk, 1], special[chunk, 3] = squares, total, largest

        first = -start % stride
        for word in words[first::stride]:
            if word & _MAGNITUDE != _NONE:
                exponents[chunk, (word >> _FRACTION) & _EXPONENT] += _ONE
