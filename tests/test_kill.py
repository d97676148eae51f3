"""`kill -9` at any moment, then `--resume`: the run ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import rows, write_tsv

from minift import checkpoint, training_state
from minift.train import LOG, METRICS

ROOT = Path(__file__).parents[1]
STEPS = 240  # 320 texts in batches of 4, 3 times
SAVE_EVERY = 7
CHAINS, KILLS = 4, 3  # runs, and how often each is killed

pytestmark = pytest.mark.slow


# `minift`, killed by the system's own SIGKILL as it gives a file its name for the n-th time: just before or after.
DYING = """
import os, signal, sys
from minift.cli import main

when, file, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
give_name = os.replace

def replace(temporary, path):
    global times
    times -= path.name == file
    last = path.name == file and times == 0
    if last and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    give_name(temporary, path)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
sys.exit(main(sys.argv[4:]))
"""


def start(tiny, train, out, *flags, die: tuple[str, str, int] | None = None) -> subprocess.Popen:
    """`minift finetune`; with `die` (before or after, file, n) it does not live longer than that moment."""
    options = {
        "model": tiny / "model",
        "train": train,
        "dev": tiny / "dev.tsv",
        "out": out,
        "epochs": 3,
        "batch-size": 4,
        "learning-rate": 1e-3,
        "save-every": SAVE_EVERY,
    }
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    program = ["-m", "minift"] if die is None else ["-c", DYING, *map(str, die)]
    return subprocess.Popen(
        [sys.executable, *program, "finetune", *given, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def finish(process: subprocess.Popen) -> None:
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr


def kill_after(process: subprocess.Popen, out: Path, steps: int, delay: float) -> None:
    """Kill the process `delay` seconds after it has logged so many steps."""
    while steps_logged(out) < steps:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    await_death(process)


def await_death(process: subprocess.Popen) -> None:
    """Wait for a process that is being killed."""
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, f"the run was not killed: {stderr}"


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


def log_of_the_state(out: Path) -> bytes:
    """What the log said when the state was saved; asserts that the state is whole and no older than it may be."""
    if steps_logged(out) < SAVE_EVERY:
        return b""
    state = json.loads(checkpoint.read_safetensors(out / training_state.FILE).metadata["state"])
    progress = state["progress"]
    assert progress["step"] >= steps_logged(out) - SAVE_EVERY
    return (out / LOG).read_bytes()[: progress["log_bytes"]]


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
    """Each run is killed at two random moments, and once half-way through a random save, in a random order."""
    out = tmp_path / "out"
    chance = random.Random(seed)
    marks = sorted(chance.sample(range(5, STEPS - 80), KILLS))
    in_a_save = chance.randrange(KILLS)
    for number, mark in enumerate(marks):
        if number == in_a_save:
            moment = ("before", training_state.FILE, chance.randint(1, 4))
            await_death(start(tiny, train, out, "--resume", die=moment))
            assert list(out.glob("*.tmp")), "the kill left half a save behind"
        else:
            kill_after(start(tiny, train, out, "--resume"), out, mark, delay=chance.uniform(0, 0.03))
        kept = log_of_the_state(out)
    finish(start(tiny, train, out, "--resume"))
    assert (out / LOG).read_bytes().startswith(kept), "the run began anew instead of going on"
    assert_same_end(out, whole)


@pytest.mark.parametrize(
    "moment",
    [
        ("after", training_state.FILE, 1),
        ("before", checkpoint.WEIGHTS, 1),
        ("after", "config.json", 1),
        ("after", METRICS, 1),
    ],
    ids=lambda moment: " ".join(moment[:2]),
)
def test_killed_between_two_files(tiny, train, whole, tmp_path, moment):
    """The moments at which the directory is neither the old nor the new: the first save, and the run's end."""
    out = tmp_path / "out"
    await_death(start(tiny, train, out, die=moment))
    kept = log_of_the_state(out)
    finish(start(tiny, train, out, "--resume"))
    assert (out / LOG).read_bytes().startswith(kept), "the run began anew instead of going on"
    assert_same_end(out, whole)
