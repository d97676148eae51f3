"""Fine-tuning: from a file of labelled texts to a directory with a trained model. The loop is in `train`."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from io import BufferedWriter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import numpy as np

from minift import checkpoint, random, training_state
from minift.cuda_graph import GraphedPass, plain_pass
from minift.data import Batch, Columns
from minift.device import explaining_out_of_memory
from minift.errors import DivergedError, InputError
from minift.evaluate import examine
from minift.history import Array, detect_anomaly, no_grad
from minift.load import load
from minift.methods import apply_method, parse_options
from minift.methods.method import Method
from minift.movement import Movement
from minift.optim import SCHEDULES, AdamW
from minift.report import FILE as REPORT
from minift.report import Report
from minift.tasks import TASKS
from minift.tasks.task_model import Examples, TaskModel
from minift.tensorboard import Events, check_tensorboard, events
from minift.watch import watching

if TYPE_CHECKING:
    from tqdm import tqdm

LOG = "train_log.jsonl"
METRICS = "metrics.json"

ASIDE = ("out", "resume", "overwrite", "save_every", "watch", "port", "tensorboard")
"""Options that make no difference to what a run comes to."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides how a fine-tuning goes."""

    train: Path
    """Labelled examples: .tsv, .csv or .jsonl with a header, CoNLL's columns, or SQuAD's .json, as the task reads."""
    out: Path
    """The directory to write."""
    dev: Path | None = None
    """Labelled examples to judge by, before and after; never learned from."""
    model: str = "minilm"
    """A Hugging Face directory, a hub id, or minilm."""
    task: str = "text-classification"
    """What is learned: text-classification, multi-label, text-regression, token-classification, question-answering,
    fill-mask, text-generation or instruction-tuning."""
    epochs: int = 2
    """How often every training text is seen."""
    batch_size: int = 32
    """Texts per step."""
    learning_rate: float = 5e-5
    """The rate after warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate goes on after warm-up."""
    warmup: float = 0.1
    """The share of all steps in which the rate rises from 0."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; biases and LayerNorm are exempt."""
    max_grad_norm: float = 1.0
    """Gradients that are longer, all taken together, are shortened to this."""
    label_smoothing: float = 0.0
    """The share of each target that is spread over all classes."""
    method: str = "full"
    """What is trained, and how: one of the methods of minift.methods.METHODS."""
    method_options: tuple[str, ...] = ()
    """The method's options, each as option=value, such as rank=8."""
    max_length: int | None = None
    """The longest text in tokens; longer ones are truncated, and counted. The model's own longest if not given."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute: cpu, or cuda for an NVIDIA GPU."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """What to compute in; weights and their updates stay float32. tf32 and bf16 are for a GPU's tensor cores."""
    seed: int = 0
    """Decides the new weights, the order of the texts and the dropout."""
    save_every: int = 0
    """Save the state of the training after every so many steps; 0 for never."""
    resume: bool = False
    """Go on from the saved state in the directory; from the start where there is none."""
    overwrite: bool = False
    """Replace a run that the directory already holds."""
    watch: bool = False
    """Serve the report on 127.0.0.1 while it grows."""
    port: int = 0
    """The port for that; 0 for any that is free."""
    tensorboard: bool = False
    """Write event files for TensorBoard as well (needs the extra `tensorboard`)."""
    text_column: str | None = None
    """The column of the text; `sentence`, `text` or `sentence1` if not given."""
    pair_column: str | None = None
    """The column of the second text of a pair; `sentence2`, if there is one, if not given."""
    label_column: str | None = None
    """The column of the label; `label`, or what the task calls it (`labels`, `score`), if not given."""

    def __post_init__(self):
        settle_types(self)


class Beginning(NamedTuple):
    """What a training begins with."""

    model: TaskModel
    method: Method
    optimizer: AdamW
    train_set: Examples
    dev_set: Examples | None


def begin(config: TrainingConfig) -> Beginning:
    """Read the files, load the model and apply the method; the same config gives the same weights, to the bit.

    Raises InputError for whatever is wrong with files or options.
    """
    check_options(config)
    random.manual_seed(config.seed)
    task = TASKS[config.task]
    columns = Columns(config.text_column, config.pair_column, config.label_column)
    train_set = task.read(config.train, columns)
    dev_set = task.read(config.dev, columns) if config.dev else None
    labels = task.labels_in(train_set)
    model = load(
        config.model,
        config.task,
        labels,
        config.max_length,
        new_head=True,
        device=config.device,
        precision=config.precision,
    )
    model.label_smoothing = config.label_smoothing
    # Before any text is cut: a method may need room in front of it.
    method = apply_method(model, config.method, **parse_options(config.method_options))
    model.prepare(train_set)
    if dev_set is not None:
        # A label that training does not know is found now, not at the end.
        model.batches(dev_set, config.batch_size)
    optimizer = AdamW(method.parameter_groups(model, config.learning_rate, config.weight_decay))
    return Beginning(model, method, optimizer, train_set, dev_set)


@explaining_out_of_memory()
def finetune(
    config: TrainingConfig, after_epoch: Callable[[TaskModel, int], None] = lambda model, epoch: None
) -> dict:
    """Fine-tune a checkpoint and write the directory `config.out`; returns what its metrics.json says.

    `after_epoch` is called with the model and the number of epochs done (1, 2, ...) after each of them; what it raises
    ends the run.

    The directory then holds a Hugging Face model, or what the method trained of it, metrics.json (accuracy, loss,
    examples and seconds on the dev set, before and after), train_log.jsonl (one line a step) and report.html, which is
    also written after each epoch. Raises InputError for whatever is wrong with files or options, where another process
    writes to the directory, and when the loss or a weight stops being a number. What an earlier run left there is lost
    with the first step, and not where that fails.
    """
    _check_not_the_model(config)
    check_directory(config.out, config.overwrite, config.resume)
    start = begin(config)
    checkpoint.make_directory(config.out)
    with checkpoint.writing_alone(config.out / LOG):
        # Again: another run may have ended while this one read its files.
        check_directory(config.out, config.overwrite, config.resume)
        return train(config, start, after_epoch)


def train(
    config: TrainingConfig,
    start: Beginning,
    after_epoch: Callable[[TaskModel, int], None] = lambda model, epoch: None,
) -> dict:
    """Go all steps that a run has left, and write its model and metrics, which are returned.

    Whoever calls it keeps other processes away, as `finetune` does.
    """
    from tqdm import tqdm  # here, because it takes as long to import as twenty files of minift

    model, method, optimizer, train_set, dev_set = start
    steps_per_epoch = math.ceil(len(train_set) / config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    schedule = SCHEDULES[config.schedule](optimizer, total_steps, warmup_steps(config.warmup, total_steps))
    run_pass = GraphedPass(model) if config.device == "cuda" else partial(plain_pass, model)
    movement = Movement(model, total_steps)
    report = Report(model, movement, train_set, dev_set, config, total_steps)
    options = {**decisive_options(config), "examples": len(train_set)}
    progress = training_state.restore(config.out, options, model, optimizer) if config.resume else None
    if progress is None:
        progress = training_state.Progress()
        if dev_set is not None:
            progress.before, predictions = examine(model, dev_set, config.batch_size)
            progress.judged = report.judged(progress.before, predictions)
    report.before = progress.judged
    schedule.set_step(progress.step)

    with (
        checkpoint.continue_file(config.out / LOG, progress.log_bytes) as log,
        watching(report, config.port) if config.watch else nullcontext(),
        events(config.out, progress.step) if config.tensorboard else nullcontext() as board,
        tqdm(total=total_steps, initial=progress.step, unit="step", dynamic_ncols=True) as bar,
    ):
        if board is not None and progress.step == 0 and progress.before is not None:
            board.judge(progress.before, 0)
        report.take_up(config.out / LOG, progress.log_bytes)
        journal = Journal(progress, log, bar, [each.add for each in (report, board) if each is not None])
        first = progress.step + 1
        while progress.step < total_steps:
            epoch, done = divmod(progress.step, steps_per_epoch)
            method.start_epoch(model, epoch)
            for batch in model.batches(
                train_set, config.batch_size, seed=config.seed, epoch=epoch, start=done
            ):
                number = progress.step + 1
                told = _step(model, run_pass, batch, optimizer, movement, number, config.max_grad_norm)
                if number == first:
                    _remove_what_is_replaced(config.out, progress, log)
                schedule.step()
                journal.add({"step": number, "epoch": epoch + 1, **told}, batch)
                if config.save_every and number % config.save_every == 0:
                    training_state.save(config.out, progress, options, model, optimizer)
            report.write()
            after_epoch(model, epoch + 1)
        bar.close()
        return _conclude(config, model, dev_set, progress, report, board)


def _remove_what_is_replaced(out: Path, progress: training_state.Progress, log: BufferedWriter) -> None:
    """Remove what an earlier run left, or, where one goes on, what its log says of steps that are taken again.

    Called when a step has been taken: what is wrong with a run has mostly shown by then, and nothing was lost.
    """
    if progress.step == 0:
        for name in (METRICS, REPORT):
            (out / name).unlink(missing_ok=True)
        training_state.forget(out)
    log.truncate(progress.log_bytes)


def _conclude(
    config: TrainingConfig,
    model: TaskModel,
    dev_set: Examples | None,
    progress: training_state.Progress,
    report: Report,
    board: Events | None,
) -> dict:
    """Write the trained model, what it does on the dev set, and the metrics, which are returned."""
    _check_last_update(model, progress.step)
    model.save(config.out)
    after = None
    if dev_set is not None:
        after, predictions = examine(model, dev_set, config.batch_size)
        if not math.isfinite(after["loss"]):
            raise DivergedError(f"the loss on the dev set became {after['loss']}. Try a lower learning rate")
        report.after = report.judged(after, predictions)
        report.write()
        if board is not None:
            board.judge(after, progress.step)
    metrics = {
        "before": progress.before,
        "after": after,
        "steps": progress.step,
        "tokens": progress.tokens,
        "truncated": progress.truncated,
        "training_seconds": round(progress.seconds, 3),
    }
    checkpoint.write_json(config.out / METRICS, metrics)
    training_state.forget(config.out)
    return metrics


def warmup_steps(share: float, total_steps: int) -> int:
    """How many steps the warm-up has; never all of them, since it begins at 0 and a run of one step must train."""
    return min(math.ceil(share * total_steps), total_steps - 1)


class Journal(NamedTuple):
    """Everything that is told of a training step by step, and how far it has come."""

    progress: training_state.Progress
    log: BufferedWriter
    bar: "tqdm"
    listeners: list[Callable[[dict], None]]
    """What else takes over a line of the log."""

    def add(self, line: dict, batch: Batch) -> None:
        """Tell of the step that was taken with this batch; `line` is what the log says of it."""
        progress = self.progress
        progress.step = line["step"]
        progress.tokens += batch.tokens
        progress.truncated += batch.truncated
        progress.seconds += line["seconds"]
        for listen in self.listeners:
            listen(line)
        self.log.write(json.dumps(line).encode() + b"\n")
        self.log.flush()
        progress.log_bytes = self.log.tell()
        speed = progress.tokens / progress.seconds
        postfix = f"loss {line['loss']:.3f}, rate {line['learning_rate']:.1e}, {speed:,.0f} tokens/s"
        self.bar.set_postfix_str(postfix, refresh=False)  # update() draws, ten times a second at most
        self.bar.update()


def _step(
    model: TaskModel,
    run_pass: Callable[[Batch], Array],
    batch: Batch,
    optimizer: AdamW,
    movement: Movement,
    number: int,
    max_grad_norm: float,
) -> dict:
    """Training step `number`: forward, backward, update. Returns what the log says of it."""
    started = time.perf_counter()
    rate = optimizer.param_groups[0]["lr"]
    calls_before = random.default_generator.calls
    # Only here does Python wait for a GPU: it has been told all of the step but the update.
    loss_value = run_pass(batch).item()
    if not math.isfinite(loss_value):
        _explain(model, batch, number, loss_value, calls_before)
    with movement.measuring(number) as measured:
        grad_norm = optimizer.step(max_grad_norm)
    optimizer.zero_grad()
    return {
        "loss": loss_value,
        "learning_rate": rate,
        "grad_norm": grad_norm,
        "tokens": batch.tokens,
        "seconds": round(time.perf_counter() - started, 6),
        **measured,
    }


def _explain(model: TaskModel, batch: Batch, step: int, loss: float, calls_before: int) -> NoReturn:
    """Raise DivergedError for a loss that is no number. The forward pass runs again to find out where it went wrong."""
    random.default_generator.calls = calls_before  # so that dropout drops the same again
    try:
        with no_grad(), detect_anomaly():
            model.loss(model(batch), batch)
    except FloatingPointError as error:
        advice = (
            "No update was made yet, so the data or the weights are at fault"
            if step == 1
            else "Try a lower learning rate"
        )
        raise DivergedError(f"step {step}: the loss became {loss}; {error}. {advice}") from None
    raise DivergedError(f"step {step}: the loss became {loss}, and was a number when computed again")


def _check_last_update(model: TaskModel, step: int) -> None:
    """Raise DivergedError where a weight is no number: no further step comes, whose loss would show it."""
    for name, parameter in model.named_parameters():
        if not np.isfinite(parameter.numpy()).all():
            raise DivergedError(f"step {step}: its update made {name} no number. Try a lower learning rate")


def decisive_options(config: TrainingConfig) -> dict:
    """What must be the same for a run, or a sweep, to go on: all but where it is written and how often it is saved.

    Files count by what they hold, whatever they are called: the dev file, too, whose score before is set beside the
    one after. A directory with a model counts by where it is.
    """
    options = json.loads(json.dumps(asdict(config), default=str))  # as it will be read back
    for name in ASIDE:
        del options[name]
    for name in ("train", "dev"):
        path = getattr(config, name)
        del options[name]
        options[f"{name}_sha256"] = None if path is None else checkpoint.sha256(path)
    model = Path(config.model).expanduser()
    return {**options, "model": str(model.resolve()) if model.is_dir() else config.model}


KINDS: dict[Any, Any] = {float: float | int, tuple: tuple | list}
"""What will do for a type beside itself."""


def settle_types(config: Any) -> None:
    """Make of text that is to be a path a path, of a path that is to be text text, and of NumPy's numbers Python's."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(kind) or (kind,)
        if isinstance(value, np.generic):
            value = value.item()
        elif isinstance(value, str) and Path in kinds:
            value = Path(value)
        elif isinstance(value, Path) and Path not in kinds and str in kinds:
            value = str(value)
        object.__setattr__(config, name, value)  # the class is frozen


def check_types(config: Any) -> None:
    """Raise InputError where a field of a dataclass holds what its type does not allow."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise InputError(f"{name} is {value!r}, expected one of {', '.join(get_args(kind))}")
            continue
        kinds: tuple[Any, ...] = (
            get_args(kind) if isinstance(kind, UnionType) else (get_origin(kind) or kind,)
        )
        if not any(isinstance(value, KINDS.get(each, each)) for each in kinds):
            expected = " or ".join(each.__name__ for each in kinds if each is not type(None))
            raise InputError(f"{name} is {value!r}, expected {expected}")


def check_options(config: TrainingConfig) -> None:
    """Raise InputError for options of a wrong type or out of range."""
    check_types(config)
    if config.task not in TASKS:
        raise InputError(f"there is no task {config.task!r}; the tasks are {', '.join(TASKS)}")
    for name in ("epochs", "batch_size"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}, expected 1 or more")
    for name in ("learning_rate", "max_grad_norm"):
        if not getattr(config, name) > 0:
            raise InputError(f"{name} is {getattr(config, name)}, expected more than 0")
    for name in ("weight_decay", "save_every", "seed"):
        if not getattr(config, name) >= 0:
            raise InputError(f"{name} is {getattr(config, name)}, expected 0 or more")
    for name in ("learning_rate", "weight_decay"):  # max_grad_norm may be infinite: then nothing is clipped
        if not math.isfinite(getattr(config, name)):
            raise InputError(f"{name} is {getattr(config, name)}, expected a finite number")
    if not 0 <= config.port <= 65535:
        raise InputError(f"port is {config.port}, expected 0 to 65535")
    if config.tensorboard:
        check_tensorboard()
    for name in ("warmup", "label_smoothing"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name} is {getattr(config, name)}, expected a share from 0 to 1")
    if config.label_smoothing and not TASKS[config.task].smooths_labels:
        smoothing = ", ".join(name for name, task in TASKS.items() if task.smooths_labels)
        raise InputError(f"label_smoothing: {config.task} has none; these tasks have it: {smoothing}")


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Inside this block minift's logger says no line twice: many runs with the same files would repeat theirs."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        new = line not in said
        said.add(line)
        return new

    logger = logging.getLogger("minift")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def check_directory(out: Path, overwrite: bool, resume: bool = False) -> None:
    """Raise InputError for a directory whose run, or whose model, would be lost."""
    if overwrite:
        return
    held = [name for name in (METRICS, training_state.FILE) if (out / name).exists()]
    if held == [METRICS] and resume:
        raise InputError(f"{out} holds a finished run; pass --overwrite to begin it anew")
    if held and not resume:
        advice = "--resume or --overwrite" if training_state.FILE in held else "--overwrite"
        raise InputError(f"{out} already holds a run ({', '.join(held)}); pass {advice}")
    # A log alone is of a run that was stopped before its first state; a model that lies there was given up to that run.
    stopped = resume and (out / LOG).exists()
    if not held and not stopped:
        checkpoint.check_no_model(out)


def _check_not_the_model(config: TrainingConfig) -> None:
    """Raise InputError where the run would write to the directory of the model that it begins with.

    A method's part needs that model as it is, and so does a run that goes on after it was stopped.
    """
    model = Path(config.model).expanduser()
    if model.is_dir() and model.resolve() == config.out.resolve():
        raise InputError(f"{config.out} is the directory of the model to begin with; choose another to write")
