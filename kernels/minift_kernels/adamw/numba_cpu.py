"""Rung 2, one pass over memory: each element's parameter, gradient and two moments are read once and written
once.

All arrays are cut into chunks, and one parallel loop runs over the chunks of all of them, so that a bias of
384 numbers costs no launch of its own."""

import math

import numpy as np
from numba import prange

from minift_kernels.host import address, compiled, contiguous, float32_array
from minift_kernels.pointer_table import chunk_table

_CHUNK = 1 << 15
"""Elements a thread updates at a time."""


def step(
    parameters,
    gradients,
    first_moments,
    second_moments,
    *,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
    gradient_scale=1.0,
):
    lists = (parameters, gradients, first_moments, second_moments)
    flat = [[contiguous(array) for array in arrays] for arrays in lists]
    _step(
        np.array([[address(array) for array in arrays] for arrays in flat], np.int64),
        chunk_table(parameters, _CHUNK),
        np.float32(1 - lr * weight_decay),
        np.float32(beta1),
        np.float32(
            1 - beta1
        ),  # from float64: 1 minus the float32 nearest to 0.999 is wrong in its fifth digit
        np.float32(beta2),
        np.float32(1 - beta2),
        np.float32(lr / (1 - beta1**step)),
        np.float32(1 / math.sqrt(1 - beta2**step)),
        np.float32(eps),
        np.float32(gradient_scale),
    )
    for arrays, copies in zip((parameters, first_moments, second_moments), (flat[0], *flat[2:]), strict=True):
        for array, copy in zip(arrays, copies, strict=True):
            if copy is not array:  # not contiguous: what was updated is a copy
                array[...] = copy


@compiled
def _step(
    addresses, chunks, decay, beta1, rest1, beta2, rest2, step_size, variance_scale, eps, gradient_scale
):
    for chunk in prange(len(chunks)):
        number, start, size = chunks[chunk]
        w = float32_array(addresses[0, number] + 4 * start, size)
        g = float32_array(addresses[1, number] + 4 * start, size)
        m = float32_array(addresses[2, number] + 4 * start, size)
        v = float32_array(addresses[3, number] + 4 * start, size)
        for i in range(size):
            gradient = gradient_scale * g[i]
            m[i] = beta1 * m[i] + rest1 * gradient
            v[i] = beta2 * v[i] + rest2 * gradient * gradient
            w[i] = decay * w[i] - step_size * m[i] / (np.sqrt(v[i]) * variance_scale + eps)
