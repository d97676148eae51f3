"""Searching for settings: many fine-tunings, each with other values, and one page that says which were best.

Optuna chooses the values (the tree-structured Parzen estimator, Bergstra et al. 2011) and ends runs that stay behind
(median pruning). What was tried stands in one SQLite file, so a sweep that was killed goes on, and several processes,
each running the same command, share one.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import sqlite3
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from minift import checkpoint
from minift.data import Columns
from minift.errors import DivergedError, InputError
from minift.evaluate import evaluate
from minift.tasks import TASKS
from minift.tasks.task_model import TaskModel
from minift.train import (
    ASIDE,
    TrainingConfig,
    begin,
    check_options,
    check_types,
    decisive_options,
    each_warning_once,
    finetune,
)

STORAGE = "sweep.db"
PAGE = "results.md"
BEST = "best"
DIVERGED = "diverged"
"""Under this name the storage keeps why a run left the numbers."""
LOCK_SECONDS = 20.0
"""How long to wait for another process that writes the storage."""
ALIVE_SECONDS = 60
"""How often a process says that its run goes on; one that is silent for twice as long was killed, and is run again."""
LESS_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Sweep(TrainingConfig):
    """Everything that decides how a sweep goes: a fine-tuning's options, and which of them are searched."""

    search: tuple[str, ...] = ("learning_rate=2e-5:1e-4", "batch_size=16,32", "epochs=2:10")
    """What is tried: option=low:high for any number between (on a logarithmic scale, if low is above 0), option=a,b,c
    for one of these. A method's own options are method.option, such as method.rank=4,8,16."""
    trials: int = 20
    """How many fine-tunings the sweep has in all, those of earlier and other processes counted."""


def sweep(config: Sweep) -> dict[str, Any]:
    """Fine-tune until the sweep has `config.trials` runs; returns the best one's values and its dev metrics.

    The directory `config.out` then holds sweep.db, results.md and, under best/, what the best run wrote. A run whose
    loss stops being a number counts as one that was ended early; with `config.overwrite` a sweep begins anew. Raises
    InputError where there is no dev set or no Optuna, for options out of range, for a search that names no option, or
    one twice, for a storage that stays locked, and where no run came to its end.
    """
    optuna = _optuna()
    check_types(config)
    if config.dev is None:
        raise InputError("a sweep needs --dev: it searches for what does best there")
    if config.trials < 1:
        raise InputError(f"trials is {config.trials}, expected 1 or more")
    space = _space(config)
    options = decisive_options(config)
    checkpoint.make_directory(config.out)
    if config.overwrite:
        begin(_run_config(config, {name: choices[0] for name, choices in space.items()}, config.out))
        _remove(config.out)  # now that a run can begin
    path = config.out / STORAGE
    try:
        study = _study(optuna, path)
        _same_sweep(study, path, options)
        with each_warning_once():
            while _another_run_is_due(optuna, study, config.trials):
                study.optimize(
                    lambda trial: _run(optuna, trial, config, space), n_trials=1, catch=_EnoughError
                )
                _keep_best(study, config.out)
        _keep_best(study, config.out)
        trials = study.trials
        page, best = _page(trials, space), _best(trials)
    except Exception as error:
        cause = _cause_in_storage(error)
        if cause is None:
            raise
        raise _storage_error(path, cause) from error
    own = config.out / f"{PAGE}-{os.getpid()}"  # other processes may be writing theirs
    checkpoint.write_text(own, page)
    os.replace(own, config.out / PAGE)
    if best is None:
        reasons = (
            f"; run {each.number}: {each.user_attrs[DIVERGED]}"
            for each in trials
            if DIVERGED in each.user_attrs
        )
        raise InputError(
            f"{config.out / PAGE}: all runs were ended early, so none is the best{next(reasons, '')}"
        )
    return {"values": best.params, "metrics": best.user_attrs["metrics"], "page": page}


def _remove(out: Path) -> None:
    """Remove an earlier sweep: its storage first, which must not tell of directories that are gone."""
    for path in sorted(out.glob(f"{STORAGE}*")):
        path.unlink()
    for name in (PAGE, BEST):
        (out / name).unlink(missing_ok=True)
    for path in out.glob("trial-[0-9]*"):
        shutil.rmtree(path)


# ---- The storage, which several processes share ----------------------------------------------------


class _EnoughError(Exception):
    """Another process was quicker to begin the sweep's last run."""


def _study(optuna, path: Path):
    """The sweep in the storage, begun if it is not there. A run that a killed process left behind is repeated.

    Two processes that set up one file stumble over each other. So each sets up its own, and one of them gets the name.
    """
    if not path.exists():
        own = path.with_name(f"{STORAGE}-{os.getpid()}.tmp")
        own.unlink(missing_ok=True)
        _open(optuna, own)
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    return _open(optuna, path)


def _open(optuna, path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since 2021
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}",
            engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
            heartbeat_interval=ALIVE_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
    return optuna.create_study(
        study_name="sweep", storage=storage, direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.TPESampler(), pruner=optuna.pruners.MedianPruner(),
    )  # fmt: skip


def _another_run_is_due(optuna, study, trials: int) -> bool:
    """Whether this process is to begin a run; waits while other processes have all that are missing.

    For they may be killed: then their runs are silent for a while, count as failed, and are begun again here.
    """
    told = False
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        states = [trial.state.name for trial in study.trials]
        done = states.count("COMPLETE") + states.count("PRUNED")
        running = states.count("RUNNING")
        if done >= trials or done + running < trials:
            return done < trials
        if not told:
            print(f"waiting for {running} runs of other processes", file=sys.stderr)
            told = True
        time.sleep(1)


def _rank(trial) -> int:
    """How many runs, failed ones not counted, were begun before this one."""
    return sum(each.number < trial.number and each.state.name != "FAIL" for each in trial.study.trials)


def _optuna():
    try:
        import optuna
    except ImportError:
        raise InputError('a sweep needs Optuna: pip install "minift[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed run is told by what it raises
    return optuna


def _cause_in_storage(error: BaseException | None) -> BaseException | None:
    """SQLite's error that an error comes from, if it does: Optuna and SQLAlchemy wrap it, and may then stumble on."""
    while error is not None and not isinstance(error, sqlite3.Error):
        error = error.__cause__ or error.__context__
    return error


def _storage_error(path: Path, cause: BaseException) -> InputError:
    reason = str(cause)
    if "locked" in reason:
        return InputError(
            f"{path}: the sweep's storage is locked by another process and stayed so for {LOCK_SECONDS:g} seconds"
        )
    return InputError(f"{path}: the sweep's storage cannot be used: {reason}")


# ---- What is searched ----------------------------------------------------------------------------

Choices = list[Any] | tuple[Any, Any]
"""A list of values, or the lowest and the highest."""


NOT_SEARCHED = {"train", "dev", "method_options", *ASIDE}


def _space(config: Sweep) -> dict[str, Choices]:
    """What is tried of each option that is searched.

    Raises InputError for an option that there is not, that stands there twice, or that is out of range.
    """
    if not config.search:
        raise InputError("search is empty: expected option=low:high or option=a,b")
    space: dict[str, Choices] = {}
    for written in config.search:
        name, choices = _parse(written)
        if name in space:
            raise InputError(f"search {written!r}: {name} is searched twice")
        space[name] = choices
    first = {name: choices[0] for name, choices in space.items()}
    for name, choices in space.items():
        for value in choices:
            check_options(_run_config(config, {**first, name: value}, config.out))
    return space


def _parse(written: str) -> tuple[str, Choices]:
    """("learning_rate", (2e-5, 1e-4)) from learning_rate=2e-5:1e-4, ("epochs", [2, 3]) from epochs=2,3."""
    name, equals, values = written.partition("=")
    own = {name: kind for name, kind in get_type_hints(TrainingConfig).items() if name not in NOT_SEARCHED}
    if not equals or not (name in own or name.startswith("method.")):
        known = ", ".join(sorted(own))
        raise InputError(
            f"search {written!r}: expected option=low:high or option=a,b; the options are {known}, and method.option"
        )
    kind = own.get(name)
    if ":" not in values or kind is str:  # a path may have a colon
        return name, [_value(each, kind, written) for each in values.split(",")]
    low, _, high = values.partition(":")
    bounds = _value(low, kind, written), _value(high, kind, written)
    if any(isinstance(each, str) for each in bounds) or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise InputError(f"search {written!r}: expected two finite numbers, the lower one first")
    return name, bounds


def _value(text: str, kind: Any, written: str) -> Any:
    """The text as the option's type; a method's option, whose type is None here, as a number where it is one."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InputError(f"search {written!r}: {text!r} is none of {', '.join(get_args(kind))}")
        return text
    kinds = (int, float, str) if kind is None else get_args(kind) or (kind,)
    for each in kinds:
        try:
            if each is not type(None):
                return each(text)
        except ValueError:
            continue
    names = " or ".join(each.__name__ for each in kinds if each is not type(None))
    raise InputError(f"search {written!r}: {text!r} is no {names}")


def _suggest(trial, name: str, choices: Choices) -> Any:
    if isinstance(choices, list):
        return trial.suggest_categorical(name, choices)
    low, high = choices
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=low > 0)


def _run_config(config: Sweep, values: dict[str, Any], out: Path) -> TrainingConfig:
    """The fine-tuning with these values."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainingConfig)}
    options = [f"{name.partition('.')[2]}={value}" for name, value in values.items() if "." in name]
    plain = {name: value for name, value in values.items() if "." not in name}
    changes = {"out": out, "overwrite": True, "method_options": (*config.method_options, *options)}
    return TrainingConfig(**{**fields, **plain, **changes})


def _run(optuna, trial, config: Sweep, space: dict[str, Choices]) -> float:
    """The score of one fine-tuning, for which Optuna chooses the values."""
    if _rank(trial) >= config.trials:
        raise _EnoughError
    values = {name: _suggest(trial, name, choices) for name, choices in space.items()}
    run = _run_config(config, values, config.out / f"trial-{trial.number}")
    assert run.dev is not None
    dev_set = TASKS[run.task].read(run.dev, Columns(run.text_column, run.pair_column, run.label_column))

    def report(model: TaskModel, epoch: int) -> None:
        trial.report(judged(evaluate(model, dev_set, run.batch_size)), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    def judged(metrics: dict[str, float]) -> float:
        score = _score(metrics)
        trial.set_user_attr("metrics", metrics)
        return score

    try:
        return judged(finetune(run, after_epoch=report)["after"])
    except DivergedError as error:
        trial.set_user_attr(DIVERGED, str(error))
        raise optuna.TrialPruned from error


def _same_sweep(study, path: Path, options: dict[str, Any]) -> None:
    """Raise InputError where the storage's sweep was begun with other options; their results would not compare."""
    del options["trials"]  # of these it may have more
    begun = study.user_attrs.get("options")
    if begun is None:
        study.set_user_attr("options", options)
        return
    for name, value in options.items():
        if begun.get(name) != value:
            raise InputError(
                f"{path}: the sweep was begun with {name} = {begun.get(name)!r}, not {value!r}; "
                "pass --overwrite to begin it anew"
            )


# ---- What came of it -----------------------------------------------------------------------------


def _score(metrics: dict[str, float]) -> float:
    """The metric that counts first, so that more is better.

    Raises DivergedError where it or the loss is not finite: such a model would be compared by what is no number.
    """
    name, value = next(iter(metrics.items()))
    if not (math.isfinite(value) and math.isfinite(metrics["loss"])):
        raise DivergedError(f"on the dev set {name} is {value} and the loss {metrics['loss']}")
    return -value if name in LESS_IS_BETTER else value


def _best(trials: list):
    """The best run, or None where none has come to its end."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return max(complete, key=lambda trial: trial.value, default=None)


def _keep_best(study, out: Path) -> None:
    """Of all finished runs' directories keep only that of the best, and let best/ be a link to it.

    Whatever is deleted here was worse than some other run, so it does not matter which process deletes it, or where
    one is killed in between: the next call mends it.
    """
    trials = study.trials  # read once: a run that ends meanwhile must not be judged by what was best before
    best = _best(trials)
    if best is not None and (out / f"trial-{best.number}").exists():
        link = out / f"{BEST}-{os.getpid()}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(f"trial-{best.number}")
        os.replace(link, out / BEST)
    for trial in trials:
        if trial.state.is_finished() and (best is None or trial.number != best.number):
            shutil.rmtree(out / f"trial-{trial.number}", ignore_errors=True)


def _page(trials: list, space: dict[str, Choices]) -> str:
    """One page: every run, the best first."""
    names = list(space)
    lines = [
        "# The sweep's runs, the best first",
        "",
        "| " + " | ".join(["run", "score", *names, "state", "seconds"]) + " |",
        "|" + "---|" * (len(names) + 4),
    ]
    shown = [each for each in trials if each.state.is_finished() and each.params]
    for trial in sorted(shown, key=lambda each: (each.state.name != "COMPLETE", -(each.value or 0))):
        metrics = trial.user_attrs.get("metrics")  # none of a run that diverged at once
        score = f"{next(iter(metrics.values())):.4f}" if metrics else ""
        values = [_short(trial.params.get(name)) for name in names]
        seconds = f"{trial.duration.total_seconds():.0f}" if trial.duration else ""
        why = trial.user_attrs.get(DIVERGED)
        state = trial.state.name.lower() if why is None else f"{DIVERGED}: {why}"
        lines.append("| " + " | ".join([str(trial.number), score, *values, state, seconds]) + " |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
