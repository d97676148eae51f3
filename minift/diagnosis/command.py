"""What `minift doctor` examines: the model of a directory with its training file, or what a script is about to step."""

import json
import math
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minift
from minift import losses
from minift.data import Batch, Columns
from minift.diagnosis.case import Case
from minift.diagnosis.dealt import MANY, labels_belong_to_texts
from minift.diagnosis.doctor import doctor
from minift.diagnosis.finding import Finding
from minift.errors import InputError
from minift.load import load
from minift.losses import label_indices
from minift.methods import apply_method, parse_options
from minift.optim import AdamW
from minift.report import FILE as REPORT
from minift.tasks.task_model import TaskModel
from minift.train import TrainingConfig


class Examined(NamedTuple):
    """What `doctor` takes."""

    model: TaskModel
    batch: Batch
    optimizer: AdamW
    many: Batch | None = None
    """More texts of the training file, since a batch is often too small to tell whether labels belong to texts."""
    backward: bool = True
    """Whether a script's model had a gradient when the script's optimizer was about to step."""


NO_BACKWARD = Finding(
    "no-backward",
    "optimizer.step()",
    "when it is first called, no trained parameter has a gradient",
    "call loss.backward() before it, and optimizer.zero_grad() only after it",
)
"""What a script alone can show: `doctor` sees a fine-tuning before its backward pass."""


def examine(examined: Examined) -> list[Finding]:
    """What `doctor` finds, whether the labels of many texts belong to them, and whether a script goes backward."""
    found = doctor(examined.model, examined.batch, examined.optimizer)
    known = {finding.name for finding in found}
    if examined.many is not None and not known & {"labels-shuffled", "label-out-of-range"}:
        found += labels_belong_to_texts(Case(examined.model, examined.many, examined.optimizer))
    if not examined.backward:
        found.insert(0, NO_BACKWARD)
    return found


# ---- A directory ---------------------------------------------------------------------------------


def case_of_directory(
    directory: Path, train: Path | None, batch_size: int | None, learning_rate: float | None, columns: Columns
) -> Examined:
    """A saved model, the first batch of its training file, and an optimizer as a training begins with.

    What is None is as it was in the run that wrote the directory, if its report is there. Raises InputError for a
    directory without a model, without a training file, and for files that do not fit the model.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory (or give a training script, which ends in .py)")
    run = options_of_run(directory / REPORT)
    if train is None:
        if "train" not in run:
            raise InputError(f"{directory}: no {REPORT} says what it was trained on; pass --train FILE")
        train = Path(run["train"][0])
        if not train.exists():
            raise InputError(f"{train}: the run's training file is not there; pass --train FILE")
    model = load(str(directory), max_length=_option(run, "max-length", None, int))
    if model.method is None and "method" in run:
        apply_method(model, run["method"][0], **parse_options(run.get("method-options", [])))
    if not any(columns):
        names = ("text-column", "pair-column", "label-column")
        columns = Columns(*(_option(run, name, None, str) for name in names))
    examples = model.read(train, columns)
    model.prepare(examples)
    seed = _option(run, "seed", TrainingConfig.seed, int)
    size = _option(run, "batch-size", TrainingConfig.batch_size, int) if batch_size is None else batch_size
    if size < 1:
        raise InputError(f"batch_size is {size}, expected 1 or more")
    batch = next(model.batches(examples, size, seed=seed))
    rate = learning_rate
    if rate is None:
        rate = _option(run, "learning-rate", TrainingConfig.learning_rate, float)
    if not 0 < rate < math.inf:
        raise InputError(f"learning_rate is {rate}, expected a finite number above 0")
    decay = _option(run, "weight-decay", TrainingConfig.weight_decay, float)
    method = model.method or apply_method(model, "full")
    optimizer = AdamW(method.parameter_groups(model, rate, decay))
    return Examined(model, batch, optimizer, next(model.batches(examples, max(size, MANY), seed=seed)))


def options_of_run(report: Path) -> dict[str, list[str]]:
    """The options of the command that a run's report holds: {"train": ["reviews.tsv"], ...}; {} without a report."""
    if not report.exists():
        return {}
    written = re.search(r'"command":("(?:[^"\\]|\\.)*")', report.read_text(encoding="utf-8"))
    options: dict[str, list[str]] = {}
    if written is not None:
        for word in shlex.split(json.loads(written[1]))[2:]:
            if word.startswith("--"):
                options[word[2:]] = []
            elif options:
                options[list(options)[-1]].append(word)
    return options


def _option(run: dict[str, list[str]], name: str, default: Any, kind: Callable[[str], Any]) -> Any:
    return kind(run[name][0]) if run.get(name) else default


# ---- A script ------------------------------------------------------------------------------------


class FirstStep(BaseException):
    """Raised in the place of an optimizer's first step; no Exception, so that the script does not catch it."""


def case_of_script(script: Path) -> Examined:
    """Run a training script up to its first optimizer.step(): the model and the batch that were last used, and the
    optimizer.

    Labels are the batch's own, or what minift.cross_entropy or minift.mse_loss was given. Raises InputError for a
    script that is not there, fails, or ends before a step, and where model, batch or labels cannot be found.
    """
    if not script.is_file():
        raise InputError(f"{script}: no such script")
    seen: dict[str, Any] = {}
    arguments, path = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [str(script)], [str(script.parent)]
    try:
        with watching(seen):
            runpy.run_path(str(script), run_name="__main__")
    except FirstStep:
        pass
    except (InputError, OSError):
        raise
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{script}: it failed before its first optimizer.step(): {what}") from error
    finally:
        sys.argv, sys.path[:] = arguments, path
    if "optimizer" not in seen:
        raise InputError(f"{script}: it ended without an optimizer.step() of a minift.AdamW")
    if "model" not in seen:
        raise InputError(f"{script}: no minift model was used before the first optimizer.step()")
    model, batch = seen["model"], seen["batch"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    backward = not trained or any(parameter.grad is not None for parameter in trained)
    for parameter in trained:
        parameter.grad = None  # the doctor is asked before a step, and the script was about to take it
    if batch.labels is None and "targets" in seen:
        targets = seen["targets"]
        if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
            batch.labels = targets
        else:
            batch.labels = label_indices(targets, model.labels, model.outputs)
    if batch.labels is None:
        raise InputError(f"{script}: its batch has no labels; make it with model.pack(texts, labels)")
    return Examined(model, batch, seen["optimizer"], backward=backward)


@contextmanager
def watching(seen: dict[str, Any]) -> Iterator[None]:
    """Inside this block the model, batch and targets that are used are noted, and the first step ends all."""
    forward, begin = TaskModel.forward, AdamW.__init__

    def noted_forward(model, inputs):
        batch = inputs if isinstance(inputs, Batch) else model.encode(inputs)
        if batch is not inputs:
            seen.pop("targets", None)
        seen.update(model=model, batch=batch)
        return forward(model, batch)

    def noted_loss(function):
        def loss(answers, targets, **options):
            seen["targets"] = targets
            return function(answers, targets, **options)

        return loss

    def stop(optimizer, *_, **__):
        seen["optimizer"] = optimizer
        raise FirstStep

    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        def noted_begin(optimizer, *arguments, **options):
            begin(optimizer, *arguments, **options)
            if type(optimizer).step is not stop:  # a subclass with a step of its own
                replace(type(optimizer), "step", stop)

        replace(TaskModel, "forward", noted_forward)
        replace(AdamW, "step", stop)
        replace(AdamW, "__init__", noted_begin)
        for owner in (minift, losses):
            for name in ("cross_entropy", "mse_loss"):
                replace(owner, name, noted_loss(getattr(losses, name)))
        yield
