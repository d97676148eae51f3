"""Wrong arrays are refused before compiled code, which checks no bounds, could read foreign memory."""

import shutil

import ml_dtypes
import numpy as np
import pytest
from minift_kernels import (
    adamw,
    attention,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    grad_norm,
    layer_norm,
    matmul,
    softmax,
    use_kernels,
)
from minift_kernels.ladder import RungError

RUNGS = pytest.mark.parametrize("rung", ["reference", "numba_cpu"])
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")


@RUNGS
@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_outside_the_table(rung, wrong):
    ids, table = np.array([0, wrong]), np.zeros((5, 3), np.float32)
    with use_kernels(rung):
        with pytest.raises(IndexError, match=rf"embedding row {wrong} .* less than 5"):
            embedding.forward(ids, table)
        with pytest.raises(IndexError, match=rf"embedding row {wrong} .* less than 5"):
            embedding.backward(np.zeros((2, 3), np.float32), ids, 5)


@RUNGS
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_target_that_is_no_class(rung, wrong):
    logits, targets = np.zeros((2, 3), np.float32), np.array([0, wrong])
    with use_kernels(rung), pytest.raises(IndexError, match=rf"target class {wrong} .* less than 3"):
        cross_entropy.forward(logits, targets)


@needs_compiler
@pytest.mark.parametrize("rung", ["cuda_c_atomic", "cuda_c_sorted"])
def test_where_nobody_looks_a_wrong_id_gives_nan(rung, monkeypatch):
    """On a GPU, where to look would mean to wait. The emulation would report an access outside the table."""
    monkeypatch.setattr(embedding.cuda_c, "check_indices", lambda *arguments: None)
    ids, table = np.array([0, 5, 1, -1, 2**40, 1]), np.ones((5, 4), np.float32)
    with use_kernels(rung):
        y = embedding.forward(ids, table)
        dtable = embedding.backward(np.ones((6, 4), np.float32), ids, 5)
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False, True, True, False]
    assert dtable[:, 0].tolist() == [1, 2, 0, 0, 0]


@needs_compiler
@pytest.mark.parametrize("rung", ["cuda_c_naive", "cuda_c_online"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_where_nobody_looks_a_wrong_target_gives_nan(rung, smoothing, monkeypatch):
    monkeypatch.setattr(cross_entropy.cuda_c, "check_indices", lambda *arguments: None)
    logits, targets = np.zeros((4, 3), np.float32), np.array([1, 3, -1, -100])
    with use_kernels(rung):
        losses, logsumexp = cross_entropy.forward(logits, targets, label_smoothing=smoothing)
        dlogits = cross_entropy.backward(np.ones(4, np.float32), logits, logsumexp, targets)
    assert np.isnan(losses).tolist() == [False, True, True, False]
    assert np.isnan(dlogits).all(axis=1).tolist() == [False, True, True, False]
    assert not dlogits[3].any()


@RUNGS
@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_probability_that_is_none(rung, p):
    with use_kernels(rung), pytest.raises(ValueError, match=f"between 0 and 1, not {p}"):
        dropout.forward(np.zeros(3, np.float32), p, (0, 0))


@RUNGS
def test_factors_that_do_not_fit(rung):
    with use_kernels(rung), pytest.raises(ValueError):
        matmul.forward(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32))


@RUNGS
def test_attention_shapes_that_do_not_fit(rung):
    x = np.zeros((4, 6), np.float32)
    segments = np.array([[0, 4]])
    with use_kernels(rung):
        with pytest.raises(ValueError, match="4 heads do not fit"):
            attention.forward(x, x, x, segments, segments, heads=4, scale=1.0)
        with pytest.raises(ValueError, match="must have one shape"):
            attention.forward(x, x, x[:3], segments, segments, heads=2, scale=1.0)
        with pytest.raises(ValueError, match="1 query segments cannot meet 2"):
            attention.forward(x, x, x, segments, np.zeros((2, 2), np.int64), heads=2, scale=1.0)
        with pytest.raises(IndexError, match="segment"):
            attention.forward(x, x, x, np.array([[0, 5]]), segments, heads=2, scale=1.0)
        with pytest.raises(ValueError, match="0 heads do not fit"):
            attention.forward(x, x, x, segments, segments, heads=0, scale=1.0)
        out, logsumexp = attention.forward(x, x, x, segments, segments, heads=2, scale=1.0)
        with pytest.raises(ValueError, match="out has shape"):
            attention.backward(x, x, x, x, out[:3], logsumexp, segments, segments, heads=2, scale=1.0)
        with pytest.raises(ValueError, match="logsumexp has shape"):
            attention.backward(x, x, x, x, out, logsumexp[:1], segments, segments, heads=2, scale=1.0)


@RUNGS
def test_shapes_that_do_not_fit(rung):
    def zeros(*shape):
        return np.zeros(shape, np.float32)

    options = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, step=1)
    with use_kernels(rung):
        for message, call in (
            (
                r"matmul: bias has shape \(3,\), not \(5,\)",
                lambda: matmul.forward(zeros(2, 4), zeros(4, 5), zeros(3)),
            ),
            (r"softmax: dy has shape", lambda: softmax.backward(zeros(2, 3), zeros(2, 4))),
            (r"gelu: dy has shape", lambda: gelu.backward(zeros(2, 3), zeros(3, 2))),
            (
                r"layer_norm: weight has",
                lambda: layer_norm.forward(zeros(2, 3), None, zeros(2), zeros(3), 1e-5),
            ),
            (
                r"layer_norm: residual",
                lambda: layer_norm.forward(zeros(2, 3), zeros(2, 2), zeros(3), zeros(3), 1e-5),
            ),
            (r"embedding: ids", lambda: embedding.backward(zeros(2, 3), np.zeros(3, np.int64), 5)),
            (r"cross_entropy: targets", lambda: cross_entropy.forward(zeros(2, 3), np.zeros(3, np.int64))),
            (
                r"cross_entropy: class_w",
                lambda: cross_entropy.forward(zeros(1, 3), np.zeros(1, np.int64), zeros(2)),
            ),
            (
                r"layer_norm: rstd",
                lambda: layer_norm.backward(zeros(2, 3), zeros(2, 3), zeros(1), zeros(3)),
            ),
            (
                r"layer_norm: weight",
                lambda: layer_norm.backward(zeros(2, 3), zeros(2, 3), zeros(2), zeros(2)),
            ),
            (
                r"cross_entropy: targets",
                lambda: cross_entropy.backward(zeros(2), zeros(2, 3), zeros(2), np.zeros(1, np.int64)),
            ),
            (
                r"cross_entropy: logsumexp",
                lambda: cross_entropy.backward(zeros(2), zeros(2, 3), zeros(1), np.zeros(2, np.int64)),
            ),
            (
                r"cross_entropy: class_w",
                lambda: cross_entropy.backward(
                    zeros(1), zeros(1, 3), zeros(1), np.zeros(1, np.int64), zeros(2)
                ),
            ),
            (r"adamw: m has", lambda: adamw.step([zeros(3)], [zeros(3)], [zeros(2)], [zeros(3)], **options)),
        ):
            with pytest.raises(ValueError, match=message):
                call()


@RUNGS
def test_a_mix_of_precisions(rung):
    single, double = np.zeros((2, 2), np.float32), np.zeros((2, 2))
    segments = np.array([[0, 2]])
    options = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, step=1)
    with use_kernels(rung):
        for message, call in (
            ("matmul: b is float64", lambda: matmul.forward(single, double)),
            ("matmul: x is float64", lambda: matmul.linear_backward(single, double, single, True)),
            ("gelu: dy is float32", lambda: gelu.backward(single, double)),
            ("softmax: dy is float32", lambda: softmax.backward(single, double)),
            (
                "layer_norm: residual is float64",
                lambda: layer_norm.forward(single, double, single[0], single[0], 1e-5),
            ),
            (
                "attention: v is float64",
                lambda: attention.forward(single, single, double, segments, segments, heads=1, scale=1.0),
            ),
            ("adamw: v is float64", lambda: adamw.step([single], [single], [single], [double], **options)),
            (
                "layer_norm: bias is float64",
                lambda: layer_norm.forward(single, None, single[0], double[0], 1e-5),
            ),
            (
                "layer_norm: rstd is float64",
                lambda: layer_norm.backward(single, single, double[0], single[0]),
            ),
            (
                "cross_entropy: dlosses is float64",
                lambda: cross_entropy.backward(double[0], single, single[0], np.zeros(2, np.int64)),
            ),
            (
                "cross_entropy: class_weights is float64",
                lambda: cross_entropy.forward(single, np.zeros(2, np.int64), double[0]),
            ),
            (
                "attention: logsumexp is float64",
                lambda: attention.backward(*5 * [single], double[:1], segments, segments, heads=1, scale=1.0),
            ),
        ):
            with pytest.raises(TypeError, match=message):
                call()


def test_what_mixed_precision_never_rounds_is_float32():
    half = np.zeros((2, 2), ml_dtypes.bfloat16)
    for message, call in (
        (
            "layer_norm: weight is bfloat16, not float32",
            lambda: layer_norm.forward(half, None, half[0], half[0], 1e-5),
        ),
        (
            "cross_entropy: dlosses is bfloat16, not float32",
            lambda: cross_entropy.backward(half[0], half, half[0], np.zeros(2, np.int64)),
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_compiled_kernels_take_float32():
    with pytest.raises(TypeError, match="float32 here, not float64"):
        grad_norm.forward([np.zeros(2, np.float32), np.zeros(2)])


@RUNGS
def test_indices_that_are_no_integers(rung):
    single = np.zeros((2, 3), np.float32)
    with use_kernels(rung):
        for call in (
            lambda: embedding.forward(np.array([0.0, 1.5]), single),
            lambda: embedding.backward(single, np.array([0.0, 1.5]), 5),
            lambda: cross_entropy.forward(single, np.array([0.0, 1.7])),
        ):
            with pytest.raises(TypeError, match="expected integers, not float64"):
                call()


@pytest.mark.parametrize("rung", ["numba_cpu_blas", "numba_cpu_tiled"])
@pytest.mark.parametrize("rows", [5, 20])
def test_what_the_stride_of_an_axis_of_one_says_is_not_believed(rung, rows):
    column = np.arange(1.0, rows + 1, dtype=np.float32)[:, None]
    row = np.arange(1.0, 31.0, dtype=np.float32)[None]
    for a in (column[:, ::-1], np.lib.stride_tricks.as_strided(column, column.shape, (4, 0))):
        for b in (row[::-1], np.lib.stride_tricks.as_strided(row, row.shape, (0, 4))):
            with use_kernels(rung):
                assert (matmul.forward(a, b) == column * row).all()
                assert (matmul.forward(b.T, a.T) == (column * row).T).all()


@pytest.mark.parametrize("rung", ["reference", "numba_cpu", "cuda_c"])
def test_numbers_that_lie_apart_by_no_whole_number_of_themselves(rung):
    """A column of records, whose rows are 6 bytes apart."""
    if rung == "cuda_c" and shutil.which("g++") is None:
        pytest.skip("running CUDA C on the CPU needs g++")
    records = np.zeros((3, 4), [("value", np.float32), ("rest", np.int16)])
    records["value"] = np.arange(12).reshape(3, 4)
    with use_kernels(rung):
        assert (matmul.forward(records["value"], np.eye(4, dtype=np.float32)) == records["value"]).all()


@needs_compiler
def test_cuda_c_refuses_numbers_of_the_other_byte_order():
    with use_kernels("cuda_c"), pytest.raises(RungError, match="it takes float32 and bfloat16, not >f4"):
        gelu.forward(np.zeros(3, ">f4"))
