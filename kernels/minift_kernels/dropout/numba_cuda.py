"""Rung 3, the first version for a GPU, in Python: a thread for each four elements, which share one Philox."""

from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, keep_scale, word_threshold

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 128

_MULTIPLIER0, _MULTIPLIER1 = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_KEY_STEP0, _KEY_STEP1 = (np.uint64(step) for step in KEY_STEPS)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def forward(x, p, key):
    flat = gpu.contiguous(x).reshape(-1)
    y = array_namespace(flat).empty(x.shape, np.float32)
    scalars = word_threshold(p), np.float32(keep_scale(p)), np.uint64(key[0]), np.uint64(key[1])
    _forward.launch((-(-x.size // (4 * THREADS)),), (THREADS,), (flat, *scalars, y.reshape(-1)))
    return y


@gpu.numba_kernel
def _forward(x, threshold, scale, key0, key1, y):
    block = cuda.grid(1)  # of four elements
    if 4 * block < x.size:
        # Words of 32 bits are kept in 64, so that a product of two has room for its high half.
        w0, w1 = np.uint64(block) & _LOW_HALF, np.uint64(block) >> _HALF
        w2, w3 = np.uint64(0), np.uint64(0)
        for _ in range(ROUNDS):
            product0, product1 = w0 * _MULTIPLIER0, w2 * _MULTIPLIER1
            w0, w1 = (product1 >> _HALF) ^ w1 ^ key0, product1 & _LOW_HALF
            w2, w3 = (product0 >> _HALF) ^ w3 ^ key1, product0 & _LOW_HALF
            key0, key1 = (key0 + _KEY_STEP0) & _LOW_HALF, (key1 + _KEY_STEP1) & _LOW_HALF
        words = (w0, w1, w2, w3)
        for i in range(4):
            if 4 * block + i < x.size:
                if words[i] >= threshold:
                    y[4 * block + i] = x[4 * block + i] * scale
                else:
                    y[4 * block + i] = np.float32(0)
