"""What an examination must leave as it was: a snapshot of model, batch and optimizer, and its way back."""

import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minift import random
from minift.data import Batch
from minift.device import as_numpy
from minift.nn import Parameter
from minift.optim import AdamW, Moments
from minift.tasks.task_model import TaskModel


@contextmanager
def untouched(model: TaskModel, batch: Batch, optimizer: AdamW) -> Iterator[None]:
    """Inside this block all three may be changed at will; afterwards each is as before, to the bit.

    That is: values, gradients and freezing of parameters, moments and steps, every attribute of every module (the
    mode among them), the batch's arrays, and where each generator of random numbers stands. Arrays keep their
    identity, since two tensors may share one.
    """
    modules = [module for _, module in model.named_modules()]
    tensors = {
        id(each): each
        for each in [
            *(value for module in modules for value in vars(module).values() if isinstance(value, Parameter)),
            *optimizer.parameters,
            *(each for group in optimizer.param_groups for each in group["params"]),
            *optimizer.state,
        ]
    }.values()
    keepers: list[Any] = [*modules, *tensors, batch, optimizer]
    keepers += [each for each in optimizer.state.values() if isinstance(each, Moments)]
    attributes = [(keeper, dict(vars(keeper))) for keeper in keepers]
    containers = [(value, _copy(value)) for _, held in attributes for value in held.values()]
    groups = [(group, dict(group)) for group in optimizer.param_groups]
    numbers = (random.default_generator.seed, random.default_generator.calls)
    numpy_state, python_state = np.random.get_state(), python_random.getstate()
    try:
        yield
    finally:
        for keeper, held in attributes:
            vars(keeper).clear()
            vars(keeper).update(held)
        for value, kept in containers:
            _restore(value, kept)
        for group, held in groups:
            group.clear()
            group.update(held)
        random.default_generator.seed, random.default_generator.calls = numbers
        np.random.set_state(numpy_state)
        python_random.setstate(python_state)


def _copy(value: Any) -> Any:
    """The content of an array, a list or a dict; None for what cannot change."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | dict):
        return type(value)(value) if type(value) in (list, dict) else None
    return None


def _restore(value: Any, kept: Any) -> None:
    if kept is None:
        return
    if isinstance(value, np.ndarray):
        if not np.array_equal(value, kept, equal_nan=value.dtype.kind == "f"):
            value[...] = kept
    elif isinstance(value, list):
        value[:] = kept
    else:
        value.clear()
        value.update(kept)


def move_to_cpu(model: TaskModel, optimizer: AdamW) -> None:
    """Examine in NumPy and float32, whatever the model is trained in."""
    for each in {*model.parameters(), *optimizer.parameters}:
        each.data = as_numpy(each.data)
        each.grad = None if each.grad is None else as_numpy(each.grad)
    for moments in optimizer.state.values():
        moments.first, moments.second = as_numpy(moments.first), as_numpy(moments.second)
    for _, module in model.named_modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = None  # type: ignore[attr-defined]
