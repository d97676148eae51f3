"""Rung 4, CUDA C: how the kernel of dropout.cu is launched. The lesson is in that file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.philox import keep_scale, word_threshold

FILE = Path(__file__).with_name("dropout.cu")

_THREADS = 256


def forward(x, p, key):
    x = gpu.contiguous(x)
    y = array_namespace(x).empty_like(x)
    blocks = -(-x.nbytes // (16 * _THREADS))
    scalars = word_threshold(p), np.float32(keep_scale(p)), np.uint32(key[0]), np.uint32(key[1])
    kernel = f"dropout_forward<{gpu.c_type(x)}>"
    gpu.launch(FILE, kernel, (blocks,), (_THREADS,), (x, *scalars, y, np.int64(x.size)))
    return y
