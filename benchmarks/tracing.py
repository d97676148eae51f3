"""What looking costs: a training step as it is, inside a recording of summaries, and inside one of arrays; the report.

    python benchmarks/tracing.py [--texts 16 --length 32 --rounds 10]

The three take turns, each with the same batch, and the ratios shown are medians over the rounds. What a step pays for
the possibility alone, while nobody records, is too little to be seen as a difference between two noisy times. It is
timed by itself, a call at a time, and multiplied by the number of operations.

What the report of a training (`minift/report.py`) adds to one is timed by itself, too: a measurement of the layers, in
turns with plain steps, and the page, all of it as `--steps` steps of training in 3 epochs would need it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe

import minift
from minift import breakpoints
from minift.data import Batch, Columns
from minift.history import Step
from minift.movement import Movement
from minift.recording import record
from minift.report import Report
from minift.train import TrainingConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--steps", type=int, default=600, help="of the training that the report's cost is reckoned for"
    )
    options = parser.parse_args()

    model = minift.load(options.model, labels=["negative", "positive"])
    optimizer = minift.AdamW(model.parameters(), lr=2e-5)
    batch = random_batch(options.texts, options.length, model.bert.config.vocab_size)
    modes = {"off": None, "summaries": "summaries", "arrays": "arrays"}
    operations = max(step(model, optimizer, batch, keep) for keep in modes.values())  # compiles, and warms up
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for number in range(options.rounds):
        order = list(modes) if number % 2 else list(modes)[::-1]
        for name in order:
            started = time.perf_counter()
            step(model, optimizer, batch, modes[name])
            seconds[name].append(time.perf_counter() - started)

    machine = describe(None)
    print(f"{machine['date']}, {machine['cores']} cores of {machine['processor']}")
    print(
        f"{options.model}, {options.texts} x {options.length} tokens, {operations} operations, a training step:"
    )
    plain = statistics.median(seconds["off"])
    possibility = cost_of_the_possibility()
    share = possibility * operations / plain
    print(f"  off        {1000 * plain:8.1f} ms, of which the possibility of tracing {100 * share:.3f} %")
    for name in ("summaries", "arrays"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["off"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  {name:10} {1000 * statistics.median(seconds[name]):8.1f} ms, "
            f"{100 * (middle - 1):+.1f} % (quartiles {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %)"
        )
    share = cost_of_the_report(model, optimizer, batch, options)
    print(f"  report     {100 * share:+.2f} % of a training of {options.steps} steps")


def cost_of_the_report(model, optimizer, batch: Batch, options) -> float:
    """The seconds that the report needs, over those of the steps of a training."""
    started = time.perf_counter()
    movement = Movement(model, options.steps)
    beginning = time.perf_counter() - started
    plain, measuring = [], []
    for _ in range(options.rounds):
        started = time.perf_counter()
        step(model, optimizer, batch, None)
        plain.append(time.perf_counter() - started)
        minift.cross_entropy(model(batch), batch.labels).backward()
        started = time.perf_counter()
        with movement.measuring(movement.stride) as measured:
            pass
        measuring.append(time.perf_counter() - started)
        optimizer.zero_grad()
    sentences = [("a sentence of a dozen words or so , as they come", "positive")] * (
        options.steps * options.texts // 3
    )
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "train.tsv")
        data.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in sentences))
        config = TrainingConfig(data, Path(directory), batch_size=options.texts)
        examples = model.read(data, Columns())
        started = time.perf_counter()
        report = Report(model, movement, examples, None, config, options.steps)
        beginning += time.perf_counter() - started
        line = {"loss": 0.5, "learning_rate": 1e-5, "grad_norm": 1.0}
        for number in range(1, options.steps + 1):
            report.add({"step": number, **line, **(measured if number % movement.stride == 0 else {})})
        started = time.perf_counter()
        report.write()
        writing = time.perf_counter() - started
    pages, measurements = 4, options.steps // movement.stride
    whole = options.steps * statistics.median(plain)
    cost = beginning + measurements * statistics.median(measuring) + pages * writing
    print(
        f"  report     {beginning:.2f} s to begin, {measurements} x {1000 * statistics.median(measuring):.1f} ms, "
        f"{pages} pages x {1000 * writing:.0f} ms; {options.steps} steps take {whole:.0f} s"
    )
    return cost / whole


def step(model, optimizer, batch: Batch, keep) -> int:
    """One training step; the number of its operations, where it was traced, else 0."""
    if keep is None:
        minift.cross_entropy(model(batch), batch.labels).backward()
        operations = 0
    else:
        with minift.recording(keep):
            loss = minift.cross_entropy(model(batch), batch.labels)
        operations = len(minift.trace(loss, model))
    minift.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return operations


def random_batch(texts: int, length: int, vocabulary: int) -> Batch:
    """`texts` texts of `length` random tokens each."""
    random = np.random.default_rng(0)
    return Batch(
        ids=random.integers(1000, vocabulary, texts * length),
        token_types=np.zeros(texts * length, np.int64),
        positions=np.tile(np.arange(length), texts),
        offsets=np.arange(0, texts * length + 1, length),
        labels=random.integers(0, 2, texts),
    )


def cost_of_the_possibility(calls: int = 20_000) -> float:
    """Seconds an operation pays while nobody records: being asked about, and a step made, looked at and dropped."""
    x = minift.Tensor([1.0], requires_grad=True)
    node = (x * 2.0).node
    assert node is not None
    look = breakpoints.watcher(None)
    started = time.perf_counter()
    for _ in range(calls):
        record(x.data, (x,), node.backward)
        look(Step(node, x.data, (None,), (None,), None, None))
    return (time.perf_counter() - started) / calls


if __name__ == "__main__":
    main()
