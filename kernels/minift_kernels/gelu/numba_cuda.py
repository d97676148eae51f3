"""Rung 3, the first version for a GPU, in Python: a thread for each number."""

import math
from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 128

_SQRT_HALF = np.float32(math.sqrt(0.5))
_DENSITY_AT_0 = np.float32(1 / math.sqrt(2 * math.pi))


def forward(x):
    return _launch(_forward, x)


def backward(dy, x):
    return _launch(_backward, dy, x)


def _launch(kernel, *inputs):
    flat = [gpu.contiguous(x).reshape(-1) for x in inputs]
    result = array_namespace(flat[0]).empty(inputs[0].shape, np.float32)
    kernel.launch((-(-result.size // THREADS),), (THREADS,), (*flat, result.reshape(-1)))
    return result


@gpu.numba_kernel
def _forward(x, y):
    i = cuda.grid(1)  # this thread's number in the whole grid
    if i < x.size:  # the last block has threads to spare
        y[i] = np.float32(0.5) * x[i] * (np.float32(1) + math.erf(x[i] * _SQRT_HALF))


@gpu.numba_kernel
def _backward(dy, x, dx):
    i = cuda.grid(1)
    if i < x.size:
        distribution = np.float32(0.5) * (np.float32(1) + math.erf(x[i] * _SQRT_HALF))
        density = _DENSITY_AT_0 * math.exp(np.float32(-0.5) * x[i] * x[i])
        dx[i] = dy[i] * (distribution + x[i] * density)
