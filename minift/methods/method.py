"""What all methods have in common: what of a model is trained, how fast, from when on, and what is saved of it.

A method is one file with one subclass of `Method`, a dataclass of its options, and one line in the table of
`methods/__init__.py`. The training loop knows of a method only what this class declares.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from minift.data import Batch
from minift.errors import InputError
from minift.models import MODELS
from minift.nn import Linear, Module, Parameter
from minift.optim import decay_groups
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor


class Method:
    """A way to fine-tune; its fields are its options."""

    name: ClassVar[str]
    """What `--method` calls it."""

    def apply(self, model: TaskModel) -> None:
        """Freeze what is not trained, and insert what is new. Raises InputError where the model has no place for it.

        Whatever will be trained at some time requires a gradient afterwards: the optimizer's groups are made of it.
        """
        raise NotImplementedError

    def parameter_groups(self, model: TaskModel, learning_rate: float, weight_decay: float) -> list[dict]:
        """The optimizer's groups: what is trained, each at its rate. The log shows the first group's."""
        return [{**group, "lr": learning_rate} for group in decay_groups(model, weight_decay)]

    def start_epoch(self, model: TaskModel, epoch: int) -> None:
        """Called before the first step of each epoch (0, 1, ...), and when a stopped run goes on inside one."""

    def save(self, model: TaskModel, directory: Path) -> None:
        """Write what `minift.load` makes the trained model of: here, the whole model."""
        model.save_whole(directory)

    def inserted(self, model: TaskModel) -> dict[str, Parameter]:
        """The parameters that it added to the model, by their paths."""
        return {}

    def answer(self, model: TaskModel, batch: Batch) -> Tensor:
        """What the head says of a packed batch; a method may make another batch of it first."""
        return model.plain_answer(batch)

    @property
    def tokens_in_front(self) -> int:
        """How many positions, and rows of a cache, the method takes in front of every text."""
        return 0

    def unload(self, model: TaskModel) -> None:
        """Make of the model one of the plain architecture that computes the same, which `save` writes whole.

        Raises InputError where no plain model computes the same.
        """
        model.method = None


LANGUAGE_MODELS = ("CausalLM", "MaskedLM")
"""The heads that are pre-trained with the body, so that they are frozen as it is."""


def head_parameters(model: TaskModel) -> dict[str, Parameter]:
    """What answers the task's question: the parameters beside the body, and whatever the checkpoint lacked.

    Every method trains and saves them.
    """
    body = f"{model.architecture.body_name}."
    is_new = model.head not in LANGUAGE_MODELS
    return {
        name: each
        for name, each in model.named_parameters()
        if name in model.drawn or (is_new and not name.startswith(body))
    }


def freeze_body(model: TaskModel) -> None:
    """Freeze all but the head, as the methods begin that add something small to a frozen model."""
    model.requires_grad_(False)
    for parameter in head_parameters(model).values():
        parameter.requires_grad = True


def replace_module(model: Module, path: str, module: Module) -> None:
    """Put `module` in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(dict(model.named_modules())[parent], name, module)


def linear_layers(model: TaskModel) -> dict[str, Linear]:
    """The linear layers of the model's layers, by their paths."""
    inside = {id(each) for layer in model.body.layers for _, each in layer.named_modules()}
    return {
        path: each for path, each in model.named_modules() if id(each) in inside and isinstance(each, Linear)
    }


def targeted(model: TaskModel, targets: Sequence[str], method: str) -> dict[str, Linear]:
    """The linear layers that the targets name, by their paths.

    A target is the end of a path, from a dot on, such as `query`, and may be a regular expression. Raises InputError
    where one matches nothing.
    """
    layers = linear_layers(model)
    found = {}
    for target in targets:
        try:
            pattern = re.compile(rf"(.*\.)?({target})")
        except re.error as error:
            raise InputError(
                f"method {method}: target {target!r} is no regular expression: {error}"
            ) from None
        matching = {path: layer for path, layer in layers.items() if pattern.fullmatch(path)}
        if not matching:
            there_are = sorted({re.sub(r".*\.\d+\.", "", path) for path in layers})
            raise InputError(
                f"method {method}: target {target!r} matches no linear layer; there are {', '.join(there_are)}"
            )
        found |= matching
    return {path: layer for path, layer in layers.items() if path in found}


def parts_of_layers(model: TaskModel, parts: Sequence[str], method: str) -> list[str]:
    """Where the model's family has these parts of a layer, as `Architecture.layer_parts` says; each place once.

    Raises InputError where it does not have them all, with the families that do.
    """
    known = model.architecture.layer_parts
    if any(part not in known for part in parts):
        families = [name for name, each in MODELS.items() if all(part in each.layer_parts for part in parts)]
        raise InputError(
            f"method {method}: it is there for {', '.join(families)}, not for {model.architecture.model_type}"
        )
    return list(dict.fromkeys(known[part] for part in parts))
