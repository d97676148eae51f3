"""`kill -9` at any moment, then `--resume`: the run ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import rows, write_tsv

from minift import checkpoint, training_state
from minift.train import LOG, METRICS

ROOT = Path(__file__).parents[1]
STEPS = 240  # 320 texts in batches of 4, 3 times
CHAINS, KILLS = 4, 3  # runs, and how often each is killed

pytestmark = pytest.mark.slow


def start(tiny, train, out, *flags) -> subprocess.Popen:
    options = {
        "model": tiny / "model",
        "train": train,
        "dev": tiny / "dev.tsv",
        "out": out,
        "epochs": 3,
        "batch-size": 4,
        "learning-rate": 1e-3,
        "save-every": 7,
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "minift", "finetune", *given, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def finish(process: subprocess.Popen) -> None:
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr


def kill_when(process: subprocess.Popen, moment: Callable[[], bool], delay: float) -> None:
    """Kill the process `delay` seconds after the moment has come."""
    limit = time.monotonic() + 200
    while not moment():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, "the moment to kill did not come"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"


def log_lines(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def steps_logged(out: Path) -> int:
    return (out / LOG).read_bytes().count(b"\n") if (out / LOG).exists() else 0


def metrics(out: Path) -> dict:
    found = json.loads((out / METRICS).read_text())
    del found["training_seconds"], found["before"]["seconds"], found["after"]["seconds"]
    return found


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Path:
    return write_tsv(tmp_path_factory.mktemp("train") / "train.tsv", rows(320, seed=1))


@pytest.fixture(scope="module")
def whole(tiny, train, tmp_path_factory) -> Path:
    """The directory of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(start(tiny, train, out))
    assert steps_logged(out) == STEPS
    return out


def assert_same_end(out: Path, whole: Path) -> None:
    found, expected = checkpoint.read_tensors(out), checkpoint.read_tensors(whole)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert log_lines(out) == log_lines(whole)
    assert metrics(out) == metrics(whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.parametrize("seed", range(CHAINS))
def test_killed_again_and_again(tiny, train, whole, tmp_path, seed):
    """Each run is killed at two random steps, and once while it writes its state, in a random order."""
    out = tmp_path / "out"
    state = out / training_state.FILE
    being_written = state.with_name(state.name + ".tmp")
    chance = random.Random(seed)
    marks = sorted(chance.sample(range(5, STEPS - 40), KILLS))
    in_a_save = chance.randrange(KILLS)
    torn = 0
    for number, mark in enumerate(marks):
        process = start(tiny, train, out, "--resume")
        if number == in_a_save:
            being_written.unlink(missing_ok=True)
            kill_when(process, lambda mark=mark: steps_logged(out) >= mark and being_written.exists(), 0)
            torn += being_written.exists()
        else:
            kill_when(process, lambda mark=mark: steps_logged(out) >= mark, chance.uniform(0, 0.03))
        if state.exists():
            checkpoint.read_safetensors(state)  # whole, whenever the kill came
    finish(start(tiny, train, out, "--resume"))
    assert_same_end(out, whole)
    print(f"killed at steps after {marks}, {torn} of them half-way through a write")


@pytest.mark.parametrize(
    "file", [LOG, f"{training_state.FILE}.tmp", f"{checkpoint.WEIGHTS}.tmp", "config.json", METRICS]
)
def test_killed_as_a_file_appears(tiny, train, whole, tmp_path, file):
    """The first and last moments of a run: its log, its first state, the model and the metrics at its end."""
    out = tmp_path / "out"
    kill_when(start(tiny, train, out), lambda: (out / file).exists(), 0)
    finish(start(tiny, train, out, "--resume"))
    assert_same_end(out, whole)
