"""Losses against the formula, row by row in float64, and what they refuse."""

import math

import ml_dtypes
import numpy as np
import pytest
from gradcheck import check_gradients

import minift
from minift import Tensor
from minift.losses import binary_cross_entropy

ROWS, CLASSES = 7, 5
RANDOM = np.random.default_rng(11)
LOGITS = RANDOM.standard_normal((ROWS, CLASSES)) * 3
TARGETS = np.array([4, 0, -100, 2, 2, -100, 1])
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0])


def expected_cross_entropy(logits, targets, weights=None, ignore=-100, smoothing=0.0) -> float:
    """The mean of -sum_c q_c log p_c, with q = (1 - e) on the target plus e / C on all, in plain loops."""
    weights = [1.0] * CLASSES if weights is None else weights
    losses, total = 0.0, 0.0
    for row, target in zip(logits.tolist(), targets, strict=True):
        if target == ignore:
            continue
        log_sum = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            share = smoothing / CLASSES + (1 - smoothing) * (index == target)
            losses -= share * weights[index] * (value - log_sum)
        total += weights[target]
    return losses / total


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"class_weights": WEIGHTS},
    {"class_weights": WEIGHTS, "label_smoothing": 0.3},
    {"ignore_index": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy_is_the_formula(options):
    ignore = options.get("ignore_index", -100)
    targets = np.where(TARGETS == -100, ignore, TARGETS)
    found = minift.cross_entropy(Tensor(LOGITS), targets, **options)
    expected = expected_cross_entropy(
        LOGITS, targets, options.get("class_weights"), ignore, options.get("label_smoothing", 0.0)
    )
    assert found.item() == pytest.approx(expected, rel=1e-12)
    single = minift.cross_entropy(Tensor(LOGITS.astype(np.float32)), targets, **options)
    assert single.dtype == np.float32 and single.item() == pytest.approx(expected, rel=1e-5)
    check_gradients(lambda logits: minift.cross_entropy(logits, targets, **options), LOGITS)


def test_an_ignored_row_receives_no_gradient_and_does_not_count():
    logits = Tensor(LOGITS, requires_grad=True)
    loss = minift.cross_entropy(logits, TARGETS)
    loss.backward()
    kept = TARGETS != -100
    assert not logits.grad[~kept].any() and (logits.grad[kept] != 0).all()
    assert loss.item() == minift.cross_entropy(Tensor(LOGITS[kept]), TARGETS[kept]).item()


def test_large_logits_do_not_overflow():
    logits = Tensor(np.array([[1000.0, 0.0], [-1000.0, 0.0]], np.float32), requires_grad=True)
    loss = minift.cross_entropy(logits, [0, 0])
    loss.backward()
    assert loss.item() == 500.0 and np.isfinite(logits.grad).all()


def error(targets, logits=LOGITS, **options) -> str:
    with pytest.raises(minift.InputError) as caught:
        minift.cross_entropy(Tensor(logits), targets, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_ignored():
    assert error([-100] * ROWS) == "cross_entropy: all 7 targets are ignored, so there is nothing to average"
    assert "all 7 targets are ignored" in error([3] * ROWS, ignore_index=3)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_out_of_range(smoothing):
    assert "label_smoothing is" in error([0] * ROWS, label_smoothing=smoothing)


def test_logits_in_16_bits_have_losses_and_weights_in_32():
    logits = Tensor(LOGITS.astype(ml_dtypes.bfloat16), requires_grad=True)
    loss = minift.cross_entropy(logits, [0] * ROWS, class_weights=np.ones(5), label_smoothing=0.1)
    loss.backward()
    assert loss.dtype == np.float32 and logits.grad.dtype == logits.dtype


def test_logits_of_another_kind():
    with pytest.raises(TypeError, match="logits are a Tensor, not ndarray"):
        minift.cross_entropy(LOGITS, [0] * ROWS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(minift.InputError, match=r"shape \(1, 7, 5\), expected rows and classes"):
        minift.cross_entropy(Tensor(LOGITS[None]), [0])


@pytest.mark.parametrize("targets", [[0], [0] * 6, [0] * 8, 0, []])
def test_wrong_number_of_targets(targets):
    assert f"{np.size(targets)} targets for 7 rows of logits" in error(targets)


@pytest.mark.parametrize("bad", [5, -1, 100, np.int64(7)])
def test_index_out_of_range(bad):
    assert error([0, 1, 2, 3, 4, 0, bad]) == f"there is no label {bad}; the model's labels are 0 to 4"


def test_a_name_without_names():
    assert (
        error(["fine"] * ROWS) == "there is no label 'fine'; the model's labels are not named: give its index"
    )


def test_a_name_that_is_not_there():
    logits = Tensor(LOGITS)
    logits.labels = ("a", "b", "c", "d", "e")
    with pytest.raises(
        minift.InputError, match="there is no label 'f'; the model's labels are a, b, c, d, e"
    ):
        minift.cross_entropy(logits, ["a", "b", "c", "d", "e", "f", "a"])


@pytest.mark.parametrize("bad", [1.5, np.float32(0.7), None])
def test_a_target_that_is_no_label(bad):
    assert f"there is no label {bad}" in error([0, 1, 2, 3, 4, 0, bad])
    assert f"there is no label {bad}" in error(bad)


def test_mse_loss_is_the_formula():
    predictions, targets = RANDOM.standard_normal((3, 2)), RANDOM.standard_normal((3, 2))
    expected = sum(
        (prediction - target) ** 2
        for prediction, target in zip(predictions.ravel().tolist(), targets.ravel().tolist(), strict=True)
    )
    assert minift.mse_loss(Tensor(predictions), targets).item() == pytest.approx(expected / 6, rel=1e-12)
    check_gradients(lambda x: minift.mse_loss(x, targets), predictions)


def test_mse_loss_does_not_broadcast():
    """(3, 1) against (3,) would broadcast to (3, 3): a silent, common mistake."""
    with pytest.raises(minift.InputError, match=r"predictions of shape \(3, 1\), targets of shape \(3,\)"):
        minift.mse_loss(Tensor(np.zeros((3, 1))), np.zeros(3))


def test_binary_cross_entropy_is_the_formula():
    targets = RANDOM.integers(2, size=(ROWS, CLASSES))
    total = 0.0
    for value, target in zip(LOGITS.ravel().tolist(), targets.ravel().tolist(), strict=True):
        p = 1 / (1 + math.exp(-value))
        total -= math.log(p if target else 1 - p)
    found = binary_cross_entropy(Tensor(LOGITS), targets).item()
    assert found == pytest.approx(total / LOGITS.size, rel=1e-12)
    check_gradients(lambda logits: binary_cross_entropy(logits, targets), LOGITS)


def test_binary_cross_entropy_of_large_logits_does_not_overflow():
    logits = Tensor(np.array([[1000.0, -1000.0, 1000.0, -1000.0]], np.float32), requires_grad=True)
    with np.errstate(all="raise", under="ignore"):
        loss = binary_cross_entropy(logits, [[1, 0, 0, 1]])
        loss.backward()
    assert loss.item() == 500.0 and logits.grad.tolist() == [[0.0, 0.0, 0.25, -0.25]]


def test_binary_cross_entropy_does_not_broadcast():
    with pytest.raises(minift.InputError, match=r"logits of shape \(2, 3\), targets of shape \(3,\)"):
        binary_cross_entropy(Tensor(np.zeros((2, 3))), np.zeros(3))
