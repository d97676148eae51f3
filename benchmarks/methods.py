"""Which method costs what, and learns how well? One recipe, every method, a table.

    python benchmarks/methods.py            (make experiments)
    python benchmarks/methods.py --search   # how the rates in RECIPES were chosen
    python benchmarks/methods.py --timing   # seconds an epoch, on a machine that does nothing else

2,000 sentences of SST-2, `minilm`, 3 epochs in batches of 32, seeds 0, 1, 2, each run in a process of its own. Says
first what it will cost. Each finished run is one line of --results and is not repeated: stop it at any time and start
it again. The table stands beside it, as Markdown.
"""

import argparse
from pathlib import Path
from statistics import mean

import runs
from data import SHARED_DATA, Sentiment

RECIPES = {
    # name: method, its options, rate. A rate is the best of SEARCHED on held-out training sentences;
    # the others are of the order of their papers' and were never tuned here.
    "full": ("full", (), 5e-5),
    "frozen below layer 4": ("frozen", ("layers=4",), 1e-4),
    "head": ("head", (), 1e-2),
    "layer-wise rates": ("ulmfit", ("gradual=false",), 1e-4),
    "ulmfit": ("ulmfit", (), 1e-4),
    "bitfit": ("bitfit", (), 3e-3),
    "lora": ("lora", (), 5e-4),
    "ia3": ("ia3", (), 3e-2),
    "houlsby": ("houlsby", (), 5e-4),
    "pfeiffer": ("pfeiffer", (), 5e-4),
    "prefix": ("prefix", (), 1e-1),
    "prompt": ("prompt", (), 1e-1),
}
SEARCHED = {
    # About what the papers, or PEFT's examples, train with; the first tried first.
    "head": (3e-3, 1e-2, 1e-3),
    "bitfit": (3e-3, 1e-2, 1e-3),
    "ia3": (1e-2, 3e-2, 3e-3),
    "prefix": (1e-2, 3e-2, 1e-1),
    "prompt": (3e-2, 1e-1, 3e-1),
}
"""The methods that train so little that a rate of 1e-4 moves nothing, and the rates that `--search` tries."""
HELD_OUT = 500
"""Training sentences, none of those trained on, that the search judges by; dev has no say in it."""
SEARCH_SEED = 10
"""A seed that the table does not use."""
TIMED_SENTENCES = 320


def main():
    options = parse_options()
    if options.one:
        runs.run_one(options.one, measure)
        return
    data = Sentiment(options.data)
    if options.search:
        print_search(runs.run_missing(__file__, searched_runs(options, data), options))
        return
    timed = timed_runs(options, data)
    if options.timing:
        runs.run_missing(__file__, timed, options, again=True)
    wanted = [run_of(name, seed, options, data) for seed in options.seeds for name in options.only]
    if not (options.timing or options.so_far):
        runs.run_missing(__file__, wanted, options)
    finished = runs.read(options.results)
    times = {run["name"]: finished.get(runs.key_of(run)) for run in timed}
    made = table([finished[key] for key in map(runs.key_of, wanted) if key in finished], times, data)
    if not data.stands_in:
        runs.write_text(options.results.with_suffix(".md"), made)
    print(f"\n{made}")


def run_of(name: str, seed: int, options, data: Sentiment, **changes) -> dict:
    """A run's settings; `judged_on` is dev, or for the search what it holds out."""
    method, method_options, rate = RECIPES[name]
    return {
        "name": name,
        "method": method,
        "options": list(method_options),
        "learning_rate": rate,
        "epochs": options.epochs,
        "seed": seed,
        "sentences": options.sentences,
        "batch_size": options.batch_size,
        "model": options.model,
        "data": data.digest,
        "judged_on": "dev",
        **changes,
    }


def searched_runs(options, data: Sentiment) -> list[dict]:
    return [
        run_of(name, SEARCH_SEED, options, data, learning_rate=rate, judged_on="held out")
        for name in options.only
        for rate in SEARCHED.get(name, ())
    ]


def timed_runs(options, data: Sentiment) -> list[dict]:
    changes = {"sentences": min(TIMED_SENTENCES, options.sentences), "judged_on": "the clock"}
    return [run_of(name, 0, options, data, **changes) for name in options.only]


def measure(run: dict, data_folder: Path, folder: Path) -> dict:
    data = Sentiment(data_folder)
    order = runs.shuffled(len(data.train_texts), seed=0)  # the same for every seed
    train = runs.write_tsv(folder / "train.tsv", runs.rows_of(data, order[: run["sentences"]]))
    if run["judged_on"] == "held out":
        judges = runs.rows_of(data, order[run["sentences"] : run["sentences"] + HELD_OUT])
    else:
        judges = list(zip(data.dev_texts, data.dev_labels, strict=True))
    dev = runs.write_tsv(folder / "dev.tsv", judges)
    return runs.fine_tune(run, train, dev, folder / "out", run["model"])


def majority(data: Sentiment) -> float:
    """What always saying the commoner label would score on dev."""
    positive = mean(data.dev_labels)
    return max(positive, 1 - positive)


def print_search(results: list[dict]) -> None:
    print(f"\nAccuracy on {HELD_OUT} held-out training sentences, seed {SEARCH_SEED}, the best marked")
    for name in dict.fromkeys(result["run"]["name"] for result in results):
        tried = {
            result["run"]["learning_rate"]: result["accuracy"]
            for result in results
            if result["run"]["name"] == name
        }
        best = max(tried, key=tried.__getitem__)
        cells = [f"{rate:g}: {tried[rate]:.3f}{'*' if rate == best else ' '}" for rate in tried]
        print(f"{name:<22}" + "  ".join(cells))


def table(results: list[dict], timed: dict[str, dict | None], data: Sentiment) -> str:
    """One row a method. Seconds come from `--timing`, and where it has not run from the runs themselves (~)."""
    threads = sorted({result["threads"] for result in [*filter(None, timed.values()), *results]})
    lines = [
        f"Dev accuracy on {data.name}; always the commoner label: {majority(data):.4f}. Seconds an epoch on "
        f"{' or '.join(map(str, threads)) or 'no'} thread(s); ~ where other programs may have run beside.",
        "",
        "| method | trained | saved MB | s/epoch | peak MB | rate | accuracy (95 %) | seeds |",
        "|---|---:|---:|---:|---:|---:|---|---|",
    ]
    for name in dict.fromkeys(result["run"]["name"] for result in results):
        of_name = [result for result in results if result["run"]["name"] == name]
        accuracies = [result["accuracy"] for result in of_name]
        cells = (
            name,
            f"{of_name[0]['trained_parameters']:,}",
            f"{of_name[0]['saved_bytes'] / 1e6:.3f}",
            seconds_an_epoch(of_name, timed[name]),
            f"{max(result['peak_bytes'] for result in of_name) / 1e6:.0f}",
            f"{of_name[0]['run']['learning_rate']:g}",
            runs.with_interval(accuracies),
            " ".join(f"{result['run']['seed']}: {result['accuracy']:.4f}" for result in of_name),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def seconds_an_epoch(results: list[dict], timed: dict | None) -> str:
    if timed is None:
        return f"~{mean(result['seconds_an_epoch'] for result in results):.1f}"
    share = results[0]["run"]["sentences"] / timed["run"]["sentences"]
    return f"{timed['seconds_an_epoch'] * share:.1f}"


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true", help="try each method's rates on held-out sentences")
    parser.add_argument("--timing", action="store_true", help="time a few batches of each method anew")
    parser.add_argument(
        "--so-far", action="store_true", help="print the table of what has run, and run nothing"
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
