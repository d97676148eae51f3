"""What kernels of Numba's call: for the whole block a sum, or a maximum, of one number from each thread, and Philox.

`partial` is shared memory with a place for each thread of the block, whose number is a power of two.
"""

from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.philox import KEY_STEPS, MULTIPLIERS, ROUNDS

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

_MULTIPLIER0, _MULTIPLIER1 = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_KEY_STEP0, _KEY_STEP1 = (np.uint64(step) for step in KEY_STEPS)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@gpu.numba_function
def block_sum(value, partial):
    """The sum of the threads' values, for every thread."""
    t = cuda.threadIdx.x
    partial[t] = value
    half = cuda.blockDim.x // 2
    while half > 0:  # a tree: half of the threads take the other half's sums, then a quarter, ...
        cuda.syncthreads()  # what this turn reads has been written
        if t < half:
            partial[t] += partial[t + half]
        half //= 2
    cuda.syncthreads()  # the sum stands in partial[0]
    total = partial[0]
    cuda.syncthreads()  # everybody has read it, and partial can be used again
    return total


@gpu.numba_function
def block_max(value, partial):
    """The largest of the threads' values, for every thread."""
    t = cuda.threadIdx.x
    partial[t] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()
        if t < half:
            partial[t] = max(partial[t], partial[t + half])
        half //= 2
    cuda.syncthreads()
    largest = partial[0]
    cuda.syncthreads()
    return largest


@gpu.numba_function
def philox_of(w0, w1, w2, w3, key0, key1):
    """The four random words of a counter, see philox.py. All are words of 32 bits kept in 64, so that a product of two
    has room for its high half."""
    for _ in range(ROUNDS):
        product0, product1 = w0 * _MULTIPLIER0, w2 * _MULTIPLIER1
        w0, w1 = (product1 >> _HALF) ^ w1 ^ key0, product1 & _LOW_HALF
        w2, w3 = (product0 >> _HALF) ^ w3 ^ key1, product0 & _LOW_HALF
        key0, key1 = (key0 + _KEY_STEP0) & _LOW_HALF, (key1 + _KEY_STEP1) & _LOW_HALF
    return w0, w1, w2, w3
