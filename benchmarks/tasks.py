"""Does minift learn every task as well as transformers? The same splits, seeds, rates and epochs; every seed is shown.

    python benchmarks/tasks.py                      # all runs; says first how long they will take
    python benchmarks/tasks.py --tasks trec stsb --seeds 0 --only minift

Each finished run is appended to --results as one JSON line, and a run that stands there is not repeated: stop it at
any time and start it again. What is compared, and how, is in README.md beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from data import SHARED_DATA, minilm_directory
from task_data import RECIPES, Recipe, scores, write_split

HERE = Path(__file__).resolve().parent
PROGRAMS = {"minift": "task_ours.py", "transformers": "task_peer.py"}
SETTINGS = (
    "library", "task", "seed", "data", "epochs", "batch_size", "learning_rate", "max_length", "model", "order",
)  # fmt: skip
"""What makes two runs the same run: one line of the results for each."""


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        splits = {
            task: write_split(task, options.data, Path(folder), options.examples) for task in options.tasks
        }
        wanted = [
            settings_of(library, task, seed, splits[task].digest, options)
            for task in options.tasks
            for seed in options.seeds
            for library in options.only
        ]
        finished = read_results(options.results)
        missing = [settings for settings in wanted if settings not in finished]
        minutes = sum(expected_minutes(settings, finished) for settings in missing)
        print(
            f"{len(wanted)} runs, {len(missing)} of them still to do: about {minutes:.0f} minutes on 2 cores"
        )
        for settings in missing:
            finished[settings] = run(settings, splits[settings[1]], options)
            append_result(options.results, finished[settings])
    print_table([finished[settings] for settings in wanted], options)


def settings_of(library: str, task: str, seed: int, digest: str, options) -> tuple:
    """The values of SETTINGS."""
    recipe = RECIPES[task]
    rates = (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.max_length)
    model = options.model.name if options.model else "minilm"
    return (library, task, seed, digest, *rates, model, "shared")


def run(settings: tuple, split, options) -> dict:
    """Fine-tune once in a fresh process, and score what it predicts for the held-out part."""
    named = dict(zip(SETTINGS, settings, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        order = {
            **named,
            "train": str(split.train),
            "dev": str(split.dev),
            "model": str(options.model or minilm_directory()),
            "task": RECIPES[named["task"]].task,
        }
        request, reply = Path(folder) / "request.json", Path(folder) / "reply.json"
        request.write_text(json.dumps(order))
        program = HERE / PROGRAMS[named["library"]]
        checkout = os.pathsep.join([str(HERE.parent), str(HERE.parent / "kernels")])
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), checkout]))
        subprocess.run(
            [sys.executable, str(program), str(request), str(reply)],
            check=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        found = json.loads(reply.read_text())
    result = scores(RECIPES[named["task"]], found.pop("predictions"), split)
    print(f"{named['library']} {named['task']} seed {named['seed']}: {in_words(result)}", flush=True)
    return named | {"metrics": result} | found


def expected_minutes(settings: tuple, finished: dict[tuple, dict]) -> float:
    """What a run takes: as long as others of its task and library did, else what the recipe says."""
    alike = [
        result["seconds"]
        for key, result in finished.items()
        if key[:2] == settings[:2] and key[3:] == settings[3:]
    ]
    return mean(alike) / 60 if alike else RECIPES[settings[1]].minutes[settings[0]]


def read_results(path: Path) -> dict[tuple, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(result[name] for name in SETTINGS): result for result in map(json.loads, lines)}


def append_result(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def print_table(results: list[dict], options) -> None:
    """For each task and metric every seed of either library, their means, and the difference of these."""
    for task in options.tasks:
        recipe: Recipe = RECIPES[task]
        print(
            f"\n{task}, {recipe.held_out}: {recipe.epochs} epochs, rate {recipe.learning_rate}, "
            f"batch {recipe.batch_size}"
        )
        for metric in recipe.metrics:
            means = {}
            for library in options.only:
                runs = [each for each in results if (each["library"], each["task"]) == (library, task)]
                means[library] = mean(each["metrics"][metric] for each in runs)
                seeds = "  ".join(f"seed {each['seed']}: {each['metrics'][metric]:.4f}" for each in runs)
                print(f"  {metric:<12} {library:<13} {seeds}  mean: {means[library]:.4f}")
            if len(means) == 2:
                difference = means["minift"] - means["transformers"]
                print(f"  {metric:<12} minift - transformers: {difference:+.4f} (asked: at least -0.0100)")


def in_words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=PROGRAMS, nargs="+", default=list(PROGRAMS))
    parser.add_argument("--examples", type=int, help="no more than this many of either part: a trial run")
    parser.add_argument("--model", type=Path, default=None, help="a BERT's directory; minilm if not given")
    parser.add_argument(
        "--data", type=Path, default=SHARED_DATA, help="the folder that holds trec/ and so on"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results" / "tasks.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    main()
