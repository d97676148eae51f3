"""Rung 3, the first version for a GPU, in Python: a thread for each four elements, which share one Philox."""

from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.numba_device import philox_of
from minift_kernels.philox import keep_scale, word_threshold

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 128


def forward(x, p, key):
    flat = gpu.contiguous(x).reshape(-1)
    y = array_namespace(flat).empty(x.shape, np.float32)
    seed, call = key
    scalars = word_threshold(p), np.float32(keep_scale(p)), np.uint64(seed), np.uint64(call)
    _forward.launch((-(-x.size // (4 * THREADS)),), (THREADS,), (flat, *scalars, y.reshape(-1)))
    return y


@gpu.numba_kernel
def _forward(x, threshold, scale, key0, key1, y):
    block = cuda.grid(1)  # of four elements
    if 4 * block < x.size:
        low, high = np.uint64(block) & np.uint64(0xFFFFFFFF), np.uint64(block) >> np.uint64(32)
        words = philox_of(low, high, np.uint64(0), np.uint64(0), key0, key1)
        for i in range(4):
            if 4 * block + i < x.size:
                if words[i] >= threshold:
                    y[4 * block + i] = x[4 * block + i] * scale
                else:
                    y[4 * block + i] = np.float32(0)
