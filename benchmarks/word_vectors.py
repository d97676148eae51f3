"""Word vectors, where the story begins: static against fine-tuned, mean against convolution, beside `minilm`.

    python benchmarks/word_vectors.py
    python benchmarks/word_vectors.py --search   # how the rates in WAYS were chosen

All 6,920 training sentences of SST-2, GloVe's vectors of 50 numbers, seeds 0, 1, 2, each run in a process of its own.
Each finished run is one line of --results and is not repeated: stop it at any time and start it again. The table
stands beside it, as Markdown. `minilm` has been measured on the same sentences and seeds by `tasks.py`, whose results
are shown with them.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import runs
from data import SHARED_DATA, Sentiment
from textbook_page import print_search

VECTORS = Path("embeddings") / "glove.6B.50d.8k.w2v.txt"
HELD_OUT = 500
"""Training sentences that the search does not train on, and judges by; dev has no say in a rate."""
SEARCH_SEED = 10
EPOCHS = 10
MINILM = Path(__file__).parent / "results" / "tasks.jsonl"
"""What tasks.py found: minilm, fine-tuned in full on the same sentences."""


@dataclass(frozen=True)
class Way:
    """How the vectors of a text become one, what is trained, and how fast."""

    pooling: str
    method: str
    """head: the vectors are static; full: they are trained, too."""
    learning_rate: float


WAYS = {
    "mean, static": Way("mean", "head", 1e-3),
    "mean, fine-tuned": Way("mean", "full", 3e-3),
    "convolution, static": Way("convolution", "head", 3e-3),
    "convolution, fine-tuned": Way("convolution", "full", 1e-3),
}
SEARCHED = {
    "mean, static": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "mean, fine-tuned": (3e-4, 1e-3, 3e-3, 1e-2),
    "convolution, static": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "convolution, fine-tuned": (1e-4, 3e-4, 1e-3, 3e-3),
}


def main():
    options = parse_options()
    if options.one:
        runs.run_one(options.one, measure)
        return
    data = Sentiment(options.data)
    if options.search:
        wanted = [
            run_of(
                name, SEARCH_SEED, options, data, learning_rate=rate,
                sentences=len(data.train_texts) - HELD_OUT, judged_on="held out",
            )
            for name in options.only
            for rate in SEARCHED[name]
        ]  # fmt: skip
        print_search(runs.run_missing(__file__, wanted, options), HELD_OUT)
        return
    wanted = [run_of(name, seed, options, data) for name in options.only for seed in options.seeds]
    made = table(runs.run_missing(__file__, wanted, options), data)
    runs.write_text(options.results.with_suffix(".md"), made)
    print(f"\n{made}")


def run_of(name: str, seed: int, options, data: Sentiment, **changes) -> dict:
    way = WAYS[name]
    return {
        "name": name,
        "method": way.method,
        "options": [],
        "learning_rate": way.learning_rate,
        "epochs": options.epochs,
        "seed": seed,
        "sentences": len(data.train_texts),
        "batch_size": 32,
        "model": way.pooling,
        "data": data.digest,
        "judged_on": "dev",
        **changes,
    }


def measure(run: dict, data_folder: Path, folder: Path) -> dict:
    import minift
    from minift.models.word_vectors import import_word2vec

    data = Sentiment(data_folder)
    judges = list(zip(data.dev_texts, data.dev_labels, strict=True))
    order = runs.shuffled(len(data.train_texts), seed=0)
    if run["judged_on"] == "held out":
        judges, order = runs.rows_of(data, order[:HELD_OUT]), order[HELD_OUT:]
    train = runs.write_tsv(folder / "train.tsv", runs.rows_of(data, order))
    dev = runs.write_tsv(folder / "dev.tsv", judges)
    import_word2vec(data_folder / VECTORS, folder / "vectors", pooling=run["model"])
    measured = runs.fine_tune(run, train, dev, folder / "out", str(folder / "vectors"))
    tokenizer = minift.load(folder / "out").tokenizer
    unknown = tokenizer.special_id("unk_token")
    pieces = [token for text, _ in judges for token in tokenizer.pieces(text)]
    return {**measured, "unknown_share": round(pieces.count(unknown) / len(pieces), 4)}


def minilm(data: Sentiment, seeds: list[int]) -> dict[int, float]:
    """The dev accuracy of minilm by seed, as tasks.py measured it, where that ran on the same sentences."""
    lines = MINILM.read_text().splitlines() if MINILM.exists() else []
    return {
        result["seed"]: result["metrics"]["accuracy"]
        for result in map(json.loads, lines)
        if (result["library"], result["task"], result["data"]) == ("minift", "sst2", data.digest)
        and result["seed"] in seeds
    }


def table(results: list[dict], data: Sentiment) -> str:
    """One row a way; the seconds are a hint."""
    positive = mean(data.dev_labels)
    lines = [
        f"Dev accuracy on {data.name}, trained on {len(data.train_texts)} of them; always the commoner label: "
        f"{max(positive, 1 - positive):.4f}. {100 * results[0]['unknown_share']:.0f} % of dev's words have no vector.",
        "",
        "| model | trained | rate | s/epoch | accuracy (95 %) | seeds |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name in dict.fromkeys(result["run"]["name"] for result in results):
        of_name = [result for result in results if result["run"]["name"] == name]
        seconds = mean(result["seconds_an_epoch"] for result in of_name)
        costs = (
            f"{of_name[0]['trained_parameters']:,}",
            f"{of_name[0]['run']['learning_rate']:g}",
            f"~{seconds:.1f}",  # other programs may have run beside
        )
        by_seed = {result["run"]["seed"]: result["accuracy"] for result in of_name}
        lines.append(f"| {name} | {' | '.join(costs)} | {in_words(by_seed)} |")
    if beside := minilm(data, [result["run"]["seed"] for result in results]):
        lines.append(f"| minilm, fine-tuned (`tasks.py`) | all | 5e-05 | | {in_words(beside)} |")
    return "\n".join(lines) + "\n"


def in_words(by_seed: dict[int, float]) -> str:
    seeds = " ".join(f"{seed}: {accuracy:.4f}" for seed, accuracy in by_seed.items())
    return f"{runs.with_interval(list(by_seed.values()))} | {seeds}"


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true", help="try rates on held-out training sentences")
    parser.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder of sst2/ and embeddings/")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "word_vectors.jsonl"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
