"""Saving what a method trains, alone: a file of megabytes or less beside one base model for many tasks.

The head belongs to it. A part that was saved without its head looks sound, loads, and answers at random (PEFT's users
report it again and again), so a part without the head, or without anything else that was trained, is refused.

Here is also minift's own format, for methods that train weights that the model has anyway and that no other library
has a format for: `minift_part.json` says which method and which base model, `minift_part.safetensors` has the
weights under their own names.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minift import checkpoint
from minift.errors import InputError
from minift.methods.method import Method, head_parameters
from minift.nn import Parameter
from minift.tasks.task_model import TaskModel

DESCRIPTION, WEIGHTS = checkpoint.FORMATS["minift"]


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
    checkpoint.remove_other_formats(directory, "minift")


def write(model: TaskModel, path: Path, part: Mapping[str, Parameter], key_of: Callable[[str], str]) -> None:
    """Write a part of the model, each parameter under `key_of` its name, and the model's description beside it.

    Raises InputError as `check_place` and `check_complete` do.
    """
    check_place(model, path.parent)
    check_complete(model, part, path)
    model.save_description(path.parent)
    checkpoint.write_tensors(path, tensors({key_of(name): each for name, each in part.items()}))


def tensors(parameters: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
    """The parameters' values, as they are written."""
    return {key: each.numpy().astype(np.float32) for key, each in parameters.items()}


def check_place(model: TaskModel, directory: Path) -> None:
    """Raise InputError for the directory of the base model: its weights, which the part needs, would not stay there."""
    if str(directory.resolve()) == model.source:
        raise InputError(
            f"{directory}: not written: this is the base model's own directory, which the part needs as it is; "
            "choose another"
        )


def check_complete(model: TaskModel, part: Mapping[str, Parameter], path: Path) -> None:
    """Raise InputError where something that was trained, or the head, is not in the part."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    lost = [name for name in head_parameters(model) | trained if name not in part]
    if lost:
        raise InputError(
            f"{path}: not written: {', '.join(lost)} would be lost, for this file has no place for it"
        )


def read(
    model: TaskModel, paths: Sequence[Path], inserted: Mapping[str, Parameter], key_of: Callable[[str], str]
) -> None:
    """Fill the model from a part that `write` or another library wrote; what is filled is what is trained.

    `inserted` are the parameters that the method added, which the files must have, as they must have the head. Raises
    InputError where they do not, where they have weights that the model has not, and for one of another shape.
    """
    files = {path: checkpoint.read_safetensors(path, np.float32) for path in paths}
    # Where PEFT wraps a layer, it may call the layer's own weights by the wrapping, and save what it wrapped, too.
    stored = {
        key.replace(".base_layer.", ".").replace(".modules_to_save.", "."): (path, key)
        for path, found in files.items()
        for key in found
        if ".original_module." not in key
    }
    parameters = dict(model.named_parameters())
    report = checkpoint.match_keys(
        {key: files[path].shapes[name] for key, (path, name) in stored.items()},
        {key_of(name): each.shape for name, each in parameters.items()},
        paths[0],
    )
    if report.unused:
        raise InputError(
            f"{paths[0]}: made for another base model: {report.unused[0]} has no place in {model.source}"
        )
    missing = [name for name in [*inserted, *head_parameters(model)] if key_of(name) not in stored]
    if missing:
        raise InputError(
            f"{paths[0]}: {', '.join(map(key_of, missing))} missing; was it saved without its head?"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad = key_of(name) in stored
        if parameter.requires_grad:
            path, key = stored[key_of(name)]
            parameter.data = np.array(files[path][key]).astype(parameter.dtype, copy=False)


def base_model(description: Mapping[str, Any], source: Path) -> str:
    """The name of the model that a part belongs to. Raises InputError where it says none."""
    name = description.get("base_model_name_or_path") or description.get("model_name")
    if not isinstance(name, str):
        raise InputError(f"{source}: base_model_name_or_path missing: whose weights is this a part of?")
    return name
