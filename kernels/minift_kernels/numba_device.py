"""What kernels of Numba's call for the whole block: a sum, or a maximum, of one number from each thread.

`partial` is shared memory with a place for each thread of the block, whose number is a power of two.
"""

from typing import Any

from minift_kernels import gpu

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py


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
