"""Fine-tunings that are remembered: each in a process of its own, each finished one a line of JSON.

A run is told by its settings, a dict. One that stands in the results with equal settings is not repeated, so a program
of many runs can be stopped at any time and started again. Several processes may share one file: each leaves out what
another has finished meanwhile, but two that begin the same run at the same time both do it.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from data import CHECKOUT, Sentiment

sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "kernels")]

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""By the number of runs: how many standard errors a 95 % interval reaches to each side."""
SECONDS_A_SENTENCE = 0.02
"""Of one epoch on one core, where no run has been timed yet."""
SECONDS_A_RUN = 15
"""For starting, loading, and evaluating before and after."""

Measure = Callable[[dict, Path, Path], dict]
"""Runs what the settings say, on the data in the first folder, writing into the second; returns what was measured."""


def key_of(settings: dict) -> str:
    return json.dumps(settings, sort_keys=True)


def read(path: Path) -> dict[str, dict]:
    """The finished runs by the key of their settings, which stand under "run"; of equal ones the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {key_of(result["run"]): result for result in map(json.loads, lines)}


def run_missing(script: str, wanted: list[dict], options, again: bool = False) -> list[dict]:
    """All wanted runs' results, those that were missing (with `again`, all) run by `script --one`, cost said first."""
    finished = read(options.results)
    missing = [settings for settings in wanted if again or key_of(settings) not in finished]
    minutes = sum(expected_seconds(settings, finished) for settings in missing) / 60
    source = "as runs took before" if finished else "a guess"
    print(f"{len(missing)} of {len(wanted)} runs to do: about {minutes:.0f} minutes ({source})", flush=True)
    for number, settings in enumerate(missing, start=1):
        if not again and key_of(settings) in read(options.results):
            continue  # another process has finished it meanwhile
        words = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in ([], None))
        print(f"{number} of {len(missing)}: {words}", flush=True)
        task = {"run": settings, "data": str(options.data)}
        command = [sys.executable, script, "--one", json.dumps(task)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"the run failed: {settings}")
        result = json.loads(done.stdout.splitlines()[-1])
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
    finished = read(options.results)
    return [finished[key_of(settings)] for settings in wanted]


def run_one(written: str, measure: Measure) -> None:
    """What `script --one` does in its own process: run, and print the line to remember."""
    task = json.loads(written)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(task["run"], Path(task["data"]), Path(folder))
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"run": task["run"], **measured, "seconds": seconds}))


def expected_seconds(settings: dict, finished: dict[str, dict]) -> float:
    """By the sentences that it reads, at the pace of the runs of the same model and method, or of any."""

    def sentences(run: dict) -> int:
        return run["sentences"] * run["epochs"]

    alike = [each for each in finished.values() if each["run"]["model"] == settings["model"]]
    same = [each for each in alike if each["run"]["method"] == settings["method"]] or alike
    pace = [max(0.0, each["seconds"] - SECONDS_A_RUN) / sentences(each["run"]) for each in same]
    return SECONDS_A_RUN + sentences(settings) * (mean(pace) if pace else SECONDS_A_SENTENCE)


def write_tsv(path: Path, rows: list[tuple[str, int]]) -> Path:
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return path


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def rows_of(data: Sentiment, chosen: list[int]) -> list[tuple[str, int]]:
    """Training sentences and their labels."""
    return [(data.train_texts[i], data.train_labels[i]) for i in chosen]


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order drawn from the seed."""
    return random.Random(seed).sample(range(count), count)


def fine_tune(run: dict, train: Path, dev: Path, out: Path, model: str) -> dict:
    """Fine-tune once as the settings say, and weigh what came of it.

    Stops the program where a frozen weight changed, or where nothing that is trained moved.
    """
    import numba

    import minift
    from minift.methods import parse_options

    metrics = minift.finetune(
        minift.TrainingConfig(
            train=train, dev=dev, out=out, model=model, epochs=run["epochs"], batch_size=run["batch_size"],
            learning_rate=run["learning_rate"], seed=run["seed"], method=run["method"],
            method_options=tuple(run["options"]), max_length=128 if run["model"] == "minilm" else None,
        )
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    minift.manual_seed(run["seed"])  # so that the head and what is inserted are drawn as before training
    before = minift.load(model, labels=["0", "1"])
    minift.apply_method(before, run["method"], **parse_options(run["options"]))
    after = dict(minift.load(out).named_parameters())
    moved = {name: (each.data != after[name].data).any() for name, each in before.named_parameters()}
    trained = {name: each for name, each in before.named_parameters() if each.requires_grad}
    changed = [name for name in moved if moved[name] and name not in trained]
    if changed:
        sys.exit(f"frozen weights changed: {', '.join(changed)}")
    if not any(moved.values()):
        sys.exit("no weight moved")
    return {
        "accuracy": metrics["after"]["accuracy"],
        "accuracy_before": metrics["before"]["accuracy"],
        "trained_parameters": sum(each.data.size for each in trained.values()),
        "trained_tensors": len(trained),
        "moved_tensors": sum(map(bool, moved.values())),
        "saved_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "seconds_an_epoch": round(metrics["training_seconds"] / run["epochs"], 2),
        "threads": numba.get_num_threads(),
        "peak_bytes": peak,
    }


def half_interval(values: list[float]) -> float | None:
    """Half of the 95 % interval of the mean, by Student's t; none for one run."""
    if len(values) < 2:
        return None
    return STUDENT.get(len(values), 1.96) * stdev(values) / len(values) ** 0.5


def with_interval(values: list[float], digits: int = 4) -> str:
    """The mean and what is to be added and subtracted."""
    half = half_interval(values)
    return f"{mean(values):.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
