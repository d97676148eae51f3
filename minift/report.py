"""The report of a training: report.html, one file that shows how it went, and how to run it again.

It is made of what the log says step by step, so a run that was stopped and went on has the same curves as one that was
not. What it shows of a task, the task says itself: `verdict`, `outcomes` and `balance` in `task_model.py`.
"""

import dataclasses
import json
import shlex
from array import array
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minift.info import info
from minift.movement import Movement
from minift.page import page, rounded, shortened, write_page
from minift.tasks.task_model import Examples, TaskModel

FILE = "report.html"

CURVES = ("loss", "learning_rate", "grad_norm")
POINTS = 1000
"""How many points a curve has at most; of longer runs each is the mean of several steps."""
JUDGED = 1000
"""Of how many dev examples the page can tell whether they changed."""
CHANGED = 40
"""How many of those that changed it shows."""
COUNTED = 2000
"""Of how many training texts the lengths are counted."""
SIDE = 12
"""How many rows and columns a table of outcomes has at most."""

UNIMPORTANT = ("resume", "overwrite", "watch", "port")
"""Options that make no difference to what a run comes to."""


class Report:
    """Gathers what a training says of itself, and writes the page of it."""

    def __init__(
        self, model: TaskModel, movement: Movement, train_set: Examples, dev_set: Examples | None,
        config: Any, total_steps: int,
    ):  # fmt: skip
        """`config`, a dataclass, is what the training was begun with; see `TrainingConfig`."""
        self.model, self.movement, self.dev_set = model, movement, dev_set
        self.total_steps = total_steps
        self.curves = {name: array("d") for name in CURVES}
        self.measured: list[dict[str, Any]] = []
        self.before: dict[str, Any] | None = None
        self.after: dict[str, Any] | None = None
        """What `judged` gives, of the model before and after."""
        self.moved: list[tuple[float, float]] = []
        self.moved_at = 0
        """How far each part had moved after so many steps."""
        self.out = config.out
        self.title = f"{config.task}: {Path(config.model).name}, {config.method}"
        total, trained = (
            sum(each.data.size for each in some) for some in (model.parameters(), movement.start)
        )
        self.facts = (
            f"{total:,} parameters, {trained:,} of them trained. {len(train_set):,} examples to learn from"
            + ("." if dev_set is None else f", {len(dev_set):,} to judge by.")
        )
        self.fixed = {
            "epochs": config.epochs,
            "total_steps": total_steps,
            "max_grad_norm": rounded(config.max_grad_norm),
            "parts": list(movement.parts),
            "trained": [bool(part) for part in movement.parts.values()],
            "stride": movement.stride,
            "data": described(model, train_set, dev_set, config.batch_size, config.seed),
            "command": command(config),
            "versions": {**info()["versions"], "computes on": f"{config.device}, {config.precision}"},
        }

    def add(self, line: Mapping[str, Any]) -> None:
        """Take over a line of the log."""
        for name, values in self.curves.items():
            values.append(line[name])
        if "parts" in line:
            self.measured.append({"step": line["step"], **line["parts"]})

    def take_up(self, log: Path, length: int) -> None:
        """Take over the first `length` bytes of the log of a run that goes on."""
        with open(log, "rb") as file:
            for line in file.read(length).splitlines():
                self.add(json.loads(line))

    def judged(self, metrics: dict[str, float], predictions: list[Any]) -> dict[str, Any]:
        """What the page tells of the predictions for the dev set; JSON can write it."""
        assert self.dev_set is not None
        targets = self.model.targets(self.dev_set)
        verdicts = [
            self.model.verdict(self.dev_set[row][0], targets[row], predictions[row])
            for row in range(min(JUDGED, len(predictions)))
        ]
        outcomes = self.model.outcomes(targets, predictions)
        return {
            "metrics": {name: rounded(value) for name, value in metrics.items() if name != "seconds"},
            "said": [shortened(each.said, 100) for each in verdicts],
            "scores": [rounded(each.score) for each in verdicts],
            "examples": [
                {"text": shortened(each.text, 300), "expected": shortened(each.expected, 100)}
                for each in verdicts
            ],
            "outcomes": None if outcomes is None else outcomes._asdict(),
        }

    def write(self) -> None:
        """Measure how far each part has moved, and write the page, whole or not at all.

        Raises InputError where that fails.
        """
        self.moved = list(self.movement.since_start().values())
        self.moved_at = len(self.curves["loss"])
        write_page(self.out / FILE, "report", self.title, self.facts, self.data())

    def html(self, *scripts: str) -> str:
        """The page as it would be written now, with further scripts."""
        return page("report", self.title, self.facts, self.data(), scripts)

    def data(self) -> dict[str, Any]:
        """What the page shows. Another thread may ask for it while a step is taken: it looks at no weights."""
        steps = len(self.curves[CURVES[-1]])
        width = max(1, -(-steps // POINTS))
        sides = {"before": self.before, "after": self.after}
        return {
            **self.fixed,
            "steps": steps,
            "finished": self.after is not None or (self.dev_set is None and steps == self.total_steps),
            "steps_per_point": width,
            "curves": {name: thinned(values[:steps], width) for name, values in self.curves.items()},
            "measured": [
                {
                    key: value if key == "step" else [rounded(each) for each in value]
                    for key, value in one.items()
                }
                for one in list(self.measured)
            ],
            "moved": [[rounded(change), rounded(start)] for change, start in self.moved],
            "moved_at": self.moved_at,
            "metrics": {side: said and said["metrics"] for side, said in sides.items()},
            "outcomes": {side: said and drawn(said["outcomes"]) for side, said in sides.items()},
            "changed": self.changed(),
        }

    def changed(self) -> dict[str, Any] | None:
        """The examples of which the model says something else than before, those whose score changed most first."""
        if self.before is None or self.after is None or self.dev_set is None:
            return None
        gains = np.array(self.after["scores"], float) - np.array(self.before["scores"], float)
        rows = [
            row
            for row in np.argsort(-np.abs(gains), kind="stable").tolist()
            if self.before["said"][row] != self.after["said"][row]
        ]
        examples = [
            {
                **self.after["examples"][row],
                "before": self.before["said"][row],
                "after": self.after["said"][row],
                "gain": rounded(float(gains[row])),
            }
            for row in rows[:CHANGED]
        ]
        return {"count": len(rows), "of": len(gains), "examples": examples}


# ---- The parts of the page -----------------------------------------------------------------------


def thinned(values: array, width: int) -> list[float | None]:
    """The mean of every `width` values; the last one may be of fewer."""
    return [rounded(float(np.mean(values[at : at + width]))) for at in range(0, len(values), width)]


def described(
    model: TaskModel, train_set: Examples, dev_set: Examples | None, batch_size: int, seed: int
) -> dict[str, Any]:
    """The lengths of the first texts that training will see, and how often each label is right."""
    batches = islice(model.batches(train_set, batch_size, seed=seed), -(-COUNTED // batch_size))
    lengths: list[int] = []
    truncated = 0
    for batch in batches:
        lengths += np.diff(batch.offsets).tolist()
        truncated += batch.truncated
    counts, edges = np.histogram(lengths, bins=bins(max(lengths)))
    return {
        "texts": len(train_set),
        "counted": len(lengths),
        "lengths": {"counts": counts.tolist(), "edges": edges.tolist()},
        "median": float(np.median(lengths)),
        "longest": max(lengths),
        "truncated": truncated,
        "max_length": model.tokenizer.max_length,
        "balance": {
            name: fewer(model.balance(model.targets(each)))
            for name, each in (("train", train_set), ("dev", dev_set))
            if each is not None
        },
    }


def bins(longest: int, count: int = 32) -> np.ndarray:
    """Edges of at most `count` ranges of one width, a whole number, from 0 to behind the longest length."""
    width = longest // count + 1
    return np.arange(0, longest + width + 1, width)


def fewer(counts: dict[str, int]) -> dict[str, int]:
    """The commonest labels under their names, all others together."""
    if len(counts) <= SIDE:
        return counts
    common = sorted(counts, key=lambda name: -counts[name])[: SIDE - 1]
    kept = {name: count for name, count in counts.items() if name in common}
    return {**kept, f"{len(counts) - len(kept)} others": sum(counts.values()) - sum(kept.values())}


def drawn(outcomes: dict[str, Any] | None) -> dict[str, Any] | None:
    """A table of outcomes that fits a page: the commonest rows and columns under their names, all others together."""
    if outcomes is None:
        return None
    counts = np.array(outcomes["counts"])
    names = {"rows": outcomes["rows"], "columns": outcomes["columns"]}
    square = names["rows"] == names["columns"]
    weight = counts.sum(axis=1) + counts.sum(axis=0) if square else None
    for axis, side in enumerate(names):
        if len(names[side]) <= SIDE:
            continue
        by = weight if weight is not None else counts.sum(axis=1 - axis)
        kept = np.sort(np.argsort(-by, kind="stable")[: SIDE - 1])
        rest = np.setdiff1d(np.arange(len(names[side])), kept)
        together = counts.take(rest, axis).sum(axis=axis, keepdims=True)
        counts = np.concatenate([counts.take(kept, axis), together], axis)
        names[side] = [*(names[side][index] for index in kept), f"{len(rest)} others"]
    return {**names, "counts": counts.tolist()}


def command(config: Any) -> str:
    """The command that does the same again, into the same directory: every option that is not as it is by default."""
    words = ["minift", "finetune"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in UNIMPORTANT:
            continue
        name = f"--{field.name.replace('_', '-')}"
        words += [name, *map(str, value)] if isinstance(value, tuple) else [name, str(value)]
    return shlex.join(words)
