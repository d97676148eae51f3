"""A learning rate to begin with, or the honest word that none can be read off.

Two ways to look, side by side. The range test (Smith 2017, section 3.3) is one run whose rate rises from step to step;
the usual reading is a tenth of the rate at which the smoothed loss was least (Howard and Gugger 2020, chapter 5). It is
cheap, and misleads on transformers: each rate acts for one step only, on weights that lower rates have prepared, and
without warm-up. The grid is a handful of short real fine-tunings, judged on the dev set. Where the two agree, the
grid's best is suggested; where they do not, nothing is.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minift import checkpoint
from minift.data import Batch
from minift.device import explaining_out_of_memory
from minift.errors import InputError
from minift.evaluate import evaluate
from minift.optim import SCHEDULES, Schedule
from minift.train import Beginning, TrainingConfig, begin, each_warning_once, warmup_steps

PAGE = "find_lr.md"
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FIRST = slice(2, 7)
"""What the grid tries first; it goes on to a side for as long as its best stands at that end."""
AGREEMENT = 3.0
"""How far apart, as a factor, two rates may be and still agree."""
SMOOTHING = 0.9
"""The weight of what came before in the range test's smoothed loss."""
EXPLODED = 4.0
"""The range test ends where the smoothed loss is this many times its least."""


@dataclass(frozen=True)
class RateSearch(TrainingConfig):
    """Everything that decides how a rate is looked for: a fine-tuning's options, and how long to try."""

    steps: int = 100
    """Steps of the range test, and of each run of the grid. Short runs like higher rates than long ones."""

    # What a search does not ask for is no option of it, in Python and on the command line.
    epochs: int = field(default=TrainingConfig.epochs, init=False)
    learning_rate: float = field(default=TrainingConfig.learning_rate, init=False)
    save_every: int = field(default=TrainingConfig.save_every, init=False)
    resume: bool = field(default=TrainingConfig.resume, init=False)
    overwrite: bool = field(default=TrainingConfig.overwrite, init=False)
    watch: bool = field(default=TrainingConfig.watch, init=False)
    port: int = field(default=TrainingConfig.port, init=False)
    tensorboard: bool = field(default=TrainingConfig.tensorboard, init=False)


class FoundRate(NamedTuple):
    """What the range test and the grid saw."""

    rates: list[float]
    """The range test's rates, one a step, up to the one that made the loss explode."""
    losses: list[float]
    """Its smoothed training losses."""
    grid: dict[float, float]
    """Each tried rate's loss on the dev set; infinity where training left the numbers."""

    @property
    def range_rate(self) -> float | None:
        """A tenth of the rate with the least smoothed loss; None where the loss never fell."""
        least = self.losses.index(min(self.losses))
        return self.rates[least] / 10 if least > 0 else None

    @property
    def finite_losses(self) -> list[float]:
        """The grid's losses that are numbers."""
        return [loss for loss in self.grid.values() if math.isfinite(loss)]

    @property
    def all_alike(self) -> bool:
        """Whether several of the grid's losses are numbers, and all the same one."""
        return len(self.finite_losses) > 1 and len(set(self.finite_losses)) == 1

    @property
    def grid_rate(self) -> float | None:
        """The rate with the least loss on the dev set; None where no loss is a number, where all are the same, and
        where it is the last rate there is to either side."""
        if not self.finite_losses or self.all_alike:
            return None
        best = min(self.grid, key=lambda rate: self.grid[rate])
        return best if RATES[0] < best < RATES[-1] else None

    @property
    def suggestion(self) -> float | None:
        """The grid's rate, if the range test's is within a factor of 3 of it."""
        ours, theirs = self.grid_rate, self.range_rate
        if ours is None or theirs is None:
            return None
        return ours if 1 / AGREEMENT <= ours / theirs <= AGREEMENT else None


@explaining_out_of_memory()
def find_lr(config: RateSearch) -> FoundRate:
    """Run the range test and the grid, and write `config.out`/find_lr.md.

    Every run begins anew from the same weights, batches and seed. Raises InputError where there is no dev set, and for
    whatever is wrong with files or options.
    """
    if config.dev is None:
        raise InputError("find-lr needs --dev: the grid's rates are judged there")
    if config.steps < 10:
        raise InputError(f"steps is {config.steps}, expected 10 or more")
    checkpoint.make_directory(config.out)  # what is wrong with it is said before minutes of training
    with each_warning_once():
        rates, losses = range_test(config)
        found = FoundRate(rates, losses, grid(lambda rate: dev_loss(config, rate)))
    checkpoint.write_text(config.out / PAGE, page(found))
    return found


# ---- The range test ------------------------------------------------------------------------------


def range_test(config: RateSearch) -> tuple[list[float], list[float]]:
    """The rates from the lowest to the highest, evenly on a logarithmic scale, and the smoothed losses.

    Raises InputError where the loss is no number before any step.
    """
    ratio = (RATES[-1] / RATES[0]) ** (1 / (config.steps - 1))
    rates = [RATES[0] * ratio**step for step in range(config.steps)]
    start = begin(config)
    schedule = Schedule(start.optimizer, lambda step: rates[step] / config.learning_rate)
    losses: list[float] = []
    average = 0.0
    for step, loss in enumerate(_training(start, config, schedule, "range test")):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (step + 1))  # as Adam corrects its moments' bias
        if not smoothed < EXPLODED * min(losses, default=math.inf):
            break
        losses.append(smoothed)
    if not losses:
        raise InputError(f"{config.model}: the loss of the first batch is {average}, before any step")
    return rates[: len(losses)], losses


# ---- The grid ------------------------------------------------------------------------------------


def grid(loss_of: Callable[[float], float]) -> dict[float, float]:
    """The losses of the first rates, and of further ones for as long as the best stands at an end."""
    losses = {rate: loss_of(rate) for rate in RATES[FIRST]}
    while True:
        best = RATES.index(min(losses, key=lambda rate: losses[rate]))
        beside = [rate for rate in RATES[max(0, best - 1) : best + 2] if rate not in losses]
        if not beside:
            return dict(sorted(losses.items()))
        losses[beside[0]] = loss_of(beside[0])


def dev_loss(config: RateSearch, rate: float) -> float:
    """The loss on the dev set after a short fine-tuning at this rate, with its warm-up and schedule."""
    start = begin(config)
    schedule = SCHEDULES[config.schedule](
        start.optimizer, config.steps, warmup_steps(config.warmup, config.steps)
    )
    schedule.base_rates = [base * rate / config.learning_rate for base in schedule.base_rates]
    schedule.set_step(0)
    for loss in _training(start, config, schedule, f"rate {rate:.0e}"):
        if not math.isfinite(loss):
            return math.inf
    assert start.dev_set is not None
    loss = evaluate(start.model, start.dev_set, config.batch_size)["loss"]
    return loss if math.isfinite(loss) else math.inf


def _training(start: Beginning, config: RateSearch, schedule: Schedule, name: str) -> Iterator[float]:
    """The losses of `config.steps` steps of training."""
    from tqdm import tqdm  # here for the reason that `finetune` has

    batches = itertools.islice(_batches(start, config), config.steps)
    for batch in tqdm(batches, desc=name, total=config.steps, unit="step", dynamic_ncols=True):
        loss = start.model.loss(start.model(batch), batch)
        loss.backward()
        yield loss.item()
        start.optimizer.step(config.max_grad_norm)
        start.optimizer.zero_grad()
        if schedule.steps + 1 < config.steps:
            schedule.step()


def _batches(start: Beginning, config: RateSearch) -> Iterator[Batch]:
    """Batches of one epoch after the other, without end."""
    for epoch in itertools.count():
        start.method.start_epoch(start.model, epoch)
        yield from start.model.batches(start.train_set, config.batch_size, seed=config.seed, epoch=epoch)


# ---- What came of it -----------------------------------------------------------------------------


def page(found: FoundRate) -> str:
    """Both curves and what they say."""
    each = max(1, len(found.rates) // 20)
    return "\n".join(
        [
            "# Which learning rate?",
            "",
            f"**{verdict(found)}**",
            "",
            "The range test: one run, its rate rising from step to step; the smoothed training loss.",
            "",
            *_table(found.rates[::each], found.losses[::each]),
            "",
            "The grid: short fine-tunings with warm-up and schedule; the loss on the dev set.",
            "",
            *_table(list(found.grid), list(found.grid.values())),
            "",
        ]
    )


def verdict(found: FoundRate) -> str:
    """One sentence: the suggestion, or why there is none."""
    ours, theirs = found.grid_rate, found.range_rate
    if found.suggestion is not None:
        return f"Suggestion: {ours:.0e}. It did best on the dev set, and the range test reads {theirs:.1e}."
    if not found.finite_losses:
        return "No suggestion: the loss on the dev set is infinite or no number at all rates of the grid."
    if found.all_alike:
        return (
            f"No suggestion: the loss on the dev set is {found.finite_losses[0]:.4g} at all rates of the grid "
            "where it is a number."
        )
    if ours is None:
        return (
            "No suggestion: the grid did best at the end of all that it may try, so the best may lie beyond."
        )
    if theirs is None:
        return f"No suggestion: the range test's loss never fell, while {ours:.0e} did best on the dev set."
    factor = max(ours / theirs, theirs / ours)
    return (
        f"No suggestion: the range test reads {theirs:.1e}, but {ours:.0e} did best on the dev set: "
        f"they are a factor of {factor:.1f} apart, where {AGREEMENT:g} is allowed."
    )


def _table(rates: Sequence[float], losses: Sequence[float]) -> list[str]:
    finite = [loss for loss in losses if math.isfinite(loss)]
    unit = 30 / (max(finite, default=0.0) or 1.0)
    bars = ["█" * round(unit * loss) if math.isfinite(loss) else "no number" for loss in losses]
    lines = [
        f"| {rate:8.1e} | {loss:8.4f} | {bar:30} |"
        for rate, loss, bar in zip(rates, losses, bars, strict=True)
    ]
    return [f"| {'rate':8} | {'loss':8} | {'':30} |", f"|{'-' * 10}|{'-' * 10}|{'-' * 32}|", *lines]
