"""The reference rung judges the others, so it is judged first: backward against central differences."""

import numpy as np
import pytest
from kernel_cases import normal, segments_of
from minift_kernels import OPERATIONS
from minift_kernels.philox import philox

STEP = 1e-6


def numerical_gradient(f, x, dy):
    """d sum(f() dy) / dx by moving every element of x, in place, a little up and a little down."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + STEP
        above = (f() * dy).sum()
        x[index] = value - STEP
        below = (f() * dy).sum()
        x[index] = value
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


def check(forward, inputs, dy, gradients):
    for i, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        want = numerical_gradient(forward, x, dy)
        np.testing.assert_allclose(gradient, want, rtol=1e-7, atol=1e-8, err_msg=f"input {i}")


def reference(operation):
    return OPERATIONS[operation].rungs["reference"]


def test_matmul():
    matmul = reference("matmul")
    a, b, bias, dc = normal(3, 4), normal(4, 5), normal(5), normal(3, 5, seed=1)
    gradients = matmul.forward(dc, b.T), matmul.forward(a.T, dc), matmul.sum_rows(dc)
    check(lambda: matmul.forward(a, b, bias), (a, b, bias), dc, gradients)


def test_softmax():
    softmax = reference("softmax")
    x, dy = normal(3, 5), normal(3, 5, seed=1)
    check(lambda: softmax.forward(x), (x,), dy, (softmax.backward(dy, softmax.forward(x)),))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention(causal, dropout, key_heads):
    attention = reference("attention")
    q, k, v = normal(11, 8), normal(12, 2 * key_heads), normal(12, 2 * key_heads, seed=1)
    q_segments, k_segments = segments_of([3, 0, 1, 2], gap=1), segments_of([2, 1, 4, 2], gap=0)
    options = dict(heads=4, scale=0.7, causal=causal, dropout=dropout, key=(1, 2))
    dout = normal(11, 8, seed=2)
    out, logsumexp = attention.forward(q, k, v, q_segments, k_segments, **options)
    gradients = attention.backward(dout, q, k, v, out, logsumexp, q_segments, k_segments, **options)
    check(
        lambda: attention.forward(q, k, v, q_segments, k_segments, **options)[0], (q, k, v), dout, gradients
    )


def test_layer_norm():
    layer_norm = reference("layer_norm")
    x, residual, weight, bias = normal(3, 5), normal(3, 5, seed=1), normal(5), normal(5, seed=1)
    dy = normal(3, 5, seed=2)

    def forward():
        return layer_norm.forward(x, residual, weight, bias, 1e-5)

    _, normalized, rstd = forward()
    dx, dweight, dbias = layer_norm.backward(dy, normalized, rstd, weight)
    check(lambda: forward()[0], (x, residual, weight, bias), dy, (dx, dx, dweight, dbias))


@pytest.mark.parametrize("operation", ["gelu", "gelu_tanh"])
def test_gelu(operation):
    gelu = reference(operation)
    x, dy = normal(3, 5, scale=2), normal(3, 5, seed=1)
    check(lambda: gelu.forward(x), (x,), dy, (gelu.backward(dy, x),))


def test_dropout():
    dropout = reference("dropout")
    x, dy = normal(3, 5), normal(3, 5, seed=1)
    check(lambda: dropout.forward(x, 0.3, (4, 5)), (x,), dy, (dropout.forward(dy, 0.3, (4, 5)),))


def test_embedding():
    embedding = reference("embedding")
    table, ids, dy = normal(4, 3), np.array([2, 0, 2]), normal(3, 3, seed=1)
    check(lambda: embedding.forward(ids, table), (table,), dy, (embedding.backward(dy, ids, 4),))


@pytest.mark.parametrize("weights", [None, np.array([0.5, 2.0, 0.0, 1.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(weights, smoothing):
    cross_entropy = reference("cross_entropy")
    logits, targets, dlosses = normal(5, 4), np.array([0, 3, -100, 2, 1]), normal(5)
    options = (targets, weights, -100, smoothing)
    _, logsumexp = cross_entropy.forward(logits, *options)
    dlogits = cross_entropy.backward(dlosses, logits, logsumexp, *options)
    check(lambda: cross_entropy.forward(logits, *options)[0], (logits,), dlosses, (dlogits,))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, words):
    """The known-answer vectors that the authors distribute with Random123 (`kat_vectors`)."""
    got = philox([np.full(1, word, np.uint32) for word in counter], key)
    assert tuple(int(word[0]) for word in got) == words


def test_the_second_part_of_a_key_may_count_from_a_number_in_memory():
    """As the keys of a CUDA graph do, which stand while that number changes."""
    counter = [np.arange(5, dtype=np.uint32)] * 4
    for call, before in ((1, 3), (5, 0xFFFFFFFF)):
        words = philox(counter, (7, call, np.array([before], np.uint32)))
        np.testing.assert_array_equal(words, philox(counter, (7, (call + before) & 0xFFFFFFFF)))


def test_dropout_takes_word_i_of_the_stream():
    """Which word decides which element is part of the contract: a resumed run must drop the same."""
    dropout = reference("dropout")
    key, p = (7, 9), 0.4
    blocks = np.arange(5, dtype=np.uint32)
    zero = np.zeros(5, np.uint32)
    words = np.stack(
        philox([blocks, zero, zero, zero], key), axis=1
    ).ravel()  # w0 w1 w2 w3 of block 0, then 1
    kept = dropout.forward(np.ones((3, 6)), p, key).ravel() > 0
    np.testing.assert_array_equal(kept, words[:18] / 2**32 >= p)


def test_dropout_keeps_the_mean():
    y = reference("dropout").forward(np.ones(1_000_000), 0.1, (1, 2))
    assert abs((y == 0).mean() - 0.1) < 5 * np.sqrt(0.1 * 0.9 / 1e6)
    assert abs(y.mean() - 1) < 0.002


def test_attention_drops_by_row_head_and_key():
    """The mask of (query row t, head n, key j) does not depend on where else in the batch anything stands."""
    attention = reference("attention")
    q, k, segment = normal(6, 4), normal(6, 4, seed=1), np.array([[2, 6]])
    v = np.tile(np.eye(6, 4)[:, ::-1], 1)
    options = dict(heads=1, scale=1.0, dropout=0.5, key=(3, 4))
    out, _ = attention.forward(q, k, v, segment, segment, **options)
    j, t = np.arange(4), np.arange(2, 6)[:, None]
    words = philox((j // 4, t, np.zeros((1, 1)), np.ones((1, 1))), (3, 4))
    kept = (
        np.stack(words, axis=-1)[:, 0, :] >= 2**31
    )  # (queries, keys): one block of four words for each query
    dense, _ = attention.forward(q, k, v, segment, segment, heads=1, scale=1.0)
    np.testing.assert_allclose(out[2:], _masked_probabilities(q, k, kept) @ v[2:] * 2)
    assert not np.allclose(out, dense)


def _masked_probabilities(q, k, kept):
    scores = np.exp(q[2:] @ k[2:].T)
    return scores / scores.sum(axis=1, keepdims=True) * kept
