"""How long until minift works: what its import adds, and what the first run's compilation takes (`make bench`).

    python benchmarks/startup.py                 # writes results/startup.md

Import: fresh processes that import numpy and numba, and then minift, which is timed; in turn with others that end after
numpy and numba. A process with more modules also ends later, so the whole of it is compared too. Compilation: the same
one-step pre-trainings of a BERT and a GPT-2, dropout included, first with an empty cache of compiled kernels, then with
a full one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import runs
from machine import describe

RESULTS = Path(__file__).parent / "results" / "startup.md"
IMPORTS = 11
"""Fresh processes for each median."""
ASKED_IMPORT, ASKED_COMPILATION = 0.2, 40.0
"""At most so many seconds."""


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    imported, bare, whole = import_seconds()
    with tempfile.TemporaryDirectory(prefix="minift-startup-") as folder:
        first, second = (first_steps_seconds(Path(folder)) for _ in range(2))
    machine = describe(None)
    page = f"""# How long until minift works

| | seconds | asked |
|---|---|---|
| importing minift after numpy and numba, median of {IMPORTS} processes | **{imported:.2f}** | {ASKED_IMPORT} |
| a whole process that imports numpy and numba, its end included | {bare:.2f} | |
| one that imports minift too | {whole:.2f} | |
| what minift adds to the whole process | **{whole - bare:.2f}** | {ASKED_IMPORT} |
| one step of a new BERT and one of a new GPT-2, no kernel compiled yet | {first:.1f} | |
| the same again | {second:.1f} | |
| compiling the kernels, once | **{first - second:.1f}** | {ASKED_COMPILATION:.0f} |

- Machine: {machine["processor"]}, {machine["cores"]} cores, {machine["memory"]}, {machine["system"]}.
- Versions: Python {machine["python"]}, minift {version("minift")}, numpy {version("numpy")}, numba {version("numba")}.
- Date: {machine["date"]}. Command: `python benchmarks/startup.py`.
"""
    runs.write_text(RESULTS, page)
    print(page)


def import_seconds() -> tuple[float, float, float]:
    """Median seconds of importing minift after numpy and numba, of a process that does not, and of one that does."""
    timed = (
        "import numpy, numba, time; start = time.monotonic(); import minift; print(time.monotonic() - start)"
    )
    imported, bare, whole = [], [], []
    for _ in range(IMPORTS + 1):
        bare.append(run(["-c", "import numpy, numba"], os.environ)[0])
        seconds, said = run(["-c", timed], os.environ)
        whole.append(seconds)
        imported.append(float(said))
    return tuple(statistics.median(each[1:]) for each in (imported, bare, whole))  # the first read the disk


def first_steps_seconds(folder: Path) -> float:
    """Seconds of one training step each of a new BERT and a new GPT-2, whose kernels are cached in `folder`."""
    text = folder / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 6)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
    small = "--tokens characters --layers 1 --heads 2 --width 64 --dropout 0.1 --overwrite".split()
    pretrain = ["-m", "minift", "pretrain", "--train", str(text), *small]
    return sum(
        run([*pretrain, "--out", str(folder / family), "--family", family], environment)[0]
        for family in ("bert", "gpt2")
    )


def run(arguments: list[str], environment) -> tuple[float, str]:
    """Seconds, and what it printed, of a Python process that may keep its bytecode, as where nobody forbids it."""
    environment = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, done.stdout


if __name__ == "__main__":
    main()
