"""The classification head: what a text is told does not depend on its company, order or the model's mode."""

import json

import numpy as np
import pytest
from tiny import make_model, rows

import minift
from minift import history


@pytest.fixture
def model(tiny):
    """The tiny model, in training mode as `load` gives it: with dropout of 0.1."""
    return minift.load(tiny / "model")


TEXTS = [text for text, _ in rows(7, seed=5)]


def probabilities(predictions) -> np.ndarray:
    return np.array([list(prediction.probabilities.values()) for prediction in predictions])


# ---- Logits ----


def test_a_batch_equals_each_text_alone(model):
    model.eval()
    together = model(TEXTS).numpy()  # (7, 2)
    alone = np.concatenate([model(text).numpy() for text in TEXTS])
    assert together.shape == (7, 2) and np.ptp(together, axis=0).min() > 0.01
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_the_order_of_texts_does_not_matter(model):
    model.eval()
    order = np.random.default_rng(0).permutation(7)
    shuffled = model([TEXTS[index] for index in order]).numpy()
    np.testing.assert_allclose(shuffled, model(TEXTS).numpy()[order], rtol=0, atol=1e-6)


def test_a_pair_is_not_its_texts_in_a_row(model):
    model.eval()
    pair, swapped, row = model([("a good film", "bad"), ("bad", "a good film"), "a good film bad"]).numpy()
    assert np.abs(pair - swapped).max() > 1e-3 and np.abs(pair - row).max() > 1e-3


def test_training_drops_and_evaluation_does_not(model):
    assert model.training
    minift.manual_seed(0)
    first, second = model(TEXTS).numpy(), model(TEXTS).numpy()
    assert (first != second).any()
    minift.manual_seed(0)
    np.testing.assert_array_equal(model(TEXTS).numpy(), first)
    model.eval()
    np.testing.assert_array_equal(model(TEXTS).numpy(), model(TEXTS).numpy())


# ---- Predictions ----


@pytest.mark.parametrize("training", [True, False])
def test_predict_drops_nothing_and_leaves_the_mode_as_it_was(model, training):
    model.train(training)
    calls = minift.random.default_generator.calls
    first, second = model.predict(TEXTS), model.predict(TEXTS)
    assert first == second
    assert {module.training for _, module in model.named_modules()} == {training}
    assert minift.random.default_generator.calls == calls, (
        "a prediction took a dropout mask from the training"
    )
    expected = np.exp(model.eval()(TEXTS).numpy())
    np.testing.assert_allclose(probabilities(first), expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_predict_leaves_the_mode_as_it_was_when_it_fails(model):
    with pytest.raises(Exception):  # noqa: B017 (whatever the tokenizer says of a number)
        model.predict([3.5])
    assert model.training and history.grad_enabled()


def test_predict_keeps_no_history(model, monkeypatch):
    made = []
    monkeypatch.setattr(history.Node, "__init__", lambda *arguments: made.append(arguments))
    model.predict("a good film")
    assert not made


def test_predictions_come_in_the_order_of_the_texts_whatever_the_batches(model):
    whole = model.predict(TEXTS)
    assert len(whole) == 7 and np.ptp(probabilities(whole), axis=0).min() > 0.01
    for batch_size in (1, 3, 7, 100):
        parts = model.predict(TEXTS, batch_size)
        np.testing.assert_allclose(probabilities(parts), probabilities(whole), atol=1e-6)


def test_a_prediction_says_how_sure_it_is(model):
    [prediction] = model.predict("a good film")
    assert list(prediction.probabilities) == ["negative", "positive"]
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert prediction.probability == max(prediction.probabilities.values())
    assert prediction.probabilities[prediction.label] == prediction.probability


def test_nothing_to_predict(model):
    assert model.predict([]) == []


def test_empty_text(model):
    assert model.predict("") == model.predict([""])


def test_truncated_texts_are_counted_over_all_batches(model, caplog):
    model.predict(["good " * 40, "bad", "good", "bad " * 31, "good " * 30], batch_size=2)
    assert caplog.messages == ["2 of 5 texts: longer than 32 tokens, truncated"]


def test_batch_size_below_one(model):
    with pytest.raises(minift.InputError, match="batch_size is 0, expected 1 or more"):
        model.predict(TEXTS, batch_size=0)


# ---- Labels ----


def test_a_label_is_a_name_or_an_index(model):
    logits = model.eval()(TEXTS[:3])
    by_name = minift.cross_entropy(logits, ["negative", "positive", "positive"]).item()
    for targets in ([0, 1, 1], np.array([0, 1, 1]), ("negative", 1, np.int64(1))):
        assert minift.cross_entropy(logits, targets).item() == by_name
    assert minift.cross_entropy(logits, [1, 0, 0]).item() != by_name


def test_one_text_takes_one_label(model):
    logits = model.eval()(TEXTS[0])
    assert minift.cross_entropy(logits, "positive").item() == minift.cross_entropy(logits, 1).item()
    assert minift.cross_entropy(logits, ["positive"]).item() == minift.cross_entropy(logits, 1).item()


def test_labels_of_a_new_head(tiny):
    model = minift.load(tiny / "model", labels=["yes", "no"])
    assert model.labels == ("yes", "no") and model("good").labels == ("yes", "no")
    with pytest.raises(
        minift.InputError, match="there is no label 'positive'; the model's labels are yes, no"
    ):
        minift.cross_entropy(model("good"), "positive")


@pytest.mark.parametrize("task", ["text-classification", "multi-label", "token-classification"])
@pytest.mark.parametrize("labels", [["B-X", "O"], ["B-X", "I-X", "O"], ["O"]])
def test_a_head_that_has_the_labels_of_the_examples_keeps_its_own(tmp_path, caplog, task, labels):
    trained = make_model(tmp_path / "words", labels=("O", "B-X", "I-X"), task=task)
    trained.save(tmp_path / "model")
    model = minift.load(tmp_path / "model", task, labels, new_head=True)
    assert model.labels == trained.labels and caplog.messages == []
    np.testing.assert_array_equal(model.classifier.weight.data, trained.classifier.weight.data)


@pytest.mark.parametrize("labels", [["neg", "pos"], ["maybe", "negative", "positive"], ["2", "3"]])
def test_a_head_for_other_labels_is_replaced(tiny, caplog, labels):
    model = minift.load(tiny / "model", labels=labels, new_head=True)
    assert list(model.labels) == labels and model.classifier.weight.data.std() < 0.03
    names = "classifier.weight, classifier.bias"
    assert caplog.messages == [
        f"{tiny / 'model'}: loaded 39 tensors; newly initialized: {names}; unused: {names}; "
        f"its head was trained for negative, positive, the new one is for {', '.join(labels)}"
    ]


@pytest.mark.parametrize(
    ("own", "labels"),
    [(["LABEL_0", "LABEL_1"], ["no", "yes"]), (["no", "yes"], ["0", "1"]), (None, ["a", "b"])],
)
def test_a_head_without_names_takes_those_of_the_examples_in_their_order(tmp_path, caplog, own, labels):
    """And says so, because nobody can know that the order is right."""
    trained = make_model(tmp_path / "words", labels=own or ["LABEL_0", "LABEL_1"])
    trained.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    if own is None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": None}))
    model = minift.load(tmp_path / "model", labels=labels, new_head=True)
    assert list(model.labels) == labels
    told = own and f"the labels of its head, {', '.join(own)}, are called {', '.join(labels)}"
    assert caplog.messages == ([f"{tmp_path / 'model'}: {told}"] if told else [])
    np.testing.assert_array_equal(model.classifier.weight.data, trained.classifier.weight.data)


def test_a_head_of_a_task_without_labels_is_kept_whatever_a_config_names(tmp_path, caplog):
    trained = make_model(tmp_path / "words", task="question-answering")
    trained.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    names = {"0": "entailment", "1": "neutral", "2": "contradiction"}  # of what it was trained for before
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": names}))
    model = minift.load(tmp_path / "model", "question-answering", new_head=True)
    assert caplog.messages == []
    np.testing.assert_array_equal(model.qa_outputs.weight.data, trained.qa_outputs.weight.data)


def test_a_head_of_classes_is_replaced_by_one_for_a_number(tiny, caplog):
    model = minift.load(tiny / "model", "text-regression", new_head=True)
    assert model("good").shape == (1, 1)
    assert caplog.messages[0].endswith("trained for negative, positive, the new one is for text-regression")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["positive", "negative"],
            "labels are positive, negative; its head was trained for negative, positive, in this order",
        ),
        ("pos", "labels is 'pos', expected a list of names"),
        ([], "labels are none; expected one or more, each once"),
        (["a", "b", "a"], "labels are a, b, a; expected one or more, each once"),
        (["a", "b", "c"], r"'classifier.weight' has shape \(2, 24\), the model expects \(3, 24\)"),
    ],
)
def test_labels_that_cannot_be(tiny, labels, message):
    with pytest.raises(minift.InputError, match=message):
        minift.load(tiny / "model", labels=labels)


def test_examples_are_those_of_a_file(model):
    for wrong in (minift.evaluate, lambda *given: model.batches(given[1], 2)):
        with pytest.raises(minift.InputError, match=r"minift.Dataset\('dev.tsv'\) reads them, found a list"):
            wrong(model, [("a", "positive")])


def test_weights_are_floats(tiny):
    with pytest.raises(minift.InputError, match="dtype is int32, expected np"):
        minift.load(tiny / "model", dtype=np.int32)


def test_without_labels_a_checkpoint_must_have_a_head(tiny, tmp_path):
    model = minift.load(tiny / "model")
    weights = {name: each.data for name, each in model.named_parameters() if name.startswith("bert.")}
    model.save(tmp_path)
    minift.checkpoint.write_tensors(tmp_path / "model.safetensors", weights)
    with pytest.raises(
        minift.InputError, match=r"classifier.weight, classifier.bias missing: .*no trained head"
    ):
        minift.load(tmp_path)
    new = minift.load(tmp_path, labels=["a", "b", "c"])
    assert new("good").shape == (1, 3)
    assert not new.classifier.bias.data.any() and 0 < new.classifier.weight.data.std() < 0.03


# ---- Saved and loaded ----


def test_a_saved_model_predicts_the_same(model, tmp_path):
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data * 3
    model.save(tmp_path / "a")
    assert minift.load(tmp_path / "a").predict(TEXTS) == model.predict(TEXTS)


def test_after_evaluating_each_module_is_in_its_own_mode():
    layers = minift.nn.ModuleList([minift.nn.Dropout(0.1), minift.nn.Dropout(0.1)])
    layers[0].eval()
    with minift.nn.evaluating(layers):
        assert not layers.training and not layers[1].training
    assert layers.training and layers[1].training and not layers[0].training
