"""From a name to a model: find the checkpoint, build the modules, fill them, and account for every weight."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minift import checkpoint, hub
from minift.device import array_library, check_precision
from minift.errors import InputError
from minift.methods import part, saved
from minift.methods.method import head_parameters
from minift.models import architecture_of
from minift.models.architecture import Architecture, ModelConfig, initialize
from minift.nn import skip_init
from minift.tasks import TASKS
from minift.tasks.task_model import TaskModel
from minift.tokenizer import Tokenizer

log = logging.getLogger("minift")

NO_HEAD = (
    "this checkpoint has no trained head; fine-tune it first (in Python, labels=[...] gives it a new head)"
)


def load(
    name: str | Path,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    dtype: type = np.float32,
    new_head: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> TaskModel:
    """A model with its tokenizer, in training mode.

    `name` is a Hugging Face directory, a hub id, or "minilm". `task` is one of `TASKS`; without it, the task that the
    checkpoint was fine-tuned for. `labels` names the classes in the order of their indices; without it they are those
    of the checkpoint. `max_length` is the longest text in tokens; without it, what the checkpoint says. `device` is
    "cpu" or "cuda", `precision` "float32", "tf32" or "bf16" (see `Module.compute_in`). Weights that the checkpoint
    lacks are drawn as transformers draws them, and one line says which; the head may be among them where `labels` are
    given or `new_head` is true.

    With `new_head`, as in a fine-tuning, `labels` are those of the examples, in any order: a checkpoint whose labels
    they are, or some of them, keeps its own with its head, and a head for others is replaced, which the line says.

    Raises InputError for a checkpoint that cannot be found or read, a tokenizer that does not fit the vocabulary, a
    weight of another shape, for a checkpoint that has no labels or no trained head where no new one is allowed, for
    its own labels in another order, and for a device, a precision or a dtype that cannot be used.
    """
    array_library(device)  # what is wrong with it is said before anything is read
    check_precision(precision, device)
    if np.dtype(dtype).kind != "f":
        raise InputError(f"dtype is {np.dtype(dtype)}, expected np.float32 or np.float64")
    if isinstance(labels, str):
        raise InputError(f"labels is {labels!r}, expected a list of names")
    directory = hub.resolve(name)
    description = saved.description_of(directory)
    if description is not None:
        model = _load_part(directory, description, task, labels, max_length)
        return model.to(dtype, device).compute_in(precision).train()
    config = checkpoint.read_config(directory)
    own = _own_labels(config, str(directory / "config.json"))
    if new_head and labels is not None and own is not None and set() < set(map(str, labels)) <= set(own):
        labels = own  # in the order that the head was trained in
    model, report = _load_whole(name, directory, config, own, task, labels, max_length, new_head)
    body = f"{model.architecture.body_name}."
    new_in_head = [key for key in report.initialized if not key.startswith(body)]
    if new_in_head and labels is None and not new_head:
        raise InputError(f"{name}: {', '.join(new_in_head)} missing: {NO_HEAD}")
    if own is not None and model.labels is not None and not new_in_head:
        _check_order(name, model.labels, own)
        if list(model.labels) != own:
            called = ", ".join(model.labels)
            log.warning("%s: the labels of its head, %s, are called %s", name, ", ".join(own), called)
    if report.initialized or report.unused:
        log.warning("%s: %s%s", name, report, _about_the_head(model, report, own))
    return model.to(dtype, device).compute_in(precision).train()


def _about_the_head(model: TaskModel, report: checkpoint.KeyReport, own: list[str] | None) -> str:
    """What to add to a report: where a head was replaced, what it was for, and what the new one is for."""
    if not set(report.initialized) & set(report.unused):
        return ""
    before = "of another shape" if own is None else f"trained for {', '.join(own)}"
    after = ", ".join(model.labels or [_name_of(type(model))])
    return f"; its head was {before}, the new one is for {after}"


def _load_whole(
    name: str | Path,
    directory: Path,
    config_json: dict[str, Any],
    own: list[str] | None,
    task: str | None,
    labels: Sequence[str] | None,
    max_length: int | None,
    new_head: bool,
) -> tuple[TaskModel, checkpoint.KeyReport]:
    """The model of a directory that holds all its weights, but for a head that it may lack, and what was found.

    `own` are the labels in its config.json. With `new_head` a head for others, or of another shape, is left unused.
    """
    source = str(directory / "config.json")
    architecture = architecture_of(config_json, source)
    config = architecture.config.from_dict(config_json, source)
    make = _task(task, labels, config_json, architecture)
    if max_length is not None and max_length > config.longest_text:
        raise InputError(f"max_length is {max_length}; {source} allows {config.longest_text} tokens")
    tokenizer = _tokenizer(directory, max_length, config)
    with skip_init():
        model = make(architecture, config, _labels(make, labels, config_json, source), tokenizer)
    _restore_settings(model, config_json)
    report = fill(model, directory, config.initializer_range, _answers(own, model), new_head)
    model.source = str(Path(name).expanduser().resolve() if Path(name).expanduser().is_dir() else name)
    model.drawn = tuple(report.initialized)
    return model, report


def _load_part(
    directory: Path,
    description: Mapping[str, Any],
    task: str | None,
    labels: Sequence[str] | None,
    max_length: int | None,
) -> TaskModel:
    """The base model that a saved part names, with the part in its place."""
    base = part.base_model(description, directory)
    try:
        base_directory = hub.resolve(base)
    except InputError as error:
        raise InputError(f"{directory}: its base model: {error}") from error
    base_config = checkpoint.read_config(base_directory)
    # minift writes a config.json beside the part; where another library did not, the part itself tells the labels.
    if (directory / "config.json").exists():
        source = str(directory / "config.json")
        config = checkpoint.read_json(directory / "config.json")
    else:
        source = str(base_directory / "config.json")
        config = saved.implied_config(description, directory, base_config)
    make = _task(task, labels, config, architecture_of(config, source))
    if make.has_labels and labels is not None:
        _check_order(directory, list(map(str, labels)), _own_labels(config, source))
    labels = _labels(make, labels, config, source)
    # The part brings its own head, so that it does not matter which labels the base model's is for.
    own = _own_labels(base_config, str(base_directory / "config.json"))
    model, _ = _load_whole(
        base, base_directory, base_config, own, _name_of(make), labels, max_length, new_head=True
    )
    _restore_settings(model, config)
    if (directory / "tokenizer.json").exists():
        model.tokenizer = _tokenizer(directory, max_length, model.config)
    saved.read(model, description, directory)
    return model


def _tokenizer(directory: Path, max_length: int | None, config: ModelConfig) -> Tokenizer:
    """The directory's tokenizer, which cuts texts to the model's longest.

    Raises InputError where it makes ids that the model does not know.
    """
    tokenizer = Tokenizer.from_directory(directory, max_length)
    tokenizer.max_length = min(tokenizer.max_length, config.longest_text)
    tokenizer.check_vocabulary(config.vocab_size)
    return tokenizer


def _name_of(make: type[TaskModel]) -> str:
    return next(name for name, each in TASKS.items() if each is make)


def _restore_settings(model: TaskModel, config: Mapping[str, Any]) -> None:
    for setting in model.settings:
        setattr(model, setting, config.get(setting, getattr(model, setting)))


def fill(
    model: TaskModel,
    directory: Path,
    initializer_range: float,
    keep_head: bool = True,
    new_head: bool = False,
) -> checkpoint.KeyReport:
    """Set every parameter from the checkpoint in `directory`, and draw those it lacks; returns which are which.

    With `new_head` the head is drawn, too, where it is not to be kept or has another shape; what the checkpoint has in
    its place is then unused.

    Raises InputError for a damaged file, for a wrong shape, and for a checkpoint that has nothing of the model.
    """
    tensors = checkpoint.read_tensors(directory, np.float32)
    key_of = {model.architecture.current_name(key): key for key in tensors}
    parameters = dict(model.named_parameters())
    head = [name for name in head_parameters(model) if name in key_of]
    fits = all(tensors.shapes[key_of[name]] == parameters[name].shape for name in head)
    replaced = head if new_head and not (keep_head and fits) else []
    key_of = {name: key for name, key in key_of.items() if name not in replaced}
    report = checkpoint.match_keys(
        {name: tensors.shapes[key] for name, key in key_of.items()},
        {name: parameter.shape for name, parameter in parameters.items()},
        directory,
    )
    if not report.loaded:
        keys = ", ".join(list(tensors)[:3])
        raise InputError(
            f"{directory}: none of the checkpoint's keys belongs to this model; it has {keys}, ..."
        )
    for key in report.loaded:
        parameters[key].data = np.array(tensors[key_of[key]])  # a copy: the file's own bytes stay as they are
    initialize({key: parameters[key] for key in report.initialized}, initializer_range)
    return replace(report, unused=[*report.unused, *replaced])


def _answers(own: list[str] | None, model: TaskModel) -> bool:
    """Whether a head that was trained for the labels `own` answers the model's question.

    It does where the names are the same, or missing on one side: LABEL_0 in the checkpoint, or 0 in the examples.
    """
    if own is None or model.labels is None:
        return True
    names, indices = list(model.labels), [str(index) for index in range(len(own))]
    unnamed = [f"LABEL_{index}" for index in indices]
    return names == own or own == unnamed or (names == indices and not any(name.isdigit() for name in own))


def _check_order(name: str | Path, labels: Sequence[str], own: list[str] | None) -> None:
    """Raise InputError where the labels are those that a head was trained for, but in another order."""
    if own is not None and list(labels) != own and sorted(labels) == sorted(own):
        raise InputError(
            f"{name}: labels are {', '.join(labels)}; its head was trained for {', '.join(own)}, in this order"
        )


def _task(
    task: str | None, labels: Sequence[str] | None, config: dict, architecture: Architecture
) -> type[TaskModel]:
    """The class of this name; without a name, of the task that a config.json says its model was trained for.

    Whoever names labels wants a task that has them, whatever the checkpoint was pre-trained on.
    """
    if task is not None:
        if task not in TASKS:
            raise InputError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
        return TASKS[task]
    possible = [each for each in TASKS.values() if labels is None or each.has_labels]
    made = [each for each in possible if each.made(config, architecture)]
    return (made or list(TASKS.values()))[0]


def _labels(
    make: type[TaskModel], labels: Sequence[str] | None, config: dict, source: str
) -> list[str] | None:
    if not make.has_labels:
        return None
    if labels is None:
        own = _own_labels(config, source)
        if own is None:
            raise InputError(f"{source}: id2label missing: {NO_HEAD}")
        return own
    labels = [str(label) for label in labels]
    if not labels or len(set(labels)) < len(labels):
        raise InputError(f"labels are {', '.join(labels) or 'none'}; expected one or more, each once")
    return labels


def _own_labels(config: Mapping[str, Any], source: str) -> list[str] | None:
    """The names of the classes in a config.json, in the order of their indices; None where it has none."""
    named = config.get("id2label")
    if not isinstance(named, dict):
        return None
    try:
        return [str(named[index]) for index in sorted(named, key=int)]
    except ValueError:
        raise InputError(f"{source}: id2label has keys {', '.join(named)}, expected 0, 1, ...") from None
