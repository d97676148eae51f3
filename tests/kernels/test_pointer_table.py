"""Kernels that find their arrays in a table of addresses, behind which the emulation watches nothing."""

import shutil

import numpy as np
import pytest
from guards import guarded
from minift_kernels import OPERATIONS
from minift_kernels.pointer_table import address_table, chunk_table

ADAMW, GRAD_NORM = OPERATIONS["adamw"].rungs, OPERATIONS["grad_norm"].rungs
OPTIONS = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, step=3)
SIZES = 1, 4, 1003, 5000

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")


def arrays(seed, skip, guards):
    """Arrays of SIZES, which begin `skip` elements behind a multiple of 16 bytes, inside fences."""
    numbers = np.random.default_rng(seed)
    values = (numbers.random(size, np.float32) + np.float32(0.5) for size in SIZES)
    return [guarded(np.concatenate([x[:skip], x]), guards)[skip:] for x in values]


@needs_compiler
@pytest.mark.parametrize("skip", [0, 1])
def test_adamw_changes_its_arrays_and_nothing_beside_them(skip):
    guards = []
    got, want = ([arrays(seed, skip, guards) for seed in range(4)] for _ in range(2))
    ADAMW["cuda_c_chunks"].step(*got, **OPTIONS)
    ADAMW["reference"].step(*want, **OPTIONS)
    for name, of_got, of_want in zip("wgmv", got, want, strict=True):
        for x, y in zip(of_got, of_want, strict=True):
            np.testing.assert_allclose(x, y, 1e-6, 1e-7, err_msg=name)
    for guard in guards:
        guard.check()


@needs_compiler
@pytest.mark.parametrize("skip", [0, 1])
def test_the_norm_of_arrays_that_begin_anywhere(skip):
    gradients = arrays(0, skip, [])
    assert float(GRAD_NORM["cuda_c"].forward(gradients)) == pytest.approx(
        GRAD_NORM["reference"].forward(gradients), rel=1e-14
    )


def test_another_dtype_is_refused():
    with pytest.raises(TypeError, match="float32 here, not float64"):
        address_table([[np.zeros(3)]])


def test_chunks_cover_each_array_once():
    table = chunk_table([np.zeros(size, np.float32) for size in (5, 0, 8)], 4)
    assert table.tolist() == [[0, 0, 4], [0, 4, 1], [2, 0, 4], [2, 4, 4]]
