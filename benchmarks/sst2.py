"""Does it learn as well as PyTorch? Dev accuracy after two epochs, minift and transformers, seed by seed.

    python benchmarks/sst2.py --seeds 0 1 2

Batch 32, rate 5e-5, linear with 10 % warm-up, AdamW with weight decay 0.01 on everything, clipping at 1.0,
dropout 0.1, at most 128 tokens. For the same seed both sides see the same batches in the same order; head and
dropout come from each library's own generator. Each finished run is appended to --results as one JSON line,
and a run that stands there is not repeated: stop it at any time and start it again.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from data import SHARED_DATA, Sentiment, chunks, minilm_directory
from worker import MODULES, Worker

SETTINGS = ("library", "seed", "data", "epochs", "batch_size", "learning_rate")
"""What makes two runs the same run: one line of the results for each."""


def main():
    options = parse_options()
    data = Sentiment(options.data)
    finished = read_results(options.results)
    for seed in options.seeds:
        for library in options.only:
            settings = settings_of(library, seed, options, data)
            if settings not in finished:
                finished[settings] = run(settings, data)
                append_result(options.results, finished[settings])
    print_table(finished, options, data)


def settings_of(library: str, seed: int, options, data: Sentiment) -> tuple:
    """The values of SETTINGS."""
    return library, seed, data.digest, options.epochs, options.batch_size, options.learning_rate


def run(settings: tuple, data: Sentiment) -> dict:
    """Fine-tune once in a fresh process; dev accuracy and mean loss after each epoch."""
    library, seed, _, epochs, batch_size, learning_rate = settings
    batches_an_epoch = len(chunks(data.train_texts, batch_size))
    accuracies, losses, seconds = [], [], 0.0
    with Worker(
        library,
        directory=str(minilm_directory()),
        total_steps=epochs * batches_an_epoch,
        learning_rate=learning_rate,
        seed=seed,
    ) as worker:
        for epoch in range(epochs):
            for texts, labels in data.shuffled_batches(batch_size, seed=1000 * seed + epoch):
                turn = worker.step(texts, labels)
                losses.append(turn["loss"])
                seconds += turn["encode_seconds"] + turn["seconds"]
                if len(losses) % 50 == 0:
                    print(
                        f"{library} seed {seed} step {len(losses)} loss {mean(losses[-50:]):.3f}", flush=True
                    )
            accuracies.append(dev_accuracy(worker, data, batch_size))
            print(f"{library} seed {seed} epoch {epoch + 1} dev accuracy {accuracies[-1]:.4f}", flush=True)
        return dict(zip(SETTINGS, settings, strict=True)) | {
            "accuracy_by_epoch": accuracies,
            "loss_by_epoch": [mean(part) for part in chunks(losses, batches_an_epoch)],
            "seconds": round(seconds, 1),
            "peak_bytes": worker.peak_memory(),
            "versions": worker.versions,
        }


def dev_accuracy(worker: Worker, data: Sentiment, batch_size: int) -> float:
    logits = [row for texts in chunks(data.dev_texts, batch_size) for row in worker.predict(texts)["logits"]]
    predicted = [int(positive > negative) for negative, positive in logits]
    return mean(guess == label for guess, label in zip(predicted, data.dev_labels, strict=True))


def read_results(path: Path) -> dict[tuple, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(result[name] for name in SETTINGS): result for result in map(json.loads, lines)}


def append_result(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def print_table(finished: dict[tuple, dict], options, data: Sentiment):
    means = {}
    print(f"\nDev accuracy after {options.epochs} epochs on {data.name}")
    for library in options.only:
        results = [finished[settings_of(library, seed, options, data)] for seed in options.seeds]
        last = [result["accuracy_by_epoch"][-1] for result in results]
        means[library] = mean(last)
        each = "  ".join(f"seed {seed}: {value:.4f}" for seed, value in zip(options.seeds, last, strict=True))
        print(f"{library:<13} {each}  mean: {means[library]:.4f}")
    if len(means) == 2:
        difference = means["minift"] - means["transformers"]
        print(f"minift - transformers: {difference:+.4f} (asked: at least -0.0100)")


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
