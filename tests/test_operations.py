"""Every operation's backward against central differences, on small odd shapes, in float64, at every index."""

import numpy as np
import pytest
from gradcheck import check_gradients

from minift import cross_entropy, mse_loss, ops
from minift.tensor import Tensor

random = np.random.default_rng(0)


def normal(*shape):
    return random.standard_normal(shape)


def positive(*shape):
    return random.uniform(0.5, 2.0, shape)


SEGMENTS = np.array(
    [[0, 3], [3, 4], [4, 4], [5, 7]]
)  # a text of one token, an empty one, a gap before the last
KEYS = np.array([[1, 3], [3, 5], [5, 5], [6, 9]])
IDS = np.array([2, 0, 2, 4])

OFFSETS = np.array([0, 3, 4, 7])
ANGLES = np.arange(3.0)[:, None] * np.array([1.0, 0.3])  # of 3 tokens and 2 pairs

ARITHMETIC = {
    "add": (lambda a, b: a + b, normal(3, 5), normal(3, 5)),
    "add, broadcast": (lambda a, b: a + b, normal(3, 5), normal(5)),
    "add, both broadcast": (lambda a, b: a + b, normal(3, 1), normal(2, 1, 5)),
    "add a number": (lambda a: 3.0 + a + 1, normal(3)),
    "subtract": (lambda a, b: a - b, normal(3, 5), normal(1, 5)),
    "subtract from a number": (lambda a: 1 - a, normal(3)),
    "multiply": (lambda a, b: a * b, normal(3, 5), normal(3, 1)),
    "multiply by itself": (lambda a: a * a, normal(3)),
    "divide": (lambda a, b: a / b, normal(3, 5), positive(5)),
    "divide a number": (lambda a: 2 / a, positive(3)),
    "negate": (lambda a: -a, normal(3)),
    "power": (lambda a: a**3, normal(3, 2)),
    "root": (lambda a: a**0.5, positive(3)),
    "exp": (lambda a: a.exp(), normal(3, 2)),
    "log": (lambda a: a.log(), positive(3, 2)),
    "tanh": (lambda a: a.tanh(), normal(3, 2)),
    "matrix product": (lambda a, b: a @ b, normal(3, 5), normal(5, 2)),
    "sum": (lambda a: a.sum(), normal(3, 5)),
    "sum over an axis": (lambda a: a.sum(axis=0), normal(3, 5)),
    "sum over axes, kept": (lambda a: a.sum(axis=(0, 2), keepdims=True), normal(3, 2, 4)),
    "mean": (lambda a: a.mean(axis=-1), normal(3, 5)),
    "reshape": (lambda a: a.reshape(5, -1), normal(3, 5)),
    "transpose": (lambda a: a.T, normal(3, 5)),
    "rows": (lambda a: a[IDS], normal(5, 3)),
    "slice": (lambda a: a[1:4:2, 1], normal(5, 3)),
    "concatenate": (lambda a, b: ops.concatenate([a, b, a]), normal(2, 3), normal(1, 3)),
}

NETWORK = {
    "linear": (ops.linear, normal(3, 5), normal(2, 5), normal(2)),
    "linear without bias": (ops.linear, normal(3, 5), normal(2, 5)),
    "embedding": (lambda weight: ops.embedding(IDS, weight), normal(5, 3)),
    "layer norm": (lambda x, w, b: ops.layer_norm(x, w, b, 1e-5), normal(3, 5), normal(5), normal(5)),
    "layer norm with residual": (
        lambda x, w, b, r: ops.layer_norm(x, w, b, 1e-5, r),
        normal(3, 5),
        normal(5),
        normal(5),
        normal(3, 5),
    ),
    "layer norm of x + x": (
        lambda x, w, b: ops.layer_norm(x, w, b, 1e-5, x),
        normal(3, 5),
        normal(5),
        normal(5),
    ),
    "gelu": (ops.gelu, 3 * normal(3, 5)),
    "gelu, tanh": (ops.gelu_tanh, 3 * normal(3, 5)),
    "swiglu": (ops.swiglu, 3 * normal(3, 5), normal(3, 5)),
    "rms norm": (lambda x, w: ops.rms_norm(x, w, 1e-5), normal(3, 5), normal(5)),
    "rotary": (lambda x: ops.rotary(x, np.cos(ANGLES), np.sin(ANGLES)), normal(3, 12)),
    "columns": (lambda x: ops.columns(x, 1, 3), normal(3, 5)),
    "segment mean": (lambda x: ops.segment_mean(x, OFFSETS), normal(7, 3)),
    "segment mean, an empty text": (lambda x: ops.segment_mean(x, np.array([0, 2, 2, 7])), normal(7, 3)),
    "segment max": (lambda x: ops.segment_max(x, OFFSETS), normal(7, 3)),
    "silu": (ops.silu, normal(3, 5)),
    "relu": (ops.relu, normal(3, 5)),
    "softmax": (ops.softmax, normal(3, 5)),
    "segment log-softmax": (lambda x: ops.segment_log_softmax(x, SEGMENTS), normal(8, 2)),
    "dropout": (lambda x: ops.dropout(x, 0.4, (1, 2)), normal(3, 5)),
    "attention": (
        lambda q, k, v: ops.attention(q, k, v, SEGMENTS, SEGMENTS, heads=2),
        normal(8, 6),
        normal(8, 6),
        normal(8, 6),
    ),
    "attention, causal, other keys": (
        lambda q, k, v: ops.attention(q, k, v, SEGMENTS, KEYS, heads=3, causal=True),
        normal(8, 6),
        normal(9, 6),
        normal(9, 6),
    ),
    "attention, dropout": (
        lambda q, k, v: ops.attention(q, k, v, SEGMENTS, KEYS, heads=2, dropout=0.3, key=(5, 6)),
        normal(8, 4),
        normal(9, 4),
        normal(9, 4),
    ),
    "attention, grouped": (
        lambda q, k, v: ops.attention(q, k, v, SEGMENTS, KEYS, heads=4),
        normal(8, 8),
        normal(9, 4),
        normal(9, 4),
    ),
    "cross-entropy": (lambda logits: cross_entropy(logits, [1, 0, 4]), normal(3, 5)),
    "cross-entropy, all options": (
        lambda logits: cross_entropy(
            logits, [1, -100, 4, 0], class_weights=np.arange(1.0, 6.0), label_smoothing=0.2
        ),
        normal(4, 5),
    ),
    "mean squared error": (lambda x: mse_loss(x, np.arange(6.0).reshape(3, 2)), normal(3, 2)),
}


@pytest.mark.parametrize("name", [*ARITHMETIC, *NETWORK])
def test_gradients(name):
    check_gradients(*(ARITHMETIC | NETWORK)[name])


@pytest.mark.parametrize("frozen", range(3))
def test_a_frozen_parent_gets_no_gradient_and_the_others_the_same(frozen):
    arrays = [normal(3, 5), normal(2, 5), normal(2)]
    free = [Tensor(array, requires_grad=True) for array in arrays]
    ops.linear(*free).sum().backward()
    some = [Tensor(array, requires_grad=position != frozen) for position, array in enumerate(arrays)]
    ops.linear(*some).sum().backward()
    for position in range(3):
        if position == frozen:
            assert some[position].grad is None
        else:
            np.testing.assert_array_equal(some[position].grad, free[position].grad)
