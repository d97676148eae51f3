"""What a planted bug is, and how it gets into a set-up without a trace afterwards."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from minift import optim
from minift.data import Batch
from minift.optim import AdamW


class Setup(NamedTuple):
    """What a training step needs."""

    model: Any
    batch: Batch
    optimizer: AdamW


@dataclass(frozen=True)
class Plant:
    """One bug at one place."""

    name: str
    """What is wrong, as `minift.doctor` calls it."""
    place: str
    """Where, or in which variant; with the name it tells a plant from all others."""
    description: str
    """What happened, in one sentence."""
    right: str
    """What the code should have been."""
    make: Callable[[Path], Setup]
    """Builds the set-up without the bug, always the same; files go into the directory."""
    plant: Callable[[Setup], AbstractContextManager[Setup]]
    """Inside the block the set-up that it gives has the bug; afterwards everything is as before."""


def planted(
    name: str, make: Callable[[Path], Setup], description: str, right: str
) -> Callable[[Callable[[Setup], Iterator[Setup]]], Plant]:
    """For a generator that plants the bug, yields the set-up that has it, and undoes it; its name is the place."""

    def as_plant(plant: Callable[[Setup], Iterator[Setup]]) -> Plant:
        return Plant(name, plant.__name__.replace("_", " "), description, right, make, contextmanager(plant))

    return as_plant


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Inside this block the attributes of a module, a class or an object have other values."""
    own = {name: vars(owner)[name] for name in values if name in vars(owner)}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in own:
                setattr(owner, name, own[name])
            else:
                delattr(owner, name)


Update = Callable[..., np.ndarray]
"""What AdamW subtracts from w: update(w, m, v, t, lr, b1, b2, eps), its decay aside."""


def updating(update: Update, coupled_decay: bool = False) -> AbstractContextManager[None]:
    """The optimizer as if its author had written this update, in NumPy."""

    def step(
        parameters,
        gradients,
        firsts,
        seconds,
        *,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        step,
        gradient_scale=1.0,
    ):
        for w, g, m, v in zip(parameters, gradients, firsts, seconds, strict=True):
            g = gradient_scale * g + (weight_decay * w if coupled_decay else 0)
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            if not coupled_decay:
                w -= lr * weight_decay * w
            w -= update(w, m, v, step, lr, beta1, beta2, eps)

    return replaced(optim, adamw_kernels=SimpleNamespace(step=step))
