"""Numba's CUDA kernels keep the contract in Numba's simulator, which has to be chosen before Numba is imported.

Each CUDA thread is a real thread there, so this takes its time.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
from kernel_cases import CASES, SIMULATING, as_float32, changed, run
from minift_kernels import OPERATIONS, gpu
from minift_kernels.ladder import family_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed"),
]


def numba_cuda_rungs(operation):
    return [rung for rung in OPERATIONS[operation].rungs if family_of(rung) == "numba_cuda"]


RUNGS = [(operation, rung) for operation in OPERATIONS for rung in numba_cuda_rungs(operation)]

TINY = {
    "matmul": "7x5x3",
    "softmax": "3x7",
    "attention": "one text",
    "layer_norm": "3x33",
    "gelu": "(3, 7)",
    "dropout": "(3, 7)",
    "embedding": "repeated rows",
    "cross_entropy": "weights and smoothing",
    "adamw": "later step",
    "grad_norm": "several arrays",
}
"""A case of each operation, in which the simulator keeps those parts of the contract that take several runs."""


@pytest.mark.skipif(SIMULATING, reason="this is the simulator's own run")
def test_the_contract_in_the_simulator():
    tests = ["test_equals_the_float64_reference"]
    for test in (
        "test_gives_the_same_bits_twice",
        "test_takes_arrays_that_are_not_contiguous",
        "test_stays_inside_its_arrays",
    ):
        tests += [f"{test}[{operation}-{rung}-{TINY[operation]}]" for operation, rung in RUNGS]
    contract = Path(__file__).with_name("test_contract.py")
    command = [sys.executable, "-m", "pytest", "-k", "numba_cuda", *(f"{contract}::{test}" for test in tests)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 8 * len(RUNGS), done.stdout


@pytest.mark.skipif(SIMULATING, reason="compiling is the other run's part")
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if numba_cuda_rungs(name)])
def test_compiles_for_a_gpu_and_computes_in_float32(operation, monkeypatch):
    """To PTX, which takes no GPU. One float64 literal makes float64 of all that follows, slow on most GPUs."""
    launched = {}

    def remember(kernel, grid, block, arguments):
        launched[kernel.ready()] = tuple(map(numba.typeof, arguments))

    monkeypatch.setattr(gpu.NumbaKernel, "launch", remember)
    for _, inputs in CASES[operation]():
        for rung in numba_cuda_rungs(operation):
            run(operation, rung, changed(inputs, as_float32))
    assert launched
    cuda = gpu._numba_cuda()
    compute_capability = (8, 0)
    # Numba asks the device for it when a kernel calls a function.
    device = SimpleNamespace(compute_capability=compute_capability)
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: device)
    for function, types in launched.items():
        ptx, _ = cuda.compile_ptx(function, numba.void(*types), cc=compute_capability)
        if "float64" not in str(types):
            assert ".f64" not in ptx, function.__name__
