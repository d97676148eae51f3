"""Rung 2, one pass over memory in one parallel loop over chunks of all arrays; each chunk's squares are added
up in float64, then the chunks in their order, so that the result does not depend on the number of threads."""

import math

import numpy as np
from numba import prange

from minift_kernels.host import address, compiled, contiguous, float32_array
from minift_kernels.pointer_table import chunk_table

_CHUNK = 1 << 15
"""Elements whose squares a thread adds up at a time."""


def forward(gradients):
    gradients = [contiguous(gradient) for gradient in gradients]
    addresses = np.array([address(gradient) for gradient in gradients], np.int64)
    chunks = chunk_table(gradients, _CHUNK)
    totals = np.empty(len(chunks), np.float64)
    _sums_of_squares(addresses, chunks, totals)
    return math.sqrt(totals.sum())


@compiled
def _sums_of_squares(addresses, chunks, totals):
    for chunk in prange(len(chunks)):
        number, start, size = chunks[chunk]
        g = float32_array(addresses[number] + 4 * start, size)
        total = 0.0
        for i in range(size):
            total += np.float64(g[i]) * np.float64(g[i])
        totals[chunk] = total
