"""How fast, and in how much memory: minift against PyTorch + transformers on a CPU (`make bench`).

    python benchmarks/cpu.py                     # everything; writes results/cpu.md and results/cpu.json
    python benchmarks/cpu.py --only step-16x32   # one measure
    python benchmarks/cpu.py --quick             # every measure with 3 batches: does the harness work?

The two sides alternate, batch by batch, each in its own process (worker.py), on the same texts and from the
same weights; before the clock starts they must agree on the logits. README.md says how each number is taken.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from data import SHARED_DATA, Sentiment, chunks, minilm_directory
from machine import describe, other_programs_share
from report import as_markdown, summary
from worker import Worker

REST = 0.05
"""Seconds between two turns, in which the threads of the side that just ran fall asleep."""

TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""glibc keeps what PyTorch frees, as minift asks of it for itself, and large blocks lie on huge pages.

A user of PyTorch does not get this unasked, so it is not the ordinary race; `--tuned-peer` shows how much of
a lead is left.
"""


@dataclass(frozen=True)
class Measure:
    name: str
    title: str
    batches: list[tuple[list[str], list[int]]]
    """Texts and labels, one entry for every timed turn."""
    asked_time: float
    """The ratio of times that minift wants to stay under."""
    model: str = "minilm"
    turn: str = "train"
    """train: one training step, texts encoded before the clock. epoch: the same, encoding included.
    predict: logits of a batch, encoding included."""
    frozen_layers: int | None = None
    numpy_first: bool = False
    asked_memory: float = 0.8


def measures(options) -> list[Measure]:
    if options.quick:
        options.repeats = options.epoch_batches = 3
    data = Sentiment(options.data)
    shuffled = data.shuffled_batches(32, seed=0)
    epoch = shuffled if options.epoch_batches == 0 else shuffled[: options.epoch_batches]
    share = "the whole epoch" if len(epoch) == len(shuffled) else f"{len(epoch)} of {len(shuffled)} batches"
    dev = [(texts, [0] * len(texts)) for texts in chunks(data.dev_texts, 32)]
    dev = dev[:3] if options.quick else dev
    step_16x32 = Measure(
        "step-16x32", "training step, MiniLM, 16 texts of 32 tokens", equal_texts(16, 32, options), 0.60
    )
    every = [
        step_16x32,
        Measure(
            "step-8x128", "training step, MiniLM, 8 texts of 128 tokens", equal_texts(8, 128, options), 0.60
        ),
        Measure(
            "step-base-8x64",
            "training step, BERT-base, 8 texts of 64 tokens",
            equal_texts(8, 64, options),
            0.60,
            model="bert-base",
        ),
        Measure("epoch", f"epoch, {data.name}, batch 32 ({share})", epoch, 0.35, turn="epoch"),
        Measure(
            "epoch-frozen",
            f"the same, all but the last 2 layers frozen ({share})",
            epoch,
            0.35,
            turn="epoch",
            frozen_layers=4,
        ),
        Measure("predict", f"prediction, {data.name}, dev set, batch 32", dev, 0.40, turn="predict"),
        replace(
            step_16x32,
            name="step-16x32-numpy-first",
            title=f"{step_16x32.title}; NumPy imported first",
            numpy_first=True,
        ),
    ]
    if options.numpy_first:
        every = [replace(measure, numpy_first=True) for measure in every]
    return every


def equal_texts(texts: int, tokens: int, options) -> list[tuple[list[str], list[int]]]:
    """Batches of random words of one token each, so that [CLS], words and [SEP] make exactly `tokens`."""
    vocabulary = (minilm_directory() / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and word.islower()]
    generator = random.Random(0)
    return [
        (
            [" ".join(generator.choices(words, k=tokens - 2)) for _ in range(texts)],
            generator.choices([0, 1], k=texts),
        )
        for _ in range(options.repeats)
    ]


def race(measure: Measure, folder: Path, options) -> dict:
    """Run one measure: every turn of both sides, peak memories, and how undisturbed the race was."""

    def worker(library: str, **more) -> Worker:
        directory = str(folder / measure.model)
        frozen = measure.frozen_layers
        return Worker(library, threads=options.threads, directory=directory, frozen_layers=frozen, **more)

    first = "transformers" if options.null_race else "minift"
    malloc = TUNED_MALLOC if options.tuned_peer else {}
    with (
        worker(first, numpy_first=measure.numpy_first) as ours,
        worker("transformers", environment=malloc) as peer,
    ):
        sides = {"minift": ours, "transformers": peer}
        check_agreement(ours, peer, measure.batches[0][0])
        for side in sides.values():  # compilation, first pages, first choice of algorithms
            for batch in measure.batches[:2]:
                take_turn(side, measure.turn, batch)
        others = other_programs_share([side.process.pid for side in sides.values()])
        turns, idle_seconds = alternate(measure, sides)
        return {
            "name": measure.name,
            "title": measure.title,
            "asked_time": measure.asked_time,
            "asked_memory": measure.asked_memory,
            "turns": turns,
            "peak_bytes": {name: side.peak_memory() for name, side in sides.items()},
            "idle_cpu_seconds": round(idle_seconds, 2),
            "other_programs_share": round(others(), 3),
            "versions": ours.versions | peer.versions,
        }


def alternate(measure: Measure, sides: dict[str, Worker]) -> tuple[dict[str, list[tuple[float, int]]], float]:
    """Both sides on every batch, taking turns to go first; and what the waiting side computed meanwhile."""
    turns, idle_seconds = {name: [] for name in sides}, 0.0
    for number, batch in enumerate(measure.batches):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for running, waiting in (order, order[::-1]):
            time.sleep(REST)
            before = sides[waiting].cpu_seconds()
            turns[running].append(take_turn(sides[running], measure.turn, batch))
            idle_seconds += sides[waiting].cpu_seconds() - before
        print(f"\r{measure.name}: {number + 1}/{len(measure.batches)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return turns, idle_seconds


def check_agreement(ours: Worker, peer: Worker, texts: list[str]) -> None:
    """Stop unless the logits are the same: a race between two different computations says nothing."""
    pairs = zip(ours.predict(texts)["logits"], peer.predict(texts)["logits"], strict=True)
    differences = [abs(a - b) for our, their in pairs for a, b in zip(our, their, strict=True)]
    if not all(difference <= 1e-4 for difference in differences):  # so put, NaN is caught too
        sys.exit(f"the two sides' logits differ by up to {max(differences):.2g}: nothing was timed")


def take_turn(worker: Worker, turn: str, batch: tuple[list[str], list[int]]) -> tuple[float, int]:
    """Seconds on the clock and tokens in the batch."""
    texts, labels = batch
    result = worker.predict(texts) if turn == "predict" else worker.step(texts, labels)
    encoding = result["encode_seconds"] if turn == "epoch" else 0.0
    return round(result["seconds"] + encoding, 5), result["tokens"]


def main():
    options = parse_options()
    every = measures(options)
    chosen = [measure for measure in every if options.only is None or measure.name in options.only]
    if not chosen:
        sys.exit(f"no such measure; there are {', '.join(measure.name for measure in every)}")
    record = {
        "title": f"{'PyTorch' if options.null_race else 'minift'} against PyTorch on a CPU",
        "command": " ".join(["python", *sys.argv]),
        **describe(options.threads),
        "results": [],
    }
    with tempfile.TemporaryDirectory(prefix="minift-bench-") as folder:
        with Worker("transformers") as writer:
            writer.write_models(Path(folder))
        for measure in chosen:
            record["results"].append(race(measure, Path(folder), options))
            print(summary(record["results"][-1]))
            write(record, options)  # after each, so that a run which is stopped has not run for nothing
    print(f"\n{as_markdown(record)}\nwritten to {options.results / options.record}.md and .json")


def write(record: dict, options) -> None:
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{options.record}.json").write_text(json.dumps(record) + "\n")
    (options.results / f"{options.record}.md").write_text(as_markdown(record))


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--only", nargs="+", metavar="MEASURE", help="names of measures")
    option("--repeats", type=int, default=20, help="pairs of turns for a training step")
    option("--epoch-batches", type=int, default=60, help="random batches of the epoch, 0 for all of it")
    option("--threads", type=int, help="of both sides; all cores where left out")
    option("--numpy-first", action="store_true", help="every measure with NumPy imported before minift")
    option("--tuned-peer", action="store_true", help="PyTorch with malloc set up for training")
    option("--null-race", action="store_true", help="PyTorch on both sides: how exact is the harness?")
    option("--quick", action="store_true", help="3 batches a measure: checks the harness, not the speed")
    option("--data", type=Path, default=SHARED_DATA, help="the folder that holds sst2/")
    option("--results", type=Path, default=Path(__file__).parent / "results", help="a folder")
    option("--record", default="cpu", help="name of the files written there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
