"""Saving what a method trains, alone: a file of megabytes or less beside one base model for many tasks.

The head belongs to it. A part that was saved without its head looks sound, loads, and answers at random (PEFT's users
report it again and again), so a part without the head, or without anything else that was trained, is refused.

Here is also minift's own format, for methods that train weights that the model has anyway and that no other library
has a format for: `minift_part.json` says which method and which base model, `minift_part.safetensors` has the
weights under their own names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minift import checkpoint
from minift.errors import InputError
from minift.methods.method import Method, head_parameters
from minift.nn import Parameter
from minift.tasks.task_model import TaskModel

DESCRIPTION = "minift_part.json"
WEIGHTS = "minift_part.safetensors"


def save(method: Method, model: TaskModel, directory: Path) -> None:
    """Write everything that is trained, in minift's own format."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    write(model, directory / WEIGHTS, trained | head_parameters(model), str)
    description = {
        "method": method.name,
        "options": dataclasses.asdict(method),  # type: ignore[call-overload]
        "base_model_name_or_path": model.source,
    }
    checkpoint.write_json(directory / DESCRIPTION, description)


def write(model: TaskModel, path: Path, part: Mapping[str, Parameter], key_of: Callable[[str], str]) -> None:
    """Write a part of the model, each parameter under `key_of` its name, and the model's description beside it.

    Raises InputError where something that was trained, or the head, is not in the part.
    """
    needed = head_parameters(model) | {
        name: each for name, each in model.named_parameters() if each.requires_grad
    }
    lost = [name for name in needed if name not in part]
    if lost:
        raise InputError(
            f"{path}: not written: {', '.join(lost)} would be lost, for this file has no place for it"
        )
    tensors = {key_of(name): parameter.numpy().astype(np.float32) for name, parameter in part.items()}
    model.save_description(path.parent)
    checkpoint.write_tensors(path, tensors)


def read(
    model: TaskModel, path: Path, inserted: Mapping[str, Parameter], key_of: Callable[[str], str]
) -> None:
    """Fill the model from a part that `write` or another library wrote; what is filled is what is trained.

    `inserted` are the parameters that the method added, which the part must have, as it must have the head. Raises
    InputError where it does not, where it has weights that the model has not, and for one of another shape.
    """
    tensors = checkpoint.read_safetensors(path, np.float32)
    parameters = dict(model.named_parameters())
    # Where PEFT wraps a layer, it calls the layer's own weights those of its base_layer.
    stored_as = {key.replace(".base_layer.", "."): key for key in tensors}
    report = checkpoint.match_keys(
        {key: tensors.shapes[stored] for key, stored in stored_as.items()},
        {key_of(name): each.shape for name, each in parameters.items()},
        path,
    )
    if report.unused:
        raise InputError(
            f"{path}: made for another base model: {report.unused[0]} has no place in {model.source}"
        )
    name_of = {key_of(name): name for name in parameters}
    missing = [name for name in [*inserted, *head_parameters(model)] if key_of(name) not in stored_as]
    if missing:
        raise InputError(f"{path}: {', '.join(map(key_of, missing))} missing; was it saved without its head?")
    for parameter in parameters.values():
        parameter.requires_grad = False
    for key in report.loaded:
        parameter = parameters[name_of[key]]
        parameter.data = np.array(tensors[stored_as[key]]).astype(parameter.dtype, copy=False)
        parameter.requires_grad = True


def base_model(description: Mapping[str, Any], source: Path) -> str:
    """The name of the model that a part belongs to. Raises InputError where it says none."""
    name = description.get("base_model_name_or_path") or description.get("model_name")
    if not isinstance(name, str):
        raise InputError(f"{source}: base_model_name_or_path missing: whose weights is this a part of?")
    return name
