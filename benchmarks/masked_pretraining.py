"""Does masked pre-training go on in a new domain? All of the encoder, its new head alone, and a unigram model.

    python benchmarks/masked_pretraining.py
    python benchmarks/masked_pretraining.py --search   # how the rate of the head was chosen

TREC's questions, `minilm`, whose package has no head for masked words, so that both ways to train begin with the same
new one (its decoder is the table of word vectors). All are judged by the same hidden words of 500 questions that nobody
trained on. Each finished run is one line of --results and is not repeated: stop it at any time and start it again. The
table stands beside it, as Markdown.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import runs
from data import SHARED_DATA
from task_data import read_rows

HELD_OUT = 500
SEARCH_SEED = 10
BATCH_SIZE = 32


@dataclass(frozen=True)
class Way:
    """A method and its rate."""

    method: str
    learning_rate: float


WAYS = {"all of the encoder": Way("full", 3e-4), "the head alone": Way("head", 3e-2)}
SEARCHED = {"the head alone": (1e-3, 3e-3, 1e-2, 3e-2)}
"""The rates that `--search` tries, one epoch each. That of the whole encoder was not searched, to its disadvantage."""


def main():
    options = parse_options()
    if options.one:
        runs.run_one(options.one, measure)
        return
    if options.search:
        changes = {"judged_on": "held out", "epochs": 1}
        wanted = [
            run_of(name, SEARCH_SEED, options, learning_rate=rate, **changes)
            for name in SEARCHED
            for rate in SEARCHED[name]
        ]
        for result in runs.run_missing(__file__, wanted, options):
            run = result["run"]
            print(f"{run['name']:<20} rate {run['learning_rate']:g}: perplexity {result['perplexity']:.1f}")
        return
    wanted = [run_of(name, seed, options) for name in WAYS for seed in options.seeds]
    made = table(runs.run_missing(__file__, wanted, options))
    runs.write_text(options.results.with_suffix(".md"), made)
    print(f"\n{made}")


def run_of(name: str, seed: int, options, **changes) -> dict:
    return {
        "name": name,
        "method": WAYS[name].method,
        "learning_rate": WAYS[name].learning_rate,
        "epochs": options.epochs,
        "seed": seed,
        "sentences": len(parts_of(options.data)["train"]),
        "batch_size": BATCH_SIZE,
        "model": options.model,
        "judged_on": "dev",
        **changes,
    }


def parts_of(folder: Path) -> dict[str, list[str]]:
    """Different questions to train on, 500 to judge by (dev), and 500 for the search alone (held out)."""
    questions = list(dict.fromkeys(text for (text,) in read_rows(folder / "trec" / "train.tsv")[0]))
    order = runs.shuffled(len(questions), seed=0)
    held_out = min(HELD_OUT, len(questions) // 4)
    parts = {
        "dev": order[:held_out],
        "held out": order[held_out : 2 * held_out],
        "train": order[2 * held_out :],
    }
    return {name: [questions[i] for i in chosen] for name, chosen in parts.items()}


def measure(run: dict, data_folder: Path, folder: Path) -> dict:
    import minift
    from minift.tasks.documents import Documents

    files = {}
    for name, questions in parts_of(data_folder).items():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": each}) + "\n" for each in questions))
    metrics = minift.finetune(
        minift.TrainingConfig(
            train=files["train"], out=folder / "out", model=run["model"], task="fill-mask", epochs=run["epochs"],
            batch_size=run["batch_size"], learning_rate=run["learning_rate"], seed=run["seed"],
            method=run["method"],
        )
    )  # fmt: skip
    model = minift.load(folder / "out")
    judges, train = Documents(files[run["judged_on"]]), Documents(files["train"])
    losses, hidden = losses_of(model, judges)
    model.prepare(train)  # cuts it into tokens
    counts = np.bincount(np.concatenate(train.blocks), minlength=model.tokenizer.vocab_size)
    alpha, unigram = best_unigram(counts, hidden)
    return {
        "perplexity": float(np.exp(losses.mean())),
        "hidden_words": len(hidden),
        "unigram_alpha": alpha,
        "unigram_perplexity": unigram,
        "seconds_an_epoch": round(metrics["training_seconds"] / run["epochs"], 2),
    }


def losses_of(model, examples) -> tuple[np.ndarray, np.ndarray]:
    """The loss of every hidden word, and the words.

    The words are those that `minift evaluate` asks for, but here a mask stands for each of them: elsewhere a tenth
    stays as it is, which the unigram model, that reads nothing, could not make use of.
    """
    from minift.nn import evaluating

    losses, words = [], []
    with evaluating(model):
        for batch in model.batches(examples, BATCH_SIZE):
            asked = batch.labels != -100
            batch.ids = np.where(asked, model.mask, batch.ids)
            losses += [score.losses for score in model.decode(model(batch).numpy(), batch)]
            words.append(batch.labels[asked])
    return np.concatenate(losses), np.concatenate(words)


def best_unigram(counts: np.ndarray, words: np.ndarray) -> tuple[float, float]:
    """The perplexity of `words` under P(w) = (count + alpha) / (N + alpha V), and the best alpha.

    Alpha is the best for the very words that are judged: no other alpha is better, so the model is not held back by it.
    """
    by_alpha = {}
    for alpha in np.geomspace(1e-4, 10, 51):
        probabilities = (counts + alpha) / (counts.sum() + alpha * len(counts))
        by_alpha[float(alpha)] = float(np.exp(-np.log(probabilities[words]).mean()))
    best = min(by_alpha, key=by_alpha.__getitem__)
    return best, by_alpha[best]


def table(results: list[dict]) -> str:
    """A row for each way, and one for the unigram model, which has no seed."""
    first = results[0]
    lines = [
        f"Perplexity of the {first['hidden_words']} hidden word pieces of {HELD_OUT} held-out TREC questions, the "
        f"same for all; trained on {first['run']['sentences']} questions for {first['run']['epochs']} epochs.",
        "",
        "| model | rate | s/epoch | perplexity (95 %) | seeds |",
        "|---|---:|---:|---|---|",
    ]
    for name in dict.fromkeys(result["run"]["name"] for result in results):
        of_name = [result for result in results if result["run"]["name"] == name]
        cells = (
            f"minilm, {name}",
            f"{of_name[0]['run']['learning_rate']:g}",
            f"~{mean(result['seconds_an_epoch'] for result in of_name):.0f}",  # other programs may have run beside
            runs.with_interval([result["perplexity"] for result in of_name], 1),
            " ".join(f"{result['run']['seed']}: {result['perplexity']:.1f}" for result in of_name),
        )
        lines.append(f"| {' | '.join(cells)} |")
    alpha, unigram = first["unigram_alpha"], first["unigram_perplexity"]
    lines.append(f"| unigram, its best alpha {alpha:.2g} | | | {unigram:.1f} | |")
    return "\n".join(lines) + "\n"


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--search", action="store_true", help="try rates on questions that the table does not use"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder that holds trec/")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "masked_pretraining.jsonl"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
