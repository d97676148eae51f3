"""What looking costs: a training step as it is, inside a recording of summaries, and inside one of arrays.

    python benchmarks/tracing.py [--texts 16 --length 32 --rounds 10]

The three take turns, each with the same batch, and the ratios shown are medians over the rounds. What a step pays for
the possibility alone, while nobody records, is too little to be seen as a difference between two noisy times. It is
timed by itself, a call at a time, and multiplied by the number of operations.
"""

import argparse
import statistics
import time

import numpy as np
from machine import describe

import minift
from minift import breakpoints
from minift.data import Batch
from minift.history import Step
from minift.recording import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
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
