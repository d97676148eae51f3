"""Rungs 4 and 5, CUDA C: how the kernels of embedding.cu are launched. The lesson is in that file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace, check_indices

FILE = Path(__file__).with_name("embedding.cu")

_CHUNK = 32
"""Tokens whose gradients one block adds up."""


class _Embedding:
    """The steps differ in backward alone."""

    def forward(self, ids, table):
        ids, table = checked_ids(ids, len(table)), gpu.contiguous(table)
        rows, columns = table.shape
        y = array_namespace(table).empty((len(ids), columns), table.dtype)
        kernel = f"embedding_gather<{gpu.c_type(table)}, {_columns_a_thread(table)}>"
        arguments = (ids, table, y, np.int64(rows), np.int32(columns))
        gpu.launch(FILE, kernel, (len(ids),), (_threads(table),), arguments)
        return y

    def backward(self, dy, ids, rows):
        dy, ids = gpu.contiguous(dy), checked_ids(ids, rows)
        dtable = array_namespace(dy).zeros((rows, dy.shape[1]), np.float32)
        self._add(dy, ids, dtable)
        return dtable

    def _add(self, dy, ids, dtable):
        """Adds dy[t] to row ids[t] of dtable, which is zero."""
        raise NotImplementedError


class Atomic(_Embedding):
    """Rung 4, atomicAdd. Sums depend on the order in which threads arrive."""

    deterministic = False

    def _add(self, dy, ids, dtable):
        kernel = f"embedding_atomic_scatter<{gpu.c_type(dy)}, {_columns_a_thread(dy)}>"
        arguments = (dy, ids, dtable, np.int64(len(dtable)), np.int32(dy.shape[1]))
        gpu.launch(FILE, kernel, (len(ids),), (_threads(dy),), arguments)


class Sorted(_Embedding):
    """Rung 5, tokens in the order of their ids, each id's gradients added up in one fixed order."""

    def _add(self, dy, ids, dtable):
        xp, tokens, columns, n = array_namespace(dy), *dy.shape, _columns_a_thread(dy)
        chunks = -(-tokens // _CHUNK)
        order = xp.argsort(ids, kind="stable")
        partials = xp.empty((chunks, 2, columns), np.float32)
        sorted_ids = ids[order]
        numbers = np.int64(len(dtable)), np.int32(tokens), np.int32(_CHUNK), np.int32(columns)
        arguments = (dy, order, sorted_ids, partials, dtable, *numbers)
        kernel = f"embedding_sum_runs<{gpu.c_type(dy)}, {n}>"
        gpu.launch(FILE, kernel, (chunks,), (_threads(dy),), arguments)
        arguments = (partials, sorted_ids, dtable, *numbers)
        kernel = f"embedding_sum_pieces<{n}>"
        gpu.launch(FILE, kernel, (max(0, chunks - 1),), (_threads(dy),), arguments)


atomic, sorted_ = Atomic(), Sorted()


def checked_ids(ids, rows):
    """The ids as int64. A GPU's are not looked at; its answer to wrong ones is in embedding.cu."""
    check_indices("embedding row", ids, rows)
    return gpu.contiguous(ids.astype(np.int64, copy=False))


def _columns_a_thread(x):
    """As many as a load of 16 bytes brings, where rows are a whole number of such loads."""
    size = 16 // x.itemsize
    return size if x.shape[1] % size == 0 else 1


def _threads(x):
    return 32 * min(8, max(1, x.shape[1] // (32 * _columns_a_thread(x))))
