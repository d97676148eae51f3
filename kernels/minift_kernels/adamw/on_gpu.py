"""What AdamW's rungs for a GPU share: they differ in their launches."""

import math

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace


class OnGpu:
    def step(self, parameters, gradients, first_moments, second_moments, *, gradient_scale=1.0, **options):
        lists = parameters, gradients, first_moments, second_moments
        contiguous = [[gpu.contiguous(array) for array in arrays] for arrays in lists]
        self.launch(contiguous, coefficients(array_namespace(parameters[0]), gradient_scale, **options))
        for changed in (0, 2, 3):
            for array, copy in zip(lists[changed], contiguous[changed], strict=True):
                if copy is not array:  # not contiguous: what was updated is a copy
                    array[...] = copy

    def launch(self, lists, coefficients):
        """Update the contiguous arrays of four lists, which are those of `step`; all but gradients change."""
        raise NotImplementedError


def coefficients(xp, gradient_scale, *, lr, beta1, beta2, eps, weight_decay, step):
    """`struct Coefficients` of adamw.cu as an array; the gradient scale may be a number on the device."""
    numbers = [
        1 - lr * weight_decay,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        eps,
        1.0,
    ]
    on_device = xp.asarray(np.array(numbers, np.float32))
    on_device[-1:] = gradient_scale
    return on_device
