"""Bodies asked for some tokens' vectors alone: they are the same, and an encoder's last layer computes no others."""

import itertools

import numpy as np
import pytest
from test_methods_families import make
from tiny import make_model, rows

import minift
from minift import Tensor

TEXTS = [text for text, _ in rows(5, seed=8)]
ROWS = {
    "first": lambda offsets: offsets[:-1],
    "last": lambda offsets: offsets[1:] - 1,
    "two of the second text and one of the fourth": lambda offsets: (
        offsets[1] + np.array([1, 2, offsets[3] - offsets[1]])
    ),
    "all": lambda offsets: np.arange(offsets[-1]),
}


def make_body(family, directory):
    """That of a tiny model in float64, with dropout off; and a batch for it."""
    model = make_model(directory) if family == "bert" else make(family, directory)
    return model.to(np.float64).eval().body, model.encode(TEXTS)


def gradients(body, vectors: Tensor) -> dict[str, np.ndarray | None]:
    """Of every parameter, where each of these (R, H) vectors counts with a weight of its own."""
    vectors.backward(np.random.default_rng(0).standard_normal(vectors.shape))
    found = {name: parameter.grad for name, parameter in body.named_parameters()}
    body.zero_grad()
    return found


@pytest.mark.parametrize("frozen_layers", [0, 1])
@pytest.mark.parametrize(
    ("family", "choice"),
    [*itertools.product(("bert", "roberta", "distilbert"), ROWS), ("gpt2", "last"), ("qwen2", "all")],
)
def test_some_tokens_alone_have_the_same_vectors_and_gradients(family, choice, frozen_layers, tmp_path):
    body, batch = make_body(family, tmp_path)
    body.freeze(frozen_layers)
    wanted = ROWS[choice](batch.offsets)
    of_all = body(batch)[wanted]
    alone = body(batch, rows=wanted)
    assert alone.shape == (len(wanted), 24) and np.ptp(alone.data, axis=0).min() > 1e-3
    np.testing.assert_allclose(alone.data, of_all.data, rtol=1e-12, atol=1e-13)
    expected, found = gradients(body, of_all), gradients(body, alone)
    for name in expected:
        assert (found[name] is None) == (expected[name] is None), name
        if expected[name] is not None:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("family", "task", "expected"),
    [
        ("bert", "text-classification", 5),
        ("roberta", "text-classification", 5),
        ("distilbert", "text-classification", 5),
        ("distilbert", "fill-mask", 7),
        ("roberta", "fill-mask", 7),
    ],
)
def test_the_last_layer_computes_only_the_rows_that_the_head_reads(family, task, expected, tmp_path):
    model = make_model(tmp_path) if family == "bert" else make(family, tmp_path, task)
    batch = model.encode(TEXTS)
    if task == "fill-mask":
        batch.labels = np.full(batch.tokens, -100)
        batch.labels[3:10] = 6
    lengths = []
    for layer in model.body.layers:
        feed_forward = layer.ffn if family == "distilbert" else layer.intermediate
        feed_forward.forward = lambda x, forward=feed_forward.forward: lengths.append(len(x)) or forward(x)
    model(batch), model.body(batch)
    assert lengths == [batch.tokens, expected, batch.tokens, batch.tokens]


def test_rows_in_another_order_are_refused(tmp_path):
    body, batch = make_body("distilbert", tmp_path)
    with pytest.raises(ValueError, match="rows must be in ascending order"):
        body(batch, rows=np.array([12, 3]))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_text_without_tokens_is_refused(family, tmp_path):
    model = make_model(tmp_path) if family == "bert" else make(family, tmp_path)
    batch = model.encode(TEXTS)
    batch.offsets = np.insert(batch.offsets, 2, batch.offsets[2])
    with pytest.raises(minift.InputError) as refused:
        model(batch)
    assert str(refused.value) == "text 3 of 6 has no tokens, so no first one that could answer for it"


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_no_row_at_all(family, tmp_path):
    """A batch in which no token is masked: no vector, and no gradient."""
    body, batch = make_body(family, tmp_path)
    vectors = body(batch, rows=np.array([], np.int64))
    assert vectors.shape == (0, 24)
    vectors.sum().backward()
    assert not any(each.grad.any() for each in body.parameters() if each.grad is not None)
