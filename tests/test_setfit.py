"""SetFit: pairs that are balanced, vectors that part, and a classifier from a few examples."""

import numpy as np
import pytest
from tiny import rows

import minift
from minift.setfit import SetFit, pairs_of


@pytest.fixture
def model(tiny):
    minift.manual_seed(0)
    return minift.load(tiny / "model")


def test_pairs_are_balanced():
    labels = np.array([0, 1, 1, 2])
    pairs = pairs_of(labels, 6, seed=0)
    assert pairs.shape == (4 * 6, 2)
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    assert same.sum() == 4 * 3
    for index in (1, 2):
        assert (pairs[(pairs[:, 0] == index) & same][:, 1] == 3 - index).all()
    assert (pairs_of(labels, 6, seed=0) == pairs).all() and (pairs_of(labels, 6, seed=1) != pairs).any()


def test_it_learns_from_a_few_examples(model):
    setfit = SetFit(model)
    with pytest.raises(minift.InputError, match="has no head yet"):
        setfit.predict(["good"])
    examples = rows(80, seed=1)
    losses = setfit.fit(examples, pairs_per_example=16, learning_rate=5e-3)
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])
    test = rows(40, seed=2)
    predictions = setfit.predict([text for text, _ in test])
    assert np.mean([each.label == label for each, (_, label) in zip(predictions, test, strict=True)]) > 0.8
    u = setfit.embed(["a good film", "bad"]).data
    np.testing.assert_allclose((u * u).sum(axis=1), 1, atol=1e-5)


def test_examples_of_one_class(model):
    with pytest.raises(minift.InputError, match="at least two classes"):
        SetFit(model).fit([("good", "positive"), ("fine", "positive")])
