"""Where the time of a training step goes on a CPU, kernel by kernel, beside what the machine can do (`make bench`).

    python benchmarks/step_profile.py                      # three steps of cpu.py; writes results/step_profile.md
    python benchmarks/step_profile.py --only step-16x32    # one of them, which it only prints

Products are held against multiply-adds whose factors lie in the first-level cache, on all threads; AdamW and the
gradient's length against a loop that scales an array in place and one that reads it, both too large for any cache.
Each of these rates is taken after each step, so that a machine that slows down slows both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import runs
from cpu import Measure, measures
from data import SHARED_DATA
from machine import describe
from minift_kernels import (
    adamw,
    attention,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    grad_norm,
    layer_norm,
    matmul,
    tiles,
)
from minift_kernels.host import compiled, thread_count
from numba import prange
from ours import Trainer, versions
from worker import Worker

RESULTS = Path(__file__).parent / "results"
STEPS = ("step-16x32", "step-8x128", "step-base-8x64")
WARM_UP = 3
"""Steps that are not counted: they compile kernels and touch fresh memory."""

FLOPS, READ, MOVED = "GFLOP/s", "GB/s read", "GB/s"
"""What a kernel is held against: multiplications and additions, bytes read, bytes read and written."""


def product_flops(a, b, bias=None) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def backward_flops(dy, x, weight, bias) -> int:
    return sum(2 * dy.size * other.shape[1] for other in (x, weight) if other is not None)


def bytes_of_adamw(parameters, *lists, **options) -> int:
    return 7 * sum(each.nbytes for each in parameters)  # w, g, m and v are read, w, m and v written


def bytes_of(gradients) -> int:
    return sum(each.nbytes for each in gradients)


KERNELS = [
    ("products, forward", matmul, "forward", FLOPS, product_flops),
    ("products, backward", matmul, "linear_backward", FLOPS, backward_flops),
    ("AdamW", adamw, "step", MOVED, bytes_of_adamw),
    ("the gradient's length", grad_norm, "forward", READ, bytes_of),
    *(
        (f"{module.__name__.rpartition('.')[2].replace('_', ' ')}, {function}", module, function, "", None)
        for module in (attention, layer_norm, gelu, dropout, embedding, cross_entropy)
        for function in ("forward", "backward")
        if hasattr(module, function)  # dropout has but one
    ),
]
"""The name in the table, where the kernel is, what it is held against, and how much of it a call does."""


class Clock:
    """Seconds, calls and work of every kernel in one step."""

    def __init__(self):
        self.clear()
        for name, module, function, _, work in KERNELS:
            setattr(module, function, self.timed(name, getattr(module, function), work))

    def clear(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.work: dict[str, int] = defaultdict(int)

    def timed(self, name: str, kernel: Callable, work: Callable | None) -> Callable:
        def run(*arguments, **options):
            start = time.perf_counter()
            result = kernel(*arguments, **options)
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1
            self.work[name] += 0 if work is None else work(*arguments, **options)
            return result

        return run


# ---- What the machine can do ---------------------------------------------------------------------


class Machine:
    """Its rates, a measurement for each call."""

    INNER, TIMES = 64, 20_000
    NUMBERS = 64 << 20  # 256 MiB

    def __init__(self):
        threads = thread_count()
        self.a = np.ones((threads, tiles.ROWS, self.INNER), np.float32)
        self.panel = np.ones((threads, self.INNER, tiles.COLUMNS), np.float32)
        self.c = np.zeros((threads, tiles.ROWS, tiles.COLUMNS), np.float32)
        self.large = np.ones(self.NUMBERS, np.float32)
        self.sums = np.zeros(threads, np.float32)
        self.rates()  # compiles

    def rates(self) -> dict[str, float]:
        """Each in its unit: 1e9 operations or bytes a second, on all threads together."""
        flops = 2 * self.c.size * self.INNER * self.TIMES
        large = self.large.nbytes
        return {
            FLOPS: flops / seconds(_multiply_in_cache, self.a, self.panel, self.c, self.TIMES) / 1e9,
            MOVED: 2 * large / seconds(_scale, self.large, np.float32(1), self.sums) / 1e9,
            READ: large / seconds(_read, self.large, self.sums) / 1e9,
        }


def seconds(function: Callable, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


@compiled
def _multiply_in_cache(a, panel, c, times):
    for thread in prange(len(a)):
        rows, inner = a[thread].shape
        columns = c.shape[2]
        for _ in range(times):
            tiles.multiply_tile(  # pyright: ignore[reportCallIssue]
                np.int64(rows), np.int64(columns), np.int64(inner), np.float32(1),
                a[thread].ctypes.data, np.int64(4 * inner), np.int64(4), panel[thread].ctypes.data,
                np.int64(0), np.int64(0), c[thread].ctypes.data, np.int64(4 * columns),
            )  # fmt: skip


@compiled
def _scale(x, factor, sums):
    for thread in prange(len(sums)):
        part = x[len(x) * thread // len(sums) : len(x) * (thread + 1) // len(sums)]
        for i in range(len(part)):
            part[i] *= factor


@compiled
def _read(x, sums):
    for thread in prange(len(sums)):
        part = x[len(x) * thread // len(sums) : len(x) * (thread + 1) // len(sums)]
        total = np.float32(0)
        for i in range(len(part)):
            total += part[i]
        sums[thread] = total


# ---- The table -----------------------------------------------------------------------------------


def profile(measure: Measure, folder: Path, clock: Clock, machine: Machine) -> str:
    """The table of one measure: medians over its steps."""
    trainer = Trainer(str(folder / measure.model))
    batches = [(trainer.encode(texts), labels) for texts, labels in measure.batches]
    for batch in batches[:WARM_UP]:
        trainer.step(*batch)
    steps, rates, kernels = [], [], defaultdict(list)
    for batch in batches:
        clock.clear()
        steps.append(seconds(trainer.step, *batch))
        for name in clock.seconds:
            kernels[name].append(clock.seconds[name])
        rates.append(machine.rates())
    step = statistics.median(steps)
    can = {unit: statistics.median(each[unit] for each in rates) for unit in rates[0]}
    rows, least, rest = [], 0.0, step
    for name, _, _, unit, _ in KERNELS:
        if name not in kernels:
            continue
        taken = statistics.median(kernels[name])
        rest -= taken
        did = share = ""
        if unit:
            rate = clock.work[name] / taken / 1e9
            did, share = f"{rate:.0f} {unit}", f"{rate / can[unit]:.2f}"
            least += clock.work[name] / can[unit] / 1e9
        rows.append(row(name, clock.calls[name], taken, step, did, share))
    rows.append(row("Python, the sums where gradients meet, and the rest", "", rest, step, "", ""))
    rows.append(row("**the step**", "", step, step, "", ""))
    return f"""## {measure.title[0].upper()}{measure.title[1:]}

| | calls | ms | of the step | does | of what the machine can |
|---|---|---|---|---|---|
{chr(10).join(rows)}

The machine meanwhile: {can[FLOPS]:.0f} {FLOPS} in the first-level cache; an array is scaled in place at
{can[MOVED]:.0f} GB/s and read at {can[READ]:.0f}. So the products, AdamW and the gradient's length alone could take
{1e3 * least:.0f} ms, {least / step:.2f} of the step.
"""


def row(name: str, calls, taken: float, step: float, did: str, share: str) -> str:
    return f"| {name} | {calls} | {1e3 * taken:.1f} | {100 * taken / step:.1f} % | {did} | {share} |"


def main():
    options = parse_options()
    chosen = [measure for measure in measures(options) if measure.name in options.only]
    clock, machine = Clock(), Machine()
    with tempfile.TemporaryDirectory(prefix="minift-bench-") as folder:
        with Worker("transformers") as writer:
            writer.write_models(Path(folder))
        tables = [profile(measure, Path(folder), clock, machine) for measure in chosen]
    here = describe(None)
    of = ", ".join(f"{name} {version}" for name, version in versions().items())
    page = f"""# Where a training step's time goes

Medians over {len(chosen[0].batches)} steps.

{chr(10).join(tables)}
- Machine: {here["processor"]}, {here["cores"]} cores, {here["memory"]}, {here["system"]}.
- Versions: Python {here["python"]}, {of}.
- Date: {here["date"]}. Command: `{" ".join(["python", *sys.argv])}`.
"""
    print(page)
    if len(chosen) == len(STEPS):
        runs.write_text(options.results / f"{options.record}.md", page)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--only", nargs="+", choices=STEPS, default=STEPS, help="names of measures")
    option("--repeats", type=int, default=20, help="steps of each")
    option("--data", type=Path, default=SHARED_DATA, help="the folder that holds sst2/")
    option("--results", type=Path, default=RESULTS, help="a folder")
    option("--record", default="step_profile", help="name of the file written there")
    parser.set_defaults(quick=False, epoch_batches=1, numpy_first=False)
    return parser.parse_args()


if __name__ == "__main__":
    main()
