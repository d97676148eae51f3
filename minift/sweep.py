"""Searching for settings: many fine-tunings, each with other values, and one page that says which were best.

Optuna chooses the values (the tree-structured Parzen estimator, Bergstra et al. 2011) and ends runs that stay behind
(median pruning). What was tried stands in one SQLite file, so a sweep that was killed goes on, and several processes,
each running the same command, share one.
"""

import dataclasses
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minift import checkpoint
from minift.data import Columns
from minift.errors import InputError
from minift.evaluate import evaluate
from minift.tasks import TASKS
from minift.tasks.task_model import TaskModel
from minift.train import TrainingConfig, finetune

STORAGE = "sweep.db"
PAGE = "results.md"
BEST = "best"
LOCK_SECONDS = 20.0
"""How long to wait for another process that writes the storage."""
ALIVE_SECONDS = 60
"""How often a process says that its run goes on; one that is silent for twice as long was killed, and is run again."""
LESS_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Sweep(TrainingConfig):
    """Everything that decides how a sweep goes: a fine-tuning's options, and which of them are searched."""

    search: tuple[str, ...] = ("learning_rate=2e-5:1e-4", "batch_size=16,32", "epochs=2,3,4")
    """What is tried: option=low:high for any number between (of rates, on a logarithmic scale), option=a,b,c for one of
    these. A method's own options are method.option, such as method.rank=4,8,16."""
    trials: int = 20
    """How many fine-tunings the sweep has in all, those of earlier and other processes counted."""


def sweep(config: Sweep) -> dict[str, Any]:
    """Fine-tune until the sweep has `config.trials` runs; returns the best one's values and its dev metrics.

    The directory `config.out` then holds sweep.db, results.md and, under best/, what the best run wrote. Raises
    InputError where there is no dev set or no Optuna, for a search that names no option, and for a storage that stays
    locked.
    """
    optuna = _optuna()
    dev_file = config.dev
    if dev_file is None:
        raise InputError("a sweep needs --dev: it searches for what does best there")
    if config.trials < 1:
        raise InputError(f"trials is {config.trials}, expected 1 or more")
    space = dict(_parse(written) for written in config.search)
    checkpoint.make_directory(config.out)
    path = config.out / STORAGE

    def objective(trial) -> float:
        values = {name: _suggest(trial, name, choices) for name, choices in space.items()}
        run = _run_config(config, values, config.out / f"trial-{trial.number}")
        dev_set = TASKS[config.task].read(
            dev_file, Columns(run.text_column, run.pair_column, run.label_column)
        )

        def report(model: TaskModel, epoch: int) -> None:
            trial.report(_score(evaluate(model, dev_set, run.batch_size)), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            metrics = finetune(run, after_epoch=report)["after"]
        except BaseException:
            shutil.rmtree(run.out, ignore_errors=True)
            raise
        trial.set_user_attr("metrics", metrics)
        _keep_best(trial, _score(metrics), run.out, config.out / BEST)
        return _score(metrics)

    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since 2021
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path}",
                engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
                heartbeat_interval=ALIVE_SECONDS,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
        study = optuna.create_study(
            study_name="sweep", storage=storage, direction="maximize", load_if_exists=True,
            sampler=optuna.samplers.TPESampler(), pruner=optuna.pruners.MedianPruner(),
        )  # fmt: skip
        _same_sweep(study, config)
        if len(study.get_trials(states=finished)) < config.trials:
            study.optimize(
                objective, callbacks=[optuna.study.MaxTrialsCallback(config.trials, states=finished)]
            )
        page = _page(study, space)
    except optuna.exceptions.StorageInternalError as error:
        raise _storage_error(path, error) from error
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy"):
            raise _storage_error(path, error) from error
        raise
    checkpoint.write_text(config.out / PAGE, page)
    best = study.best_trial
    return {"values": best.params, "metrics": best.user_attrs["metrics"], "page": page}


def _optuna():
    try:
        import optuna
    except ImportError:
        raise InputError('a sweep needs Optuna: pip install "minift[sweep]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage_error(path: Path, error: Exception) -> InputError:
    cause = error.__cause__ or error
    reason = str(cause).splitlines()[0]
    if "locked" in reason:
        return InputError(
            f"{path}: the sweep's storage is locked by another process and stayed so for {LOCK_SECONDS:g} seconds"
        )
    return InputError(f"{path}: the sweep's storage cannot be used: {reason}")


# ---- What is searched ----------------------------------------------------------------------------

Choices = list[Any] | tuple[Any, Any]
"""A list of values, or the lowest and the highest."""


def _parse(written: str) -> tuple[str, Choices]:
    """("learning_rate", (2e-5, 1e-4)) from learning_rate=2e-5:1e-4, ("epochs", [2, 3]) from epochs=2,3."""
    name, equals, values = written.partition("=")
    own = {field.name for field in dataclasses.fields(TrainingConfig)} - {"train", "dev", "out", "resume"}
    if not equals or not (name in own or name.startswith("method.")):
        known = ", ".join(sorted(own))
        raise InputError(
            f"search {written!r}: expected option=low:high or option=a,b; the options are {known}"
        )
    if ":" not in values:
        return name, [_value(each) for each in values.split(",")]
    low, _, high = values.partition(":")
    bounds = _value(low), _value(high)
    if any(isinstance(each, str) for each in bounds) or not bounds[0] < bounds[1]:
        raise InputError(f"search {written!r}: expected two numbers, the lower one first")
    return name, bounds


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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


def _same_sweep(study, config: Sweep) -> None:
    """Raise InputError where the storage's sweep was begun with other options; their results would not compare."""
    options = json.loads(json.dumps(asdict(config), default=str))
    for name in ("out", "trials", "resume", "overwrite"):
        del options[name]
    begun = study.user_attrs.get("options")
    if begun is None:
        study.set_user_attr("options", options)
        return
    for name, value in options.items():
        if begun.get(name) != value:
            raise InputError(
                f"{config.out / STORAGE}: the sweep was begun with {name} = {begun.get(name)!r}, not {value!r}"
            )


# ---- What came of it -----------------------------------------------------------------------------


def _score(metrics: dict[str, float]) -> float:
    """The metric that counts first, so that more is better."""
    name, value = next(iter(metrics.items()))
    return -value if name in LESS_IS_BETTER else value


def _keep_best(trial, score: float, out: Path, best: Path) -> None:
    """Keep of all runs' directories only that of the best."""
    others = [
        each.value for each in trial.study.trials if each.value is not None and each.number != trial.number
    ]
    if others and max(others) >= score:
        shutil.rmtree(out, ignore_errors=True)
        return
    shutil.rmtree(best, ignore_errors=True)
    out.rename(best)


def _page(study, space: dict[str, Choices]) -> str:
    """One page: every run, the best first."""
    names = list(space)
    lines = [
        "# The sweep's runs, the best first",
        "",
        "| " + " | ".join(["run", "score", *names, "state", "seconds"]) + " |",
        "|" + "---|" * (len(names) + 4),
    ]
    trials = [each for each in study.trials if each.state.is_finished()]
    for trial in sorted(trials, key=lambda each: (each.state.name != "COMPLETE", -(each.value or 0))):
        score = "" if trial.value is None else f"{abs(trial.value):.4f}"
        values = [_short(trial.params.get(name)) for name in names]
        seconds = f"{trial.duration.total_seconds():.0f}" if trial.duration else ""
        state = trial.state.name.lower()
        lines.append("| " + " | ".join([str(trial.number), score, *values, state, seconds]) + " |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
