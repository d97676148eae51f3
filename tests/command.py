"""The command line as tests run it: in a process of its own, and with the options of a small run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_process(*arguments, environment=None, **options) -> subprocess.CompletedProcess:
    """The same in a process of its own, which shows all that reaches a terminal."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "minift", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        **options,
    )


def finetune_options(tiny, out, **changes) -> list:
    """`minift finetune` on the tiny model; `train=...` and so on replace an option, None leaves it out."""
    options = {
        "model": tiny / "model",
        "train": tiny / "train.tsv",
        "dev": tiny / "dev.tsv",
        "out": out,
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": 3e-3,
        **changes,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return ["finetune", *(part for name, value in given.items() for part in (f"--{name}", value))]


def the_one_line(status, stdout, stderr) -> str:
    """What follows `minift: ` on the one line of stderr that says what is wrong."""
    assert status == 2, stderr
    assert "Traceback" not in stderr and stdout == ""
    assert re.fullmatch(r"minift: [^\n]+\n", stderr), stderr
    return stderr.removeprefix("minift: ").rstrip("\n")
