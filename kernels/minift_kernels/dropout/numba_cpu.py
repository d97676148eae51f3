"""Rung 2, compiled loops. The random words of a few thousand elements at a time are drawn into a buffer that
stays in the first-level cache, where the reference writes out the words of the whole array."""

import numpy as np
from numba import prange

from minift_kernels.host import compiled, contiguous
from minift_kernels.philox import drop_threshold, keep_scale, philox_words

_CHUNK = 4096
"""Elements drawn at a time: a power of 2, so that the counters of a chunk share their high word."""


def forward(x, p, key):
    y = np.empty(x.shape, np.float32)
    key0, key1 = (np.uint32(k) for k in key)
    _forward(
        contiguous(x).reshape(-1), drop_threshold(p), np.float32(keep_scale(p)), key0, key1, y.reshape(-1)
    )
    return y


@compiled
def _forward(x, threshold, scale, key0, key1, y):
    for chunk in prange((len(x) + _CHUNK - 1) // _CHUNK):
        start = chunk * _CHUNK
        size = min(_CHUNK, len(x) - start)
        words = np.empty(_CHUNK, np.uint32)
        block = np.uint64(start // 4)
        low, high = np.uint32(block), np.uint32(block >> np.uint64(32))
        philox_words(words, low, high, np.uint32(0), np.uint32(0), key0, key1)
        for i in range(size):
            y[start + i] = x[start + i] * scale if np.int64(words[i]) >= threshold else np.float32(0)
