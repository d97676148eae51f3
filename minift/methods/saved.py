"""From a directory that holds what a method trained to the model: find out whose format it is, and fill the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minift import checkpoint
from minift.errors import InputError
from minift.methods import METHODS, adapters, attach, make_method, part, peft
from minift.tasks.task_model import TaskModel

OF_PEFT = {each.peft_type: each for each in METHODS.values() if issubclass(each, peft.PeftMethod)}
"""The methods by what PEFT calls them."""


def description_of(directory: Path) -> dict[str, Any] | None:
    """What a directory with a part of a model says of it; None where it holds no part."""
    for name in (part.DESCRIPTION, peft.CONFIG):
        if (directory / name).exists():
            return checkpoint.read_json(directory / name)
    return None


def implied_config(
    description: Mapping[str, Any], directory: Path, base: Mapping[str, Any]
) -> dict[str, Any]:
    """What a config.json would say of a part that has none: its head, and its labels.

    The labels are those of the base model's config.json, where it has as many; otherwise they are numbers.
    """
    config = dict(base)
    for head, task_type in peft.TASK_TYPES.items():
        if description.get("task_type") == task_type:
            config["architectures"] = [f"For{head}"]
    if "config" in description:  # AdapterHub's, which keeps the head apart
        config["architectures"] = [description.get("model_class", "")]
    head = adapters.HEAD_WEIGHTS if "config" in description else peft.WEIGHTS
    shapes = checkpoint.read_safetensors(directory / head).shapes if (directory / head).exists() else {}
    for key, shape in shapes.items():
        is_classifier = f".{key}".endswith(
            (".classifier.weight", ".score.weight", ".classifier.out_proj.weight")
        )
        if is_classifier and len(config.get("id2label") or ()) != shape[0]:
            config["id2label"] = {str(index): f"LABEL_{index}" for index in range(shape[0])}
    return config


def read(model: TaskModel, description: Mapping[str, Any], directory: Path) -> None:
    """Give the base model the method and the weights of the directory. Raises InputError where they do not fit it."""
    if "peft_type" in description:
        method = attach(model, peft.read(OF_PEFT, description, directory))
        part.read(model, [directory / peft.WEIGHTS], method.inserted(model), method.key_of)
    elif "method" in description:
        method = attach(model, make_method(description["method"], description.get("options", {})))
        part.read(model, [directory / part.WEIGHTS], method.inserted(model), str)
    elif "config" in description:
        method = attach(model, adapters.read(description, directory))
        adapters.fill(model, method, directory)
    else:
        raise InputError(f"{directory / peft.CONFIG}: neither PEFT's nor AdapterHub's nor minift's")
