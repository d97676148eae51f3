"""Rung 2, compiled loops. The random words of a few thousand elements at a time are drawn into a buffer that
stays in the first-level cache, where the reference writes out the words of the whole array."""

import numpy as np
from numba import prange

from minift_kernels.host import compiled, contiguous, inlined
from minift_kernels.philox import keep_scale, philox_words, word_threshold

_CHUNK = 4096
"""Elements drawn at a time: a power of 2, so that the counters of a chunk share their high word."""


def forward(x, p, key):
    y = np.empty(x.shape, np.float32)
    seed, call = key
    _forward(
        contiguous(x).reshape(-1),
        word_threshold(p),
        np.float32(keep_scale(p)),
        np.uint32(seed),
        np.uint32(call),
        y.reshape(-1),
    )
    return y


@compiled
def _forward(x, threshold, scale, key0, key1, y):
    for chunk in prange((len(x) + _CHUNK - 1) // _CHUNK):
        start, end = chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(x))
        block = np.uint64(start // 4)
        words = np.empty(_CHUNK, np.uint32)
        philox_words(
            words, np.uint32(block), np.uint32(block >> np.uint64(32)), np.uint32(0), np.uint32(0), key0, key1
        )
        _keep(x[start:end], words, threshold, scale, y[start:end])


@inlined
def _keep(x, words, threshold, scale, y):
    for i in range(len(x)):
        y[i] = x[i] * scale if words[i] >= threshold else np.float32(0)
