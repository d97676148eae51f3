"""The comparison of all tasks with transformers runs, goes on where it was stopped, and says what it will cost."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import CONFIG, make_model

from minift.data import shuffled

ROOT = Path(__file__).parents[2]
pytest.importorskip("transformers")
pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = replace(CONFIG, max_position_embeddings=384)
    make_model(folder / "vocabulary", config, task="question-answering").save(folder / "model")
    return folder / "model"


def compare(model: Path, data: Path, results: Path, *options: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / "tasks.py", "--model", model, "--data", data]
    command += ["--results", results, "--seeds", "0", "--examples", "8", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_task_on_both_sides_and_no_run_twice(model, shared_data, tmp_path):
    results = tmp_path / "tasks.jsonl"
    printed = compare(model, shared_data, results, "--tasks", "trec", "stsb")
    assert "4 runs, 4 of them still to do: about " in printed and len(results.read_text().splitlines()) == 4
    printed = compare(model, shared_data, results, "--tasks", "trec", "wnut17", "squad", "stsb")
    assert "8 runs, 4 of them still to do" in printed
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 8 and {line["library"] for line in lines} == {"minift", "transformers"}
    for line in lines:
        assert all(-1 <= value <= 1 for value in line["metrics"].values()) and line["seconds"] > 0
    assert printed.count("minift - transformers: ") == 6  # accuracy; f1; exact match, f1; Pearson, Spearman


def test_both_libraries_take_the_texts_in_one_order(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import task_peer

    orders = {
        (seed, epoch): task_peer.shuffled(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)
    }
    assert orders == {(seed, epoch): shuffled(50, seed, epoch).tolist() for seed, epoch in orders}
    assert len({tuple(order) for order in orders.values()}) == 4


def test_without_dropout_a_fine_tuning_gives_the_same_losses(model, shared_data):
    """A trial of a hundred pairs with a tiny model: eight steps on each side."""
    command = [
        sys.executable,
        ROOT / "benchmarks" / "same_losses.py",
        "--model",
        model,
        "--data",
        shared_data,
    ]
    done = subprocess.run(
        [*map(str, command), "--examples", "100"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "8 steps, losses from " in done.stdout
    differences = [float(each) for each in re.findall(r"steps .* (\S+e[-+]\d+)$", done.stdout, re.MULTILINE)]
    assert len(differences) == 6 and max(differences) < 1e-5
    ours, theirs = map(float, re.findall(r"pearson (\S+)", done.stdout))
    assert ours == pytest.approx(theirs, abs=0.005)  # predictions that hardly differ: rounding shows
