"""Is this gradient right? One step of a trace, checked on the spot by finite differences.

The operation is run again in float64, with one of its inputs moved a little along a random direction u, forth and
back. How its output changes, weighed by dy, has to be what the backward said:

    (f(x + h u) - f(x - h u)) . dy / 2h  =  dx . u

One direction tests all elements at once: an error in any of them shows, unless u happens to be at right angles to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from minift_kernels.arrays import array_namespace

from minift.history import Step
from minift.recording import Array, Call
from minift.tensor import Tensor

STEP = 1e-6
"""h, in units of the input's root mean square: (in float64) far above rounding, far below the curve of f."""


class GradientCheck(NamedTuple):
    """What the backward says and what is measured, along one direction."""

    name: str
    """Which of the operation's inputs."""
    said: float
    """dx . u"""
    measured: float
    difference: float
    """|said - measured| in units of |dx|, which is how large dx . u is wont to be; or of |dy| / 1000 where dx is
    smaller than that. (The gradient of a key's bias is 0 by nature, and what is computed is rounding.)"""

    @property
    def right(self) -> bool:
        """Whether they agree to what float32 and finite differences can promise."""
        return self.difference < 1e-3


def check_gradients(step: Step, seed: int = 0) -> list[GradientCheck]:
    """A check for each contribution of a step, from a trace whose forward pass was recorded as arrays.

    Raises ValueError for any other step.
    """
    if step.recorded is None or step.recorded.call is None:
        raise ValueError("only a step of a recording of arrays can be computed again")
    call, random = step.recorded.call, np.random.default_rng(seed)
    inputs: tuple[Array | None, ...] = step.recorded.inputs
    dy: Array = step.gradient
    weights = dy.astype(np.float64)
    checks = []
    contributions: tuple[Array | None, ...] = step.contributions
    for index, (name, x, contribution) in enumerate(zip(step.names, inputs, contributions, strict=True)):
        if x is None or contribution is None:
            continue
        direction = array_namespace(x).asarray(random.standard_normal(x.shape))
        h = STEP * (_norm(x) / max(1, x.size) ** 0.5 or 1.0)
        occurrence = sum(earlier is x for earlier in inputs[:index])
        forth = _run(call, x, occurrence, h * direction)
        back = _run(call, x, occurrence, -h * direction)
        measured = float(((forth - back) * weights).sum()) / (2 * h)
        said = float((contribution * direction).sum())
        size = max(_norm(contribution), _norm(dy) / 1000) or 1.0
        checks.append(GradientCheck(name, said, measured, abs(said - measured) / size))
    return checks


def _norm(array: Array) -> float:
    return float(array_namespace(array).square(array, dtype=np.float64).sum()) ** 0.5


def _run(call: Call, x: Array, occurrence: int, change: Array) -> Array:
    """The operation's output in float64, with `change` added to the argument whose values are x, the n-th of these."""
    seen = 0

    def moved(tensor: Tensor) -> Tensor:
        nonlocal seen
        data = tensor.data.astype(np.float64)
        if tensor.data is x:
            data = data + change if seen == occurrence else data
            seen += 1
        made = Tensor(data)
        made.labels = tensor.labels
        return made

    changed = {name: _each_tensor(value, moved) for name, value in call.arguments.items()}
    assert seen > occurrence, "an operation's inputs are among its arguments"
    return call(**changed).data


def _each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple) and any(isinstance(element, Tensor) for element in value):
        return [_each_tensor(element, function) for element in value]
    return value
