"""Numba's CUDA kernels keep the contract in Numba's simulator, which has to be chosen before Numba is imported.

Each CUDA thread is a real thread there, so this takes its time.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import SIMULATING
from minift_kernels import OPERATIONS
from minift_kernels.ladder import family_of

RUNGS = [rung for ladder in OPERATIONS.values() for rung in ladder.rungs if family_of(rung) == "numba_cuda"]


@pytest.mark.slow
@pytest.mark.skipif(SIMULATING, reason="this is the simulator's own run")
def test_the_contract_in_the_simulator():
    contract = Path(__file__).with_name("test_contract.py")
    command = [sys.executable, "-m", "pytest", str(contract), "-k", "float64_reference and numba_cuda"]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 5 * len(RUNGS), done.stdout
