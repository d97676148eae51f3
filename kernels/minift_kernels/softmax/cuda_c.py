"""Rungs 5 to 7, CUDA C: how the kernels of softmax.cu are launched. The lesson is in that file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace

FILE = Path(__file__).with_name("softmax.cu")


class _Softmax:
    """What the steps share: they differ in the kernels' names and in how many threads a row gets."""

    step = ""

    def forward(self, x):
        x = gpu.contiguous(x)
        y = array_namespace(x).empty_like(x)
        self._launch("forward", x, y)
        return y

    def backward(self, dy, y):
        dy, y = gpu.contiguous(dy), gpu.contiguous(y)
        dx = array_namespace(y).empty_like(y)
        self._launch("backward", dy, y, dx)
        return dx

    def _launch(self, direction, *arrays):
        columns = arrays[0].shape[-1]
        rows = arrays[0].size // columns
        kernel = f"softmax_{self.step}_{direction}<{gpu.c_type(arrays[0])}>"
        blocks, threads = self.shape_of_launch(rows, columns, arrays[0].itemsize)
        arguments = (*arrays, np.int32(rows), np.int32(columns))
        gpu.launch(FILE, kernel, (blocks,), (threads,), arguments, self.shared_bytes(threads))

    def shape_of_launch(self, rows, columns, itemsize):
        """How many blocks, and how many threads in each."""
        raise NotImplementedError

    def shared_bytes(self, threads):
        return 0


class Naive(_Softmax):
    """Rung 5, one thread a row. A warp reads 32 rows at once, so most of every memory access is wasted."""

    step = "naive"

    def shape_of_launch(self, rows, columns, itemsize):
        return -(-rows // 128), 128


class Shared(_Softmax):
    """Rung 6, one block a row. A warp reads neighbouring columns; the threads meet in shared memory."""

    step = "shared"

    def shape_of_launch(self, rows, columns, itemsize):
        return rows, 128

    def shared_bytes(self, threads):
        return 4 * threads


class Warp(_Softmax):
    """Rung 7, registers. Shuffles instead of shared memory, 16-byte loads, maximum and sum in one loop."""

    step = "warp"

    def shape_of_launch(self, rows, columns, itemsize):
        in_a_load = 16 // itemsize
        warps = min(32, max(1, -(-columns // (32 * in_a_load))))
        return rows, 32 * warps


naive, shared, warp = Naive(), Shared(), Warp()
