"""Rung 3, the first version for a GPU, in Python: one launch for each array, a thread for each element."""

import math
from typing import Any

from minift_kernels import gpu
from minift_kernels.adamw.on_gpu import OnGpu

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 128


class Naive(OnGpu):
    """Rung 3, one launch for each array, a thread for each element."""

    def launch(self, lists, coefficients):
        for arrays in zip(*lists, strict=True):
            flat = [array.reshape(-1) for array in arrays]
            _step.launch((-(-flat[0].size // THREADS),), (THREADS,), (*flat, coefficients))


naive = Naive()


@gpu.numba_kernel
def _step(w, g, m, v, coefficients):
    i = cuda.grid(1)  # this thread's number in the whole grid
    if i < w.size:  # the last block has threads to spare
        decay, beta1, rest1, beta2, rest2 = coefficients[0:5]
        step_size, variance_scale, eps, gradient_scale = coefficients[5:9]
        gradient = gradient_scale * g[i]
        m[i] = beta1 * m[i] + rest1 * gradient
        v[i] = beta2 * v[i] + rest2 * gradient * gradient
        w[i] = decay * w[i] - step_size * m[i] / (math.sqrt(v[i]) * variance_scale + eps)
