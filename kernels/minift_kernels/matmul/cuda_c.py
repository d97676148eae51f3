"""Rungs 6 to 11, CUDA C: how the kernels are launched. Each step's lesson is in its own .cu file."""

from pathlib import Path

import numpy as np

from minift_kernels import cublas as library
from minift_kernels import gpu
from minift_kernels.arrays import array_namespace, lies_transposed, wide

HERE = Path(__file__).parent

COLUMNS, THREADS_OF_COLUMN, ROWS = 32, 8, 256
"""A block of sum_rows.cu: its columns, its threads for each, and its rows."""


class _Product:
    """What the steps share. They differ in the kernel, the threads of a block, and the part of c it computes."""

    file: Path
    kernel: str
    block: tuple[int, ...]
    tile: tuple[int, int]
    """Rows and columns of c."""
    shared_bytes = 0

    def forward(self, a, b, bias=None):
        (rows, inner), columns = a.shape, b.shape[1]
        c = array_namespace(a).empty((rows, columns), a.dtype)
        a, a_strides = layout(a)
        b, b_strides = layout(b)
        kernel, strides = self.kernel_for(c, a_strides, b_strides)
        grid = (-(-columns // self.tile[1]), -(-rows // self.tile[0]))
        arguments = (
            a,
            b,
            None if bias is None else gpu.contiguous(bias.astype(a.dtype, copy=False)),
            c,
            *np.array([rows, columns, inner], np.int32),
            *np.array(strides, np.int64),
        )
        gpu.launch(self.file, kernel, grid, self.block, arguments, self.shared_bytes)
        return c

    def kernel_for(self, c, a_strides, b_strides):
        """The kernel for factors that lie like these, and the strides that it takes."""
        return f"{self.kernel}<{gpu.c_type(c)}>", (*a_strides, *b_strides)

    def sum_rows(self, x):
        xp, x, (rows, columns) = array_namespace(x), gpu.contiguous(x), x.shape
        blocks = -(-rows // ROWS)
        partial = xp.empty((blocks, columns), np.float32)
        sums = xp.empty(columns, np.float32)
        grid, block = (-(-columns // COLUMNS), blocks), (COLUMNS, THREADS_OF_COLUMN)
        file = HERE / "sum_rows.cu"
        arguments = (x, partial, *np.array([rows, columns, ROWS], np.int32))
        gpu.launch(file, f"sum_rows_of_block<{gpu.c_type(x)}>", grid, block, arguments)
        arguments = (partial, sums, *np.array([blocks, columns], np.int32))
        gpu.launch(file, "sum_partial_sums", (-(-columns // 128),), (128,), arguments)
        return sums


def layout(x):
    """x, or a copy, as a contiguous array, and how far apart its rows and its columns then are in memory.

    A transposed view is a contiguous array seen otherwise: it is not copied.
    """
    if lies_transposed(x):
        return gpu.contiguous(x.T), (1, x.shape[0])
    return gpu.contiguous(x), (x.shape[1], 1)


class Naive(_Product):
    """Rung 6, one thread an element of c, and a warp down a column: 32 memory accesses where 1 would do."""

    file, kernel, block, tile = HERE / "naive.cu", "matmul_naive", (32, 8), (32, 8)


class Coalesced(_Product):
    """Rung 7, the same with a warp along a row: its reads of b and its writes are one access each."""

    file, kernel, block, tile = HERE / "naive.cu", "matmul_coalesced", (32, 8), (8, 32)


class Tiled(_Product):
    """Rung 8, tiles in shared memory: each number is fetched once for 16 uses."""

    file, kernel, block, tile = HERE / "tiled.cu", "matmul_tiled", (16, 16), (16, 16)


class RegisterTiled(_Product):
    """Rung 9, 8 x 8 sums in each thread's registers, and loads of 16 bytes."""

    file, kernel, block, tile = HERE / "register_tiled.cu", "matmul_register_tiled", (256,), (128, 128)


class TensorCore(_Product):
    """Rung 10, matrix instructions, and copies to shared memory while they compute. float32 is rounded to tf32."""

    file, kernel, block, tile = HERE / "tensor_core.cu", "matmul_tensor_core", (128,), (128, 128)
    shared_bytes = 3 * 2 * 128 * 128
    tolerance = 2**-10  # of tf32: two factors of 11 bits; see tensor_core.cu

    def kernel_for(self, c, a_strides, b_strides):
        # A factor of a single column (row) lies both ways; either will do.
        a_along_k, b_along_k = a_strides[1] == 1, b_strides[0] == 1
        names = ", ".join("true" if along else "false" for along in (a_along_k, b_along_k))
        strides = a_strides[0] if a_along_k else a_strides[1], b_strides[1] if b_along_k else b_strides[0]
        return f"{self.kernel}<{gpu.c_type(c)}, {names}>", strides


class Cublas(_Product):
    """Rung 11, NVIDIA's own product, which is compiled for each GPU anew. On the CPU it is that of NumPy.

    Of bfloat16, dweight is float32: the sums are, and what is not rounded need not be widened for the optimizer.
    """

    threads = 256

    def forward(self, a, b, bias=None):
        c = array_namespace(a).empty((a.shape[0], b.shape[1]), a.dtype)
        if bias is not None:
            blocks = -(-c.nbytes // (16 * self.threads))
            kernel = f"bias_in_every_row<{gpu.c_type(c)}, {gpu.c_type(bias)}>"
            arguments = (gpu.contiguous(bias), c, np.int32(c.shape[1]), np.int64(c.size))
            gpu.launch(HERE / "bias_rows.cu", kernel, (blocks,), (self.threads,), arguments)
        self._product(a, b, c, add=bias is not None)
        return c

    def linear_backward(self, dy, x, weight, bias):
        dx = None if weight is None else self.forward(dy, weight)
        dweight = None
        if x is not None:
            empty = array_namespace(x).empty
            if lies_transposed(weight):
                dweight = empty((x.shape[1], dy.shape[1]), np.float32)
                self._product(x.T, dy, dweight)
                dweight = dweight.T
            else:
                dweight = empty((dy.shape[1], x.shape[1]), np.float32)
                self._product(dy.T, x, dweight)
        return dx, dweight, self.sum_rows(dy) if bias else None

    def _product(self, a, b, c, add=False):
        if isinstance(c, np.ndarray):
            c[...] = wide(a) @ wide(b) + (wide(c) if add else 0)
        else:
            library.product(a, b, c, add, gpu.tf32_is_allowed())


naive, coalesced, tiled, register_tiled = Naive(), Coalesced(), Tiled(), RegisterTiled()
tensor_core, cublas = TensorCore(), Cublas()
