"""The encoder: where only the first tokens are asked for, the last layer computes no others."""

import numpy as np
import pytest
from tiny import make_model, rows

from minift import Tensor

TEXTS = [text for text, _ in rows(5, seed=8)]


@pytest.fixture
def model(tmp_path):
    """The tiny model in float64, with dropout off."""
    return make_model(tmp_path).to(np.float64).eval()


def gradients(model, first: Tensor) -> dict[str, np.ndarray | None]:
    """Of every parameter, where each of these (B, H) vectors counts with a weight of its own."""
    first.backward(np.random.default_rng(0).standard_normal(first.shape))
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("frozen_layers", [0, 1, 2])
def test_the_first_tokens_alone_have_the_same_vectors_and_gradients(model, frozen_layers):
    model.body.freeze(frozen_layers)
    batch = model.encode(TEXTS)
    of_all = model.body.pooler(model.body(batch)[batch.offsets[:-1]])
    alone = model.body.pooler(model.body(batch, first_only=True))
    assert alone.shape == (5, 24) and np.ptp(alone.data, axis=0).min() > 1e-3
    np.testing.assert_allclose(alone.data, of_all.data, rtol=1e-12, atol=1e-14)
    expected, found = gradients(model, of_all), gradients(model, alone)
    for name in expected:
        assert (found[name] is None) == (expected[name] is None), name
        if expected[name] is not None:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-13, err_msg=name)


def test_the_last_layer_computes_only_the_rows_that_are_asked_for(model):
    batch = model.encode(TEXTS)
    [layer] = model.body.layers[-1:]
    asked = []
    layer.intermediate.forward = lambda x, forward=layer.intermediate.forward: (
        asked.append(len(x)) or forward(x)
    )
    model(batch), model.body(batch)
    assert asked == [5, batch.tokens]
