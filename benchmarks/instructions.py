"""Does a pre-trained small model learn to follow instructions, and what do the two classic mistakes cost?

    python benchmarks/instructions.py
    python benchmarks/instructions.py --search   # how the settings were chosen

A small Llama learns a dictionary of made-up words by heart, as plain text, and is then tuned on instructions about words
that the dictionary lacks; the held-out instructions are about others again, and none of their answers occurs in training
(`instruction_data.py`). Beside the right way to tune, from the same weights on the same batches: the prompt's tokens in
the loss, and texts that see those before them in their batch; and the right way from random weights. Reads no data.
Each finished run, which is a seed with all its ways, is one line of --results and is not repeated: stop it at any time
and start it again. The table stands beside it, as Markdown.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import runs
from instruction_data import Instruction, Texts, nearest, texts

import minift
from minift.data import Batch
from minift.pretrain import START, PretrainingConfig, pretrain
from minift.tasks import TASKS
from minift.tasks.instruction_tuning import Instructions, InstructionTuning

TASK = "instruction-tuning"
ENTRIES = 20_000
INSTRUCTIONS = 1_000
HELD_OUT = 500
SEARCH_SEED = 10
"""Its words, all of them, are the search's own."""
SEARCHED = ({"epochs": 5}, {"epochs": 10})


# ---- The two mistakes ----------------------------------------------------------------------------


class PromptInLoss(InstructionTuning):
    """The mistake that every next token is asked for, the prompt's too."""

    def pack(self, inputs, targets=None) -> Batch:
        assert targets is not None
        labels = [np.append(text[1:], target[-1]) for text, target in zip(inputs, targets, strict=True)]
        return super().pack(inputs, labels)


class Leaking(InstructionTuning):
    """The mistake of naive packing: the batch is one long text, in which each one sees all that stand before it."""

    def pack(self, inputs, targets=None) -> Batch:
        batch = super().pack(inputs, targets)
        batch.offsets = np.array([0, batch.tokens])
        batch.positions = np.arange(batch.tokens)
        return batch


@dataclass(frozen=True)
class Way:
    """How the model is tuned, and from which weights."""

    task: type[InstructionTuning] = InstructionTuning
    pretrained: bool = True


WAYS = {
    "the response in the loss": Way(),
    "the prompt in it, too": Way(PromptInLoss),
    "each text sees those before it": Way(Leaking),
    "the response, from random weights": Way(pretrained=False),
}


@contextmanager
def tuned_as(task: type[InstructionTuning]) -> Iterator[None]:
    """Inside this block `instruction-tuning` is the given task; whoever evaluates does so outside, the right way."""
    TASKS[TASK] = task
    try:
        yield
    finally:
        TASKS[TASK] = InstructionTuning


# ---- A run ---------------------------------------------------------------------------------------


def main():
    options = parse_options()
    if options.one:
        runs.run_one(options.one, measure)
        return
    if options.search:
        wanted = [run_of(SEARCH_SEED, **changes) for changes in SEARCHED]
        for changes, result in zip(SEARCHED, runs.run_missing(__file__, wanted, options), strict=True):
            print(f"{changes}: {result['ways']}")
        return
    results = runs.run_missing(__file__, [run_of(seed) for seed in options.seeds], options)
    made = table(results)
    runs.write_text(options.results.with_suffix(".md"), made)
    print(f"\n{made}")


def run_of(seed: int, **changes) -> dict:
    return {
        "model": "llama",
        "layers": 3,
        "width": 64,
        "entries": ENTRIES,
        "pretraining_rate": 4e-3,
        "pretraining_batch_size": 12,
        "method": "full",
        "sentences": INSTRUCTIONS,
        "held_out": HELD_OUT,
        "epochs": 10,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "seed": seed,
        **changes,
    }


def measure(run: dict, _: Path, folder: Path) -> dict:
    made = texts(run["seed"], run["entries"], run["sentences"], run["held_out"])
    plain = write_lines(folder / "plain.jsonl", [{"text": text} for text in made.plain])
    train, held_out = (
        write_lines(folder / f"{name}.jsonl", [{"instruction": a, "output": b} for a, b in part])
        for name, part in (("train", made.train), ("held_out", made.held_out))
    )
    pretrained = folder / "pretrained"
    metrics = pretrain(
        PretrainingConfig(
            train=plain, out=pretrained, family=run["model"], tokens="characters", layers=run["layers"],
            width=run["width"], context=192, batch_size=run["pretraining_batch_size"],
            learning_rate=run["pretraining_rate"], seed=run["seed"],
        )
    )  # fmt: skip
    return {
        "copying": copying(made),
        "before": judge(minift.load(pretrained, TASK), held_out),
        "pretraining_seconds": round(metrics["training_seconds"]),
        "ways": {name: tune(way, run, pretrained, train, held_out, folder / name) for name, way in WAYS.items()},
    }


def tune(way: Way, run: dict, pretrained: Path, train: Path, held_out: Path, out: Path) -> dict:
    """Tune in one way; what comes of it is judged in the same way for all."""
    with tuned_as(way.task):
        metrics = minift.finetune(
            minift.TrainingConfig(
                train=train, out=out, model=str(pretrained if way.pretrained else pretrained / START), task=TASK,
                epochs=run["epochs"], batch_size=run["batch_size"], learning_rate=run["learning_rate"],
                seed=run["seed"],
            )
        )  # fmt: skip
    tuned = minift.load(out)
    return {
        **judge(tuned, held_out),
        "train_exact_match": judge(tuned, train)["exact_match"],
        "seconds": round(metrics["training_seconds"], 1),
    }


def judge(model, file: Path) -> dict[str, float]:
    metrics = minift.evaluate(model, Instructions(file))
    return {name: round(metrics[name], 4) for name in ("exact_match", "response_loss")}


def copying(made: Texts) -> float:
    """The share of held-out instructions that the answer of the most similar training instruction answers."""
    return mean(nearest(asked, made.train)[1] == answer for asked, answer in made.held_out)


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
