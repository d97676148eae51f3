"""Does a pre-trained small model learn to follow instructions, and what do the two classic mistakes cost?

    python benchmarks/instructions.py
    python benchmarks/instructions.py --search   # how the settings were chosen

A small Llama is pre-trained on a dictionary of made-up words, and then tuned on instructions about words that the
dictionary lacks. Those that are held out are about others again, and none of their answers occurs in training
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
from instruction_data import Texts, nearest, texts

import minift
from minift.data import Batch
from minift.pretrain import START, PretrainingConfig, pretrain
from minift.tasks import TASKS
from minift.tasks.instruction_tuning import Instructions, InstructionTuning

TASK = "instruction-tuning"
ENTRIES = 40_000
INSTRUCTIONS = 1_000
HELD_OUT = 500
SEARCH_SEED = 10
"""Its words are drawn for the search alone."""
SEARCHED = ({"entries": 20_000}, {"entries": 30_000}, {"learning_rate": 1e-3}, {})
"""What `--search` changes of the settings, for the right way alone."""


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


RIGHT = "the response in the loss"
WAYS = {
    RIGHT: Way(),
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
        wanted = [run_of(SEARCH_SEED, ways=[RIGHT], **changes) for changes in SEARCHED]
        for changes, result in zip(SEARCHED, runs.run_missing(__file__, wanted, options), strict=True):
            print(f"{changes or 'as they are'}: exact match {result['ways'][RIGHT]['exact_match']:.3f}")
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
        "pretraining_rate": 3e-3,
        "pretraining_batch_size": 12,
        "method": "full",
        "sentences": INSTRUCTIONS,
        "held_out": HELD_OUT,
        "epochs": 10,
        "learning_rate": 3e-3,
        "batch_size": 16,
        "ways": list(WAYS),
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
        "ways": {
            name: tune(WAYS[name], run, pretrained, train, held_out, folder / name) for name in run["ways"]
        },
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


# ---- The table -----------------------------------------------------------------------------------


def table(results: list[dict]) -> str:
    """A row for the nearest answer, one for the model before tuning, and one for each way; the seconds are a hint."""
    run = results[0]["run"]
    lines = [
        f"{run['held_out']} held-out instructions of each seed, none of whose answers occurs in training; tuned on "
        f"{run['sentences']} for {run['epochs']} epochs at rate {run['learning_rate']:g}. The model: {run['model']}, "
        f"{run['layers']} layers of width {run['width']}, pre-trained on {run['entries']:,} entries of the dictionary.",
        "",
        "| in tuning | exact match (95 %) | response loss (95 %) | on training's instructions | s | match by seed |",
        "|---|---|---|---|---:|---|",
        f"| none: the answer of the nearest instruction | {mean(each['copying'] for each in results):.3f} | | | | |",
    ]
    seconds = mean(each["pretraining_seconds"] for each in results)
    judged = {"none: pre-trained alone": [{**each["before"], "seconds": seconds} for each in results]}
    judged |= {name: [each["ways"][name] for each in results] for name in results[0]["ways"]}
    for name, scores in judged.items():
        train = [each["train_exact_match"] for each in scores if "train_exact_match" in each]
        cells = (
            name,
            runs.with_interval([each["exact_match"] for each in scores], 3),
            runs.with_interval([each["response_loss"] for each in scores], 3),
            f"{mean(train):.3f}" if train else "",
            f"~{mean(each['seconds'] for each in scores):.0f}",  # other programs may have run beside
            " ".join(
                f"{each['run']['seed']}: {score['exact_match']:.3f}"
                for each, score in zip(results, scores, strict=True)
            ),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true", help="try settings on words of another seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "instructions.jsonl"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.set_defaults(data=Path())  # there is none to read
    return parser.parse_args()


if __name__ == "__main__":
    main()
