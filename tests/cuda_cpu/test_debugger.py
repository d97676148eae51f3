"""A debugger stops inside a chosen CUDA thread and shows its variables."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_cases import KERNELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="the test drives gdb, which is not installed"),
]

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import cuda_cases
from minift_kernels.cuda_cpu import Module
code = (cuda_cases.KERNELS / "softmax.cu").read_text() + "\\n"
cuda_cases.softmax_shuffle(Module(cuda_cases.KERNELS / "softmax.cu", code=code))  # another library with the same names
cuda_cases.softmax_shuffle(Module(cuda_cases.KERNELS / "softmax.cu"))
"""


def test_gdb_stops_in_a_chosen_thread():
    line = 1 + (KERNELS / "softmax.cu").read_text().splitlines().index(
        "    largest = over_block(false, largest);"
    )
    gdb = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]
    for command in (
        "set breakpoint pending on",
        f"break softmax.cu:{line} if threadIdx.x == 77 && blockIdx.x == 3",
        "run",
        "print threadIdx.x + 1000 * blockIdx.x",
        "print C",
        "backtrace 1",
    ):
        gdb += ["-ex", command]
    completed = subprocess.run(
        [*gdb, "--args", sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "$1 = 3077" in completed.stdout, completed.stdout + completed.stderr
    assert "$2 = 300" in completed.stdout
    assert f"softmax.cu:{line}" in completed.stdout
