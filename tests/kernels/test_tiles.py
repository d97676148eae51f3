"""The product in tiles, beyond the contract: other registers than this machine's, other numbers of threads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from minift_kernels import attention

PRODUCTS = """
import hashlib
import json
import numpy as np
from minift_kernels import matmul, tiles, use_kernels

random = np.random.default_rng(0)
errors, bits = [], []
with use_kernels("numba_cpu_tiled"):
    for rows, inner, columns in ((8, 16, 48), (47, 33, 130), (300, 100, 24), (9, 1700, 193), (64, 768, 384)):
        a, b = (random.standard_normal(shape, dtype=np.float32) for shape in ((rows, inner), (inner, columns)))
        bias = random.standard_normal(columns, dtype=np.float32)
        exact = a.astype(np.float64) @ b.astype(np.float64) + bias
        for left in (a, np.asfortranarray(a)):
            for right in (b, np.asfortranarray(b)):
                c = matmul.forward(left, right, bias)
                errors.append(float(np.abs(c - exact).max() / np.abs(exact).max()))
                bits.append(hashlib.sha256(c.tobytes()).hexdigest())
print(json.dumps({"lanes": tiles.LANES, "error": max(errors), "bits": bits}))
"""

WITHOUT_AVX512 = """
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features()
features["avx512f"] = False
llvmlite.binding.get_host_cpu_features = lambda: features
"""

SMALL_BLOCKS = """
from minift_kernels import tiles
tiles.BLOCK = 24
"""


def run(code: str, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def other_cache(tmp_path):
    """Machine code made for other registers must not stay behind for whoever comes next."""
    return {"NUMBA_CACHE_DIR": str(tmp_path)}


def test_registers_of_eight_numbers(other_cache):
    found = run(WITHOUT_AVX512 + PRODUCTS, **other_cache)
    assert found["lanes"] == 8
    assert found["error"] < 2e-6


def test_a_transposed_factor_is_copied_block_by_block(other_cache):
    in_blocks, at_once = run(SMALL_BLOCKS + PRODUCTS, **other_cache), run(PRODUCTS)
    assert in_blocks["error"] < 2e-6
    assert in_blocks["bits"] == at_once["bits"]
    assert at_once["bits"][0::4] == at_once["bits"][2::4], "a in rows and a transposed, b in rows"


def test_the_number_of_threads_changes_no_bit():
    one, two, three = (run(PRODUCTS, NUMBA_NUM_THREADS=str(threads)) for threads in (1, 2, 3))
    assert one["error"] < 2e-6
    assert one["bits"] == two["bits"] == three["bits"]


@pytest.mark.parametrize("pays", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_tiles_and_in_blas(pays, causal, monkeypatch):
    """Texts whose blocks of queries are large enough for tiles, also where each sees no later keys, and short ones."""
    monkeypatch.setattr(attention.numba_cpu, "PAYS", pays)
    random = np.random.default_rng(0)
    q, k, v, dout = (random.standard_normal((200, 96)) for _ in range(4))
    segments = np.array([[0, 141], [141, 144], [144, 200]])
    options = (segments, segments, 3, 32**-0.5, causal)  # heads, scale

    def run_in(dtype):
        arrays = [x.astype(dtype) for x in (q, k, v, dout)]
        out, logsumexp = attention.forward(*arrays[:3], *options)
        return out, *attention.backward(arrays[3], *arrays[:3], out, logsumexp, *options)

    for found, exact in zip(run_in(np.float32), run_in(np.float64), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-5)


def test_who_wishes_for_a_blas_gets_it():
    code = """
import json
import numpy as np
from minift_kernels import matmul
print(json.dumps({"rung": matmul.ladder.choose(np.zeros(1, np.float32))}))"""
    assert run(code, MINIFT_BLAS="openblas")["rung"] == "numba_cpu_blas"
