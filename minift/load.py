"""From a name to a model: find the checkpoint, build the modules, fill them, and account for every weight."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minift import checkpoint, hub
from minift.bert import BertConfig, current_name, initialize
from minift.errors import InputError
from minift.heads import TextClassification
from minift.nn import Module, skip_init
from minift.tokenizer import Tokenizer

log = logging.getLogger("minift")

TASKS = {"text-classification": TextClassification}


def load(
    name: str | Path,
    task: str = "text-classification",
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    dtype: type = np.float32,
) -> TextClassification:
    """A model with its tokenizer, in training mode.

    `name` is a Hugging Face directory, a hub id, or "minilm". `labels` names the classes in the order of their
    indices; without it they are those of the checkpoint. `max_length` is the longest text in tokens; without it, what
    the checkpoint says. Weights that the checkpoint lacks, such as a new head, are drawn as transformers draws them;
    one line says which.

    Raises InputError for a checkpoint that cannot be found or read, a tokenizer that does not fit the vocabulary, a
    weight of another shape, and for labels that are neither given nor in the checkpoint.
    """
    if task not in TASKS:
        raise InputError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    directory = hub.resolve(name)
    source = str(directory / "config.json")
    config_json = checkpoint.read_config(directory)
    config = BertConfig.from_dict(config_json, source)
    if max_length is not None and max_length > config.max_position_embeddings:
        raise InputError(
            f"max_length is {max_length}; {source} allows {config.max_position_embeddings} tokens"
        )
    tokenizer = Tokenizer.from_directory(directory, max_length)
    tokenizer.max_length = min(tokenizer.max_length, config.max_position_embeddings)
    tokenizer.check_vocabulary(config.vocab_size)
    with skip_init():
        model = TASKS[task](config, _labels(labels, config_json, source), tokenizer)
    fill(model, directory, config.initializer_range, str(name))
    return model.to(dtype).train()


def fill(model: Module, directory: Path, initializer_range: float, name: str) -> None:
    """Set every parameter from the checkpoint in `directory`; draw those it lacks, and say so in one line.

    `name` is what the user called the checkpoint.

    Raises InputError for a damaged file, for a wrong shape, and for a checkpoint that has nothing of the model.
    """
    tensors = checkpoint.read_tensors(directory, np.float32)
    key_of = {current_name(key): key for key in tensors}
    parameters = dict(model.named_parameters())
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
    if report.initialized or report.unused:
        log.warning("%s: %s", name, report)


def _labels(labels: Sequence[str] | None, config: dict, source: str) -> list[str]:
    if labels is None:
        named = config.get("id2label")
        if not isinstance(named, dict):
            raise InputError(f"{source} names no labels (id2label); give labels=[...]")
        try:
            return [str(named[index]) for index in sorted(named, key=int)]
        except ValueError:
            raise InputError(f"{source}: id2label has keys {', '.join(named)}, expected 0, 1, ...") from None
    labels = [str(label) for label in labels]
    if not labels or len(set(labels)) < len(labels):
        raise InputError(f"labels are {', '.join(labels) or 'none'}; expected one or more, each once")
    return labels
