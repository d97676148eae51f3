"""What the textbook says of fine-tuning, measured: each claim as two or more ways to train, side by side.

    python benchmarks/textbook.py                      # all parts, the cheapest runs first; says first how long
    python benchmarks/textbook.py --only few           # one part
    python benchmarks/textbook.py --search             # to choose the rate of training from scratch
    python benchmarks/textbook.py --render             # tutorials/04_what_the_textbook_claims.md, of what has run

SST-2's sentences, `minilm`, batches of 16, at least 100 steps and 3 epochs. Each seed draws its own examples, as many
of either class, the same for every way to train; accuracy is on the 872 dev sentences. Each finished run is one line
of --results and is not repeated: stop it at any time and start it again.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import runs
from data import CHECKOUT, SHARED_DATA, Sentiment
from methods import RECIPES
from textbook_page import print_search, write_page

BATCH_SIZE = 16
LEAST_STEPS, LEAST_EPOCHS = 100, 3
HELD_OUT = 500
"""Training sentences that nothing is trained on; the search judges by them."""


@dataclass(frozen=True)
class Way:
    """A way to train."""

    method: str
    options: tuple[str, ...]
    learning_rate: float
    least_steps: int = LEAST_STEPS


def recipe(name: str, least_steps: int = LEAST_STEPS) -> Way:
    """A method with the rate that it has in the table of methods."""
    method, options, rate = RECIPES[name]
    return Way(method, options, rate, least_steps)


WAYS = {
    "fine-tuned": recipe("full"),
    # Untrained weights are far from any answer: in 189 steps, at 5e-5, 2e-4 and 5e-4, they came to say one class.
    "from scratch": Way("full", (), 1e-4, least_steps=600),  # the best of three rates (`--search`)
    "frozen": recipe("head"),
    "prompt tuning": recipe(
        "prompt", least_steps=300
    ),  # it moves slowly (Lester et al. 2021 take 30,000 steps)
    "SetFit": Way("setfit", (), 2e-5),
}
SIZES = (50, 100, 200, 500, 1000, 5000)
FEW = (8, 16, 32)
RATES = (1e-5, 5e-5, 1e-4, 3e-4, 1e-3)
RATES_SIZE = 1000
PARTS = {
    # What is run for each claim: way, examples, and where it is not the way's own, the rate.
    "scratch": [(way, size) for size in SIZES for way in ("fine-tuned", "from scratch")],
    "frozen": [(way, size) for size in SIZES for way in ("fine-tuned", "frozen")],
    "rates": [("fine-tuned", RATES_SIZE, rate) for rate in RATES],
    "few": [(way, size) for size in FEW for way in ("fine-tuned", "prompt tuning", "SetFit")],
}
SEARCHED = {"from scratch": (1e-4, 5e-5, 2e-4)}


def main():
    options = parse_options()
    if options.one:
        runs.run_one(options.one, measure)
        return
    data = Sentiment(options.data)
    if options.search:
        wanted = [
            run_of(way, RATES_SIZE, 10, options, data, learning_rate=rate, judged_on="held out")
            for way, rates in SEARCHED.items()
            for rate in rates
        ]
        print_search(runs.run_missing(__file__, wanted, options), HELD_OUT)
        return
    wanted = {part: runs_of(part, options, data) for part in PARTS}
    if not options.render:
        once = {runs.key_of(run): run for part in options.only for run in wanted[part]}
        cheapest_first = sorted(once.values(), key=lambda run: run["epochs"] * run["sentences"])
        runs.run_missing(__file__, cheapest_first, options)
    finished = runs.read(options.results)
    found = {
        part: [finished[key] for key in map(runs.key_of, each) if key in finished]
        for part, each in wanted.items()
    }
    if data.stands_in and options.page.exists():
        sys.exit(f"{options.page} stays as it is, which is of SST-2; --page writes another")
    write_page(found, wanted, data, options.page)


def runs_of(part: str, options, data: Sentiment) -> list[dict]:
    """All runs of a part, one size after the other, each with all its seeds."""
    return [
        run_of(way, size, seed, options, data, **({"learning_rate": rate[0]} if rate else {}))
        for way, size, *rate in PARTS[part]
        for seed in options.seeds
    ]


def run_of(way: str, size: int, seed: int, options, data: Sentiment, **changes) -> dict:
    how = WAYS[way]
    steps_an_epoch = math.ceil(size / BATCH_SIZE)
    return {
        "name": way,
        "method": how.method,
        "options": list(how.options),
        "learning_rate": how.learning_rate,
        "epochs": options.epochs or max(LEAST_EPOCHS, math.ceil(how.least_steps / steps_an_epoch)),
        "seed": seed,
        "sentences": size,
        "batch_size": BATCH_SIZE,
        "model": options.model,
        "data": data.digest,
        "judged_on": "dev",
        **changes,
    }


def measure(run: dict, data_folder: Path, folder: Path) -> dict:
    data = Sentiment(data_folder)
    held_out, chosen = examples(data, run["sentences"], run["seed"])
    train = runs.write_tsv(folder / "train.tsv", runs.rows_of(data, chosen))
    if run["judged_on"] == "held out":
        judges = runs.rows_of(data, held_out)
    else:
        judges = list(zip(data.dev_texts, data.dev_labels, strict=True))
    if run["method"] == "setfit":
        return setfit(run, runs.rows_of(data, chosen), judges)
    dev = runs.write_tsv(folder / "dev.tsv", judges)
    model = run["model"] if run["name"] != "from scratch" else untrained(run, folder / "untrained")
    return runs.fine_tune(run, train, dev, folder / "out", model)


def examples(data: Sentiment, size: int, seed: int) -> tuple[list[int], list[int]]:
    """What is held out, the same for every seed, and of the rest `size` examples, as many of either class."""
    order = runs.shuffled(len(data.train_texts), seed=0)
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    drawn = [rest[i] for i in runs.shuffled(len(rest), seed)]
    chosen = []
    for label, count in ((0, size // 2), (1, size - size // 2)):
        chosen += [i for i in drawn if data.train_labels[i] == label][:count]
    return held_out, chosen


def untrained(run: dict, directory: Path) -> str:
    """The same architecture with the weights that it had before all training."""
    import minift
    from minift.models.architecture import initialize

    minift.manual_seed(run["seed"])
    model = minift.load(run["model"], labels=["0", "1"])
    initialize(dict(model.named_parameters()), model.config.initializer_range)
    model.save(directory)
    return str(directory)


def setfit(run: dict, rows: list[tuple[str, int]], judges: list[tuple[str, int]]) -> dict:
    import minift
    from minift.setfit import SetFit

    minift.manual_seed(run["seed"])
    learner = SetFit(minift.load(run["model"], labels=["0", "1"]))
    texts = [(text, str(label)) for text, label in rows]
    learner.fit(texts, learning_rate=run["learning_rate"], batch_size=run["batch_size"], seed=run["seed"])
    predictions = learner.predict([text for text, _ in judges])
    right = [each.label == str(label) for each, (_, label) in zip(predictions, judges, strict=True)]
    return {"accuracy": sum(right) / len(right)}


def parse_options():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true", help="try rates on held-out sentences")
    parser.add_argument(
        "--render", action="store_true", help="write the page of what has run, and run nothing"
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="instead of what the number of steps asks for: a trial")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder that holds sst2/")
    parser.add_argument("--results", type=Path, default=here / "results" / "textbook.jsonl")
    parser.add_argument(
        "--page", type=Path, default=CHECKOUT / "tutorials" / "04_what_the_textbook_claims.md"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
