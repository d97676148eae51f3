"""Which method costs what, and learns how well? One recipe, every method, a table.

    python benchmarks/methods.py            (make experiments)

2,000 sentences of SST-2, `minilm`, 3 epochs in batches of 32, seeds 0, 1, 2, each run in a process of its own. Says
first what it will cost. Each finished run is one line of --results and is not repeated: stop it at any time and
start it again.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

from data import SHARED_DATA, Sentiment

CHECKOUT = Path(__file__).resolve().parent.parent

RECIPES = {
    # name: method, its options, rate. Rates are those of the papers' order, not tuned on the dev set.
    "full": ("full", (), 5e-5),
    "frozen below layer 4": ("frozen", ("layers=4",), 1e-4),
    "head": ("head", (), 1e-3),
    "layer-wise rates": ("ulmfit", ("gradual=false",), 1e-4),
    "ulmfit": ("ulmfit", (), 1e-4),
    "bitfit": ("bitfit", (), 1e-3),
    "lora": ("lora", (), 5e-4),
    "ia3": ("ia3", (), 5e-3),
    "houlsby": ("houlsby", (), 5e-4),
    "pfeiffer": ("pfeiffer", (), 5e-4),
    "prefix": ("prefix", (), 5e-3),
    "prompt": ("prompt", (), 5e-3),
}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""By the number of runs: how many standard errors a 95 % interval reaches to each side."""
SECONDS_AN_EPOCH = 40
"""Of full fine-tuning on 2 cores, where no run has been timed yet."""
SETTINGS = ("name", "options", "learning_rate", "seed", "data", "sentences", "epochs", "batch_size", "model")
"""What makes two runs the same run."""


def main():
    options = parse_options()
    if options.one:
        print(json.dumps(run_here(json.loads(options.one))))
        return
    data = Sentiment(options.data)
    finished = read_results(options.results)
    wanted = [settings_of(name, seed, options, data) for seed in options.seeds for name in options.only]
    missing = [settings for settings in wanted if key_of(settings) not in finished]
    print_cost(missing, finished, options)
    with tempfile.TemporaryDirectory() as folder:
        train, dev, majority = write_files(data, options.sentences, Path(folder))
        for number, settings in enumerate(missing, start=1):
            print(f"{number} of {len(missing)}: {settings['name']}, seed {settings['seed']}", flush=True)
            task = {**settings, "train": str(train), "dev": str(dev), "out": f"{folder}/run-{number}"}
            result = run_in_a_process(task)
            finished[key_of(settings)] = result
            append_result(options.results, result)
    print_table([finished[key_of(settings)] for settings in wanted], majority, data)


def settings_of(name: str, seed: int, options, data: Sentiment) -> dict:
    _, method_options, rate = RECIPES[name]
    values = (name, list(method_options), rate, seed, data.digest, options.sentences)
    return dict(zip(SETTINGS, (*values, options.epochs, options.batch_size, options.model), strict=True))


def key_of(settings: dict) -> str:
    return json.dumps([settings[name] for name in SETTINGS])


def read_results(path: Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {key_of(result): result for result in map(json.loads, lines)}


def append_result(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def print_cost(missing: list[dict], finished: dict[str, dict], options) -> None:
    timed = [
        result["seconds_an_epoch"] / result["sentences"] * options.sentences
        for result in finished.values()
        if result["model"] == options.model
    ]
    seconds = mean(timed) if timed else SECONDS_AN_EPOCH * options.sentences / 2000
    minutes = len(missing) * options.epochs * seconds * 1.2 / 60  # a fifth for loading and evaluating
    source = "as runs took before" if timed else "a guess for 2 cores"
    print(
        f"{len(missing)} runs of {options.epochs} epochs over {options.sentences:,} sentences: "
        f"about {minutes:.0f} minutes ({source})",
        flush=True,
    )


def write_files(data: Sentiment, sentences: int, folder: Path) -> tuple[Path, Path, float]:
    """The training and dev files, and what always saying the commoner label would score on dev."""
    chosen = random.Random(0).sample(
        range(len(data.train_texts)), min(sentences, len(data.train_texts))
    )  # the same for every seed
    rows = [(data.train_texts[i], data.train_labels[i]) for i in chosen]
    train = write_tsv(folder / "train.tsv", rows)
    dev = write_tsv(folder / "dev.tsv", list(zip(data.dev_texts, data.dev_labels, strict=True)))
    positive = mean(data.dev_labels)
    return train, dev, max(positive, 1 - positive)


def write_tsv(path: Path, rows: list[tuple[str, int]]) -> Path:
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return path


def run_in_a_process(task: dict) -> dict:
    """One run, in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--one", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the run failed: {task}")
    return json.loads(done.stdout.splitlines()[-1])


def run_here(task: dict) -> dict:
    """Fine-tune once, and weigh what came of it."""
    sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "kernels")]
    import minift
    from minift.methods import parse_options

    method, options, rate = RECIPES[task["name"]]
    started = time.perf_counter()
    metrics = minift.finetune(
        minift.TrainingConfig(
            train=Path(task["train"]), dev=Path(task["dev"]), out=Path(task["out"]), model=task["model"],
            epochs=task["epochs"], batch_size=task["batch_size"], learning_rate=rate, seed=task["seed"],
            method=method, method_options=options, max_length=128 if task["model"] == "minilm" else None,
        )
    )  # fmt: skip
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fresh = minift.load(task["model"], labels=["0", "1"])
    minift.apply_method(fresh, method, **parse_options(options))
    return {
        **{name: task[name] for name in SETTINGS},
        "method": method,
        "trained_parameters": sum(each.data.size for each in fresh.parameters() if each.requires_grad),
        "saved_bytes": sum(path.stat().st_size for path in Path(task["out"]).glob("*.safetensors")),
        "seconds_an_epoch": round(metrics["training_seconds"] / task["epochs"], 2),
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "accuracy": metrics["after"]["accuracy"],
        "accuracy_before": metrics["before"]["accuracy"],
    }


def print_table(results: list[dict], majority: float, data: Sentiment) -> None:
    print(f"\nDev accuracy on {data.name}; always the commoner label: {majority:.4f}")
    print(
        f"{'method':<22}{'trained':>12}{'saved MB':>10}{'s/epoch':>9}{'peak MB':>9}  accuracy (95 %)   seeds"
    )
    for name in dict.fromkeys(result["name"] for result in results):
        runs = [result for result in results if result["name"] == name]
        accuracies = [result["accuracy"] for result in runs]
        print(
            f"{name:<22}{runs[0]['trained_parameters']:>12,}{runs[0]['saved_bytes'] / 1e6:>10.3f}"
            f"{mean(result['seconds_an_epoch'] for result in runs):>9.1f}"
            f"{max(result['peak_bytes'] for result in runs) / 1e6:>9.0f}"
            f"  {mean(accuracies):.4f}{interval(accuracies):<10}  "
            + " ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        )


def interval(values: list[float]) -> str:
    """Half of the 95 % interval of the mean, by Student's t; nothing for one run."""
    if len(values) < 2:
        return ""
    return f" ± {STUDENT.get(len(values), 1.96) * stdev(values) / len(values) ** 0.5:.4f}"


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder that holds sst2/")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "methods.jsonl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
