"""A new task is one file and one line in one table: what CONTRIBUTING.md's chapter says, done in a copy."""

import json
import re
import shutil
from pathlib import Path

import pytest
from command import run_process
from tiny import GOOD, rows

ROOT = Path(__file__).parents[1]
CHAPTER = (ROOT / "CONTRIBUTING.md").read_text().split("# A new task\n")[1].split("\n# ")[0]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the library with the chapter's file in it, its line in the table, and the import for that."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "minift", copy / "minift", ignore=shutil.ignore_patterns("__pycache__"))
    file, line = re.findall(r"```python\n(.*?)```", CHAPTER, re.DOTALL)
    [path] = re.findall(r"`(minift/tasks/text_\w+\.py)`:", CHAPTER)
    (copy / path).write_text(file)
    [name] = re.findall(r"^class (\w+)", file, re.MULTILINE)
    table = copy / "minift" / "tasks" / "__init__.py"
    before = table.read_text()
    imported = f"from minift.tasks.{Path(path).stem} import {name}\n"
    after = before.replace("\nTASKS", f"{imported}\nTASKS", 1).replace("\n}\n", f"\n{line}}}\n", 1)
    assert len(after.splitlines()) == len(before.splitlines()) + 2
    table.write_text(after)
    return copy


def test_what_the_chapter_adds_trains_and_is_found_again(tiny, tmp_path, copy, compiled):
    def minift(*arguments):
        done = run_process(*arguments, cwd=copy)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name, count, seed in (("train", 120, 1), ("dev", 30, 2)):
        lines = [f"{text}\t{5 if GOOD & set(text.split()) else 1}" for text, _ in rows(count, seed)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tscore", *lines]))
    out = tmp_path / "out"
    options = ["--model", tiny / "body", "--train", tmp_path / "train.tsv", "--dev", tmp_path / "dev.tsv"]
    rates = ["--epochs", 8, "--batch-size", 8, "--learning-rate", 3e-3]
    minift("finetune", "--task", "text-count", *options, *rates, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["after"]["pearson"] > 0.7 and metrics["after"]["loss"] < metrics["before"]["loss"]
    assert json.loads((out / "config.json").read_text())["problem_type"] == "poisson"
    counts = [
        json.loads(line)["score"]
        for line in minift("predict", out, "--text", "a great film", "a dull film", "--json").splitlines()
    ]
    assert counts[0] == pytest.approx(5, abs=1.5) and counts[1] == pytest.approx(1, abs=0.7)
