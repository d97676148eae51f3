"""Does it learn as well as PyTorch? Dev accuracy after two epochs, minift and transformers, seed by seed.

    python benchmarks/sst2.py --seeds 0 1 2

Batch 32, rate 5e-5, linear with 10 % warm-up, AdamW with weight decay 0.01 on everything, clipping at 1.0,
dropout 0.1, at most 128 tokens. For the same seed both sides see the same batches in the same order; head and
dropout come from each library's own generator. Each finished run is appended to --results as one JSON line, and
a run that stands there is not repeated: stop it at any time and start it again.
"""

import argparse
import importlib
import json
import time
from pathlib import Path
from statistics import mean

from data import SHARED_DATA, Sentiment, chunks, minilm_directory

MODULES = {"minift": "ours", "transformers": "peer"}


def main():
    options = parse_options()
    data = Sentiment(options.data)
    finished = read_results(options.results)
    for seed in options.seeds:
        for library in options.only:
            if key(library, seed, options, data) not in finished:
                result = run(library, seed, options, data)
                finished[key(library, seed, options, data)] = result
                with options.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    print_table(finished, options, data)


def run(library: str, seed: int, options, data: Sentiment) -> dict:
    """Fine-tune once; the dev accuracy after each epoch, and what made it."""
    peer_or_ours = importlib.import_module(MODULES[library])
    batches_an_epoch = len(chunks(data.train_texts, options.batch_size))
    trainer = peer_or_ours.Trainer(
        str(minilm_directory()),
        total_steps=options.epochs * batches_an_epoch,
        learning_rate=options.learning_rate,
        seed=seed,
    )
    accuracies, losses, seconds = [], [], 0.0
    for epoch in range(options.epochs):
        start = time.perf_counter()
        batches = data.shuffled_batches(options.batch_size, seed=1000 * seed + epoch)
        for number, (texts, labels) in enumerate(batches, start=1):
            losses.append(trainer.step(trainer.encode(texts), labels))
            if number % 50 == 0:
                print(f"{library} seed {seed} epoch {epoch + 1} step {number} loss {mean(losses[-50:]):.3f}", flush=True)
        seconds += time.perf_counter() - start
        accuracies.append(accuracy(trainer, data, options.batch_size))
        print(f"{library} seed {seed} epoch {epoch + 1} dev accuracy {accuracies[-1]:.4f}", flush=True)
    return {
        "library": library,
        "seed": seed,
        "data": data.digest,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "accuracy_by_epoch": accuracies,
        "loss_by_epoch": [mean(part) for part in chunks(losses, batches_an_epoch)],
        "seconds": round(seconds, 1),
        "versions": peer_or_ours.versions(),
    }


def accuracy(trainer, data: Sentiment, batch_size: int) -> float:
    right = 0
    for texts, labels in zip(chunks(data.dev_texts, batch_size), chunks(data.dev_labels, batch_size), strict=True):
        right += sum((high > low) == bool(label) for (low, high), label in zip(trainer.predict(texts), labels))
    return right / len(data.dev_texts)


def key(library: str, seed: int, options, data: Sentiment) -> tuple:
    return library, seed, data.digest, options.epochs, options.batch_size, options.learning_rate


def read_results(path: Path) -> dict[tuple, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    fields = ("library", "seed", "data", "epochs", "batch_size", "learning_rate")
    return {tuple(result[field] for field in fields): result for result in map(json.loads, lines)}


def print_table(finished: dict[tuple, dict], options, data: Sentiment):
    means = {}
    print(f"\nDev accuracy after {options.epochs} epochs on {data.name}")
    for library in options.only:
        results = [finished[key(library, seed, options, data)] for seed in options.seeds]
        last = [result["accuracy_by_epoch"][-1] for result in results]
        means[library] = mean(last)
        each = "  ".join(f"seed {seed}: {value:.4f}" for seed, value in zip(options.seeds, last))
        print(f"{library:<13} {each}  mean: {means[library]:.4f}")
    if len(means) == 2:
        print(f"minift - transformers: {means['minift'] - means['transformers']:+.4f} (at least -0.0100 is asked)")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=MODULES, nargs="+", default=list(MODULES))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder that holds sst2/")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "sst2.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    main()
