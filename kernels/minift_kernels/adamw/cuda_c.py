"""Rungs 4 and 5, CUDA C: how the kernels of adamw.cu are launched. The lesson is in that file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.adamw.on_gpu import OnGpu
from minift_kernels.pointer_table import address_table, chunk_table

FILE = Path(__file__).with_name("adamw.cu")

_THREADS = 256

_CHUNK = 4096
"""Elements that a block updates: 4 packs a thread, and enough blocks that the last ones do not idle the GPU."""


class Naive(OnGpu):
    """Rung 4, one launch for each array."""

    def launch(self, lists, coefficients):
        for w, g, m, v in zip(*lists, strict=True):
            blocks = -(-w.size // _THREADS)
            arguments = (w, g, m, v, coefficients, np.int64(w.size))
            gpu.launch(FILE, "adamw_naive", (blocks,), (_THREADS,), arguments)


class Chunks(OnGpu):
    """Rung 5, one launch for all arrays, by a table of addresses and chunks; 16-byte loads."""

    def launch(self, lists, coefficients):
        chunks = chunk_table(lists[0], _CHUNK)
        addresses = address_table(lists)
        arguments = (addresses, np.int64(len(lists[0])), chunks, coefficients)
        gpu.launch(FILE, "adamw_chunks", (len(chunks),), (_THREADS,), arguments)


naive, chunks = Naive(), Chunks()
