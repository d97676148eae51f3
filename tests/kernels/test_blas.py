"""Which BLAS compiled loops call, and that MKL, where it is installed, gives what OpenBLAS gives: each in a process of
its own, since a process has one of them."""

import json
import os
import subprocess
import sys

import pytest

PRODUCTS = """
import json
import numpy as np
from minift_kernels import matmul
from minift_kernels.host import BLAS

random = np.random.default_rng(0)
errors, bits = [], []
for rows, inner, columns in ((1, 1, 1), (3, 384, 7), (512, 384, 96), (33, 130, 257)):
    a, b = (random.standard_normal(shape, dtype=np.float32) for shape in ((rows, inner), (inner, columns)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    errors.append(float(np.abs(matmul.forward(a, b) - exact).max() / np.abs(exact).max()))
    for offset in range(4):  # the same numbers, elsewhere in memory
        moved = np.empty(a.size + offset, np.float32)[offset:].reshape(a.shape)
        moved[...] = a
        bits.append(matmul.forward(moved, b).tobytes() == matmul.forward(a, b).tobytes())
print(json.dumps({"blas": BLAS, "error": max(errors), "same": all(bits)}))
"""


def run_with(blas: str | None, code: str = PRODUCTS) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "MINIFT_BLAS"}
    variables |= {"MINIFT_BLAS": blas} if blas else {}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)


def is_installed() -> bool:
    return run_with(None, "from importlib import metadata; metadata.files('mkl')").returncode == 0


@pytest.mark.parametrize("blas", ["openblas", "mkl"])
def test_products_of_each(blas, compiled):
    if blas == "mkl" and not is_installed():
        pytest.skip("the package mkl is not installed (the extra mkl)")
    done = run_with(blas)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["blas"] == {"openblas": "NumPy's OpenBLAS", "mkl": "Intel's MKL"}[blas]
    assert found["error"] < 1e-6
    assert found["same"]


def test_an_empty_wish_is_none():
    code = "import os; os.environ['MINIFT_BLAS'] = ''; from minift_kernels import host; print(host.BLAS)"
    done = [run_with(None, each) for each in (code, "from minift_kernels import host; print(host.BLAS)")]
    assert [each.returncode for each in done] == [0, 0]
    assert done[0].stdout == done[1].stdout


def test_one_that_does_not_exist():
    assert run_with("atlas").stderr.endswith("MINIFT_BLAS is 'atlas', expected mkl or openblas\n")


def test_mkl_that_is_not_installed():
    if is_installed():
        pytest.skip("the package mkl is installed")
    assert run_with("mkl").stderr.endswith("MINIFT_BLAS=mkl: not installed, pip install 'minift[mkl]'\n")
