"""Numbers stored in 16 bits are computed with in 32: no sum is rounded to bfloat16, and no result more than once.

1 + 2^-8 is 1 in bfloat16. A sum that is kept in 16 bits stops growing when its addends are 2^-8 of it, and here they
are: one percent of the sum comes from such addends, two and a half times what the one rounding of a result is allowed.
"""

import numpy as np
import pytest
from kernel_cases import (
    BFLOAT16,
    as_bfloat16,
    as_float32,
    changed,
    cuda_c_rungs,
    each_case,
    normal,
    run,
)

SMALL = 2.0**-8

FLOAT32 = 2.0**-16
"""What a sum of a thousand numbers in float32 may be off by, of the largest result: 256 units of the last place."""


def ones_and_small(ones, count):
    return np.where(np.arange(count) < ones, 1.0, SMALL)


def matmul_sums():
    # 257 is no number of bfloat16: only where the bias is added before the product is rounded is their sum 1.
    yield "256 + 1 - 256", dict(a=np.ones((2, 257)), b=np.ones((257, 3)), bias=np.full(3, -256.0))
    some = ones_and_small(16, 80)
    yield "gradients", dict(a=np.ones((80, 3)), b=np.ones((3, 80)), bias=np.ones(80), dc=np.outer(some, some))


def softmax_sums():
    # However a row is shared among 128 threads, by columns or by loads of 8, a thread has a large one first.
    columns = np.arange(1024)
    is_large = (columns < 128) | (columns % 8 == 0)
    yield "total", dict(x=np.where(is_large, 0, -5.5625)[None], dy=np.zeros((1, 1024)))  # e^-5.5625 < 2^-8
    yield "dot", dict(x=np.zeros((1, 1024)), dy=np.where(is_large, 1, SMALL)[None])


def attention_sums():
    """Scores are 0, so probabilities 2^-8. Signs that change make dout . out zero, and so of dp each dscores."""
    rows = 256
    some, signs, none = ones_and_small(64, rows), np.where(np.arange(rows) % 2, -1.0, 1.0), np.zeros(rows)
    columns = dict(
        q=(np.ones(rows), none), k=(none, signs * some), v=(signs, some), dout=(some, none)
    )  # the first and the second column of each
    arrays = {name: np.stack(pair, axis=1) for name, pair in columns.items()}
    segments = np.array([[0, rows]])
    yield "one head", arrays | dict(q_segments=segments, k_segments=segments, heads=1, scale=1.0)


def gelu_sums():
    yield "positive", dict(x=abs(normal(500)), dy=normal(500, seed=1))


def dropout_sums():
    yield "a scale that bfloat16 has not", dict(x=normal(500), p=0.1, key=(7, 9))


def embedding_sums():
    yield "one row", dict(ids=np.zeros(100, np.int64), table=normal(2, 8), dy=normal(100, 8, seed=1))


def cross_entropy_sums():
    (_, softmax), _ = softmax_sums()
    yield "total", dict(logits=softmax["x"], targets=np.array([7]), dlosses=np.ones(1), label_smoothing=0.1)


SUMS = {
    "matmul": matmul_sums,
    "softmax": softmax_sums,
    "attention": attention_sums,
    "gelu": gelu_sums,
    "dropout": dropout_sums,
    "embedding": embedding_sums,
    "cross_entropy": cross_entropy_sums,
}


@each_case(lambda operation: ["reference", *cuda_c_rungs(operation)], SUMS)
def test_of_bfloat16_nothing_is_rounded_but_results(operation, rung, inputs):
    check_rounded_once(operation, rung, inputs, as_bfloat16)


@pytest.mark.parametrize("stored_as", [as_float32, as_bfloat16])
@pytest.mark.parametrize("rung", ["reference", *cuda_c_rungs("layer_norm")])
def test_layer_norm_adds_up_more_rows_than_its_blocks_take_at_once(rung, stored_as):
    """396 blocks of 8 rows, and of 4: 3168 rows and 1584. What is normalized has no rounding: see `deviations`."""
    rows = 3200
    deviations = np.repeat(
        [1.5, -1.5, 0.5, -0.5], (3, 3, 5, 5)
    )  # whose mean is 0, and that of their squares 1
    x = 96 + np.stack([np.roll(deviations, row) for row in range(rows)])
    arrays = dict(x=x, residual=None, weight=normal(16), bias=normal(16, seed=1), dy=normal(rows, 16))
    check_rounded_once("layer_norm", rung, arrays, stored_as)


def check_rounded_once(operation, rung, inputs, stored_as):
    """Off by half a unit of the last place that the result's type has, but for what float32's own sums are off by."""
    inputs = changed(changed(inputs, as_float32), stored_as, leave=BFLOAT16[operation])
    want = run(operation, "reference", changed(inputs, as_float64))
    got = run(operation, rung, inputs)
    for name, exact in want.items():
        half_a_unit = np.spacing(abs(exact).astype(got[name].dtype)).astype(np.float64) / 2
        error = abs(got[name].astype(np.float64) - exact)
        assert (error <= half_a_unit + FLOAT32 * abs(exact).max()).all(), f"{operation} {rung} {name}"


def as_float64(x):
    return x.astype(np.float64) if x.dtype.kind not in "iu" else x
