"""How far each part of a model moves: in single steps, and from the beginning.

The ratio of an update's norm to the weights' norm says whether a rate is sensible (the notes of Stanford's CS231n,
"Ratio of weights:updates", name 1e-3 for training from nothing), and its pattern over the layers what fine-tuning
changes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from minift_kernels import grad_norm as norm_kernels

from minift.device import as_numpy
from minift.history import Array
from minift.tasks.task_model import TaskModel

COLUMNS = 64
"""How many steps are measured at most."""

EVERY, FEWEST = 8, 4
"""A measurement costs a part of a step (`benchmarks/tracing.py` times it), so at most one of 8 steps is measured, but
one of fewer where there would not be 4."""


class Movement:
    """Measures the trained parameters of a model, part by part (`TaskModel.parts`), in some of `total_steps` steps.

    Made before the first step: a copy of the trained parameters is kept to tell how far they went.
    """

    def __init__(self, model: TaskModel, total_steps: int):
        self.parts = {
            name: [each for each in part.values() if each.requires_grad]
            for name, part in model.parts().items()
        }
        self.start = {each: np.array(as_numpy(each.data)) for part in self.parts.values() for each in part}
        self.stride = max(-(-total_steps // COLUMNS), min(EVERY, -(-total_steps // FEWEST)))

    @contextmanager
    def measuring(self, step: int) -> Iterator[dict[str, dict[str, list[float]]]]:
        """Around the optimizer's step number `step` (1, 2, ...): fills what it gives, if this step is to be measured.

        With {"parts": {"gradient": norms, "update": norms, "weight": norms}}, of each part: of its gradient before any
        clipping, of what the step adds to its weights, and of these before it. 0 for a part that stands still.
        """
        found: dict[str, dict[str, list[float]]] = {}
        if step % self.stride:
            yield found
            return
        moving = [[each for each in part if each.grad is not None] for part in self.parts.values()]
        gradient = [norm([each.grad for each in part]) for part in moving]
        before = [[each.data.copy() for each in part] for part in moving]
        weight = [norm(part) for part in before]
        yield found
        for part, values in zip(moving, before, strict=True):
            for each, value in zip(part, values, strict=True):
                value -= each.data  # in the copy's own memory
        found["parts"] = {"gradient": gradient, "update": [norm(part) for part in before], "weight": weight}

    def since_start(self) -> dict[str, tuple[float, float]]:
        """Of each part the norm of all that was added to its trained weights, and their norm at the start."""
        return {
            name: (
                norm([as_numpy(each.data) - self.start[each] for each in part]),
                norm([self.start[each] for each in part]),
            )
            for name, part in self.parts.items()
        }


def norm(arrays: list[Array]) -> float:
    """The norm of all arrays laid end to end; 0 where there are none."""
    return float(norm_kernels.forward(arrays))
