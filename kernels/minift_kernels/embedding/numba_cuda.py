"""Rung 3, the first version for a GPU, in Python: a thread for each number, and atomics where threads meet."""

from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.embedding.cuda_c import checked_ids

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 32


class Atomic:
    """Rung 3, a block a token. Sums depend on the order in which threads arrive."""

    deterministic = False

    def forward(self, ids, table):
        ids, table = checked_ids(ids, len(table)), gpu.contiguous(table)
        y = array_namespace(table).empty((len(ids), table.shape[1]), np.float32)
        _gather.launch((len(ids),), (THREADS,), (ids, table, y))
        return y

    def backward(self, dy, ids, rows):
        dy, ids = gpu.contiguous(dy), checked_ids(ids, rows)
        dtable = array_namespace(dy).zeros((rows, dy.shape[1]), np.float32)
        _scatter.launch((len(ids),), (THREADS,), (dy, ids, dtable))
        return dtable


atomic = Atomic()


@gpu.numba_kernel
def _gather(ids, table, y):
    t = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, table.shape[1], THREADS):
        if 0 <= ids[t] < table.shape[0]:
            y[t, c] = table[ids[t], c]
        else:
            y[t, c] = np.float32(np.nan)


@gpu.numba_kernel
def _scatter(dy, ids, dtable):
    t = cuda.blockIdx.x
    if 0 <= ids[t] < dtable.shape[0]:
        for c in range(cuda.threadIdx.x, dy.shape[1], THREADS):
            # `dtable[ids[t], c] += dy[t, c]` would lose what another block adds between the read and the write.
            cuda.atomic.add(dtable, (ids[t], c), dy[t, c])
