"""The methods: one file each, and one line in this table."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from minift.errors import InputError
from minift.methods.adapters import Houlsby, Pfeiffer
from minift.methods.bitfit import BitFit
from minift.methods.frozen import Frozen
from minift.methods.full import Full
from minift.methods.head import Head
from minift.methods.ia3 import IA3
from minift.methods.lora import LoRA
from minift.methods.method import Method
from minift.methods.prefix import PrefixTuning
from minift.methods.prompt import Prompt
from minift.methods.ulmfit import Ulmfit
from minift.tasks.task_model import TaskModel

METHODS: dict[str, type[Method]] = {
    each.name: each
    for each in (
        Full,
        Frozen,
        Head,
        Ulmfit,
        BitFit,
        LoRA,
        IA3,
        Houlsby,
        Pfeiffer,
        PrefixTuning,
        Prompt,
    )
}
"""Every method by the name that `--method` takes."""


AnyMethod = TypeVar("AnyMethod", bound=Method)


def apply_method(model: TaskModel, name: str, **options: Any) -> Method:
    """Fine-tune `model` by this method from now on: `apply_method(model, "lora", rank=8)`.

    Freezes what the method does not train and inserts what is new. `model.save` then writes what the method trains,
    with the head. Returns the method, whose `parameter_groups` are the optimizer's. Raises InputError for a method or
    an option that does not exist, a model without a place for it, and one that already has a method.
    """
    if model.method is not None:
        raise InputError(f"the model already has the method {model.method.name}; load it again for another")
    return attach(model, make_method(name, options))


def attach(model: TaskModel, method: AnyMethod) -> AnyMethod:
    """Fine-tune `model` by this method from now on."""
    weight = next(model.parameters()).data
    method.apply(model)
    # What is new comes to where the model is, in its dtype and its mode.
    model.to(weight.dtype, "cpu" if isinstance(weight, np.ndarray) else "cuda").train(model.training)
    model.method = method
    return method


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method of this name. Options that are text are read as the type that they must have.

    Raises InputError for a method or an option that does not exist, a missing option, and a value of another type.
    """
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    make = METHODS[name]
    fields = {field.name: field for field in dataclasses.fields(make)}  # type: ignore[arg-type]
    for option in options:
        if option not in fields:
            has = f"its options are {', '.join(fields)}" if fields else "it has no options"
            raise InputError(f"method {name} has no option {option!r}; {has}")
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in options:
            raise InputError(f"method {name} needs {field.name}, such as {field.name}=2")
    return make(
        **{option: _value(name, option, fields[option].type, value) for option, value in options.items()}
    )


def parse_options(written: Sequence[str]) -> dict[str, str]:
    """{"rank": "8"} from the ["rank=8"] of a command line. Raises InputError for what has no `=`."""
    options = {}
    for each in written:
        option, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"method option {each!r}: expected option=value, such as rank=8")
        options[option] = value
    return options


def _value(method: str, option: str, declared: Any, value: Any) -> Any:
    """`value` as the type that the option's annotation declares."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    kind = getattr(declared, "__name__", str(declared))
    try:
        if declared is bool:
            return {"true": True, "false": False}[value.lower()]
        if declared in (int, float):
            return declared(value)
    except (KeyError, ValueError):
        expected = "true or false" if declared is bool else kind
        raise InputError(f"method {method}: {option} is {value!r}, expected {expected}") from None
    return tuple(filter(None, value.split(","))) if declared == tuple[str, ...] else value
