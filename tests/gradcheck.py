"""The referee of every operation: its gradients against central differences, in float64, at every index."""

from collections.abc import Callable

import numpy as np

from minift import Tensor


def check_gradients(function: Callable[..., Tensor], *arrays: np.ndarray, tolerance: float = 1e-7) -> None:
    """Assert that the gradient of sum(weights * function(*tensors)) is right for every element of every array.

    The fixed random weights give each output element its own share; with a plain sum, softmax's gradient is 0.
    """
    arrays = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    tensors = [Tensor(array.copy(), requires_grad=True) for array in arrays]
    output = function(*tensors)
    weights = np.random.default_rng(7).standard_normal(output.shape)
    output.backward(weights)

    def value(*changed):
        return float((function(*map(Tensor, changed)).data * weights).sum())

    step = 1e-5
    for position, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        for index in np.ndindex(array.shape):
            plus, minus = array.copy(), array.copy()
            plus[index] += step
            minus[index] -= step
            before, after = arrays[:position], arrays[position + 1 :]
            slope = (value(*before, plus, *after) - value(*before, minus, *after)) / (2 * step)
            found = tensor.grad[index]
            assert abs(found - slope) <= tolerance * max(1.0, abs(slope)), (
                f"input {position}, index {index}: backward says {found}, central differences {slope}"
            )
