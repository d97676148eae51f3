"""The page that replays a backward pass: its numbers are the pass's own, and it needs nothing but itself."""

import base64
import json
import re

import numpy as np
import pytest
from tiny import make_model

import minift
from minift import trace_page
from minift.models.bert import ARCHITECTURE, BertConfig
from minift.tasks.text_classification import TextClassification
from minift.tokenizer import Tokenizer

TEXT = "a great film and not dull"


@pytest.fixture
def model(tiny):
    """The tiny model, as `load` gives it."""
    return minift.load(tiny / "model")


def written(model, path, text: str = TEXT) -> str:
    trace_page.write_trace(model, text, "positive", path, "tiny")
    return path.read_text()


def data_of(page: str) -> dict:
    return json.loads(
        re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    )


def norms_in(svg: str) -> list[float]:
    return [float(norm) for norm in re.findall(r'data-norm="([^"]+)"', svg)]


# ---- The numbers ----


def test_the_arms_are_the_norms_of_the_weights_gradients(model, tmp_path):
    page = written(model, tmp_path / "trace.html")
    model.zero_grad()
    loss = minift.cross_entropy(model.eval()(TEXT), "positive")
    loss.backward()

    def norm(*prefixes):
        gradients = [each.grad for name, each in model.named_parameters() if name.startswith(prefixes)]
        return np.sqrt(sum(np.square(gradient, dtype=np.float64).sum() for gradient in gradients))

    parts = [
        ("bert.embeddings",),
        *((f"bert.encoder.layer.{i}.",) for i in (0, 1)),
        ("bert.pooler", "classifier"),
    ]
    expected = [norm(*part) for part in parts] + [0]
    np.testing.assert_allclose([stage["norm"] for stage in data_of(page)["stages"]], expected, rtol=1e-6)
    for value in expected[:-1]:
        assert any(np.isclose(value, found, rtol=1e-6) for found in norms_in(page))


def test_widths_are_in_proportion_to_norms(model, tmp_path):
    svg = written(model, tmp_path / "picture.svg")
    assert svg.startswith("<svg") and "<html" not in svg
    bands = re.findall(r'points="([^"]+)" fill="[^"]+"(?: opacity="[.\d]+")? data-norm="([^"]+)"', svg)
    assert len(bands) == 4 + 4  # an arm for each part with weights, a band between each two of five
    ratios = []
    for points, norm in bands:
        (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split()[:2])
        # A band begins with its upper edge, an arm with its left corner, half a width above its middle.
        is_band = y0 == y1 and x1 - x0 != 40
        ys = [float(point.split(",")[1]) for point in points.split()]
        width = x1 - x0 if is_band else ys[-1] - ys[0]
        ratios.append(width / float(norm))
    np.testing.assert_allclose(ratios, np.median(ratios), rtol=0.02, atol=0.02 / min(norms_in(svg)))


def test_what_is_frozen_has_no_gradient_and_no_steps(model, tmp_path):
    model.body.freeze(1)
    page = written(model, tmp_path / "trace.html")
    data = data_of(page)
    assert [stage["frozen"] for stage in data["stages"]] == [True, True, False, False, False]
    assert {step["stage"] for step in data["steps"]} == {2, 3, 4}
    assert not any(
        step["module"].startswith(("bert.embeddings", "bert.encoder.layer.0")) for step in data["steps"]
    )
    assert page.count("pre-trained,") == 2 and 'fill="url(#frozen)"' in page
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    assert len(data["tokens"]) == 8 and data["attention"] and frozen, (
        "saliency and attention are there all the same"
    )


def test_the_steps_are_those_of_the_backward_pass(model, tmp_path):
    data = data_of(written(model, tmp_path / "trace.html"))
    loss = minift.cross_entropy(model.eval()(TEXT), "positive")
    steps = list(loss.backward_steps())
    assert [step["operation"] for step in data["steps"]] == [step.operation for step in steps]
    norms = [np.linalg.norm(step.gradient) for step in steps]
    np.testing.assert_allclose([step["gradient"]["norm"] for step in data["steps"]], norms, rtol=1e-5)
    sent = {each["to"] for step in data["steps"] for each in step["contributions"]}
    assert set(dict(model.named_parameters())) <= sent


def test_saliency_is_the_loss_s_slope_along_a_token_s_vector(tiny, tmp_path):
    model = minift.load(tiny / "model", dtype=np.float64).eval()
    saliency, _ = trace_page.look_closer(model, TEXT, "positive")
    batch = model.encode(TEXT)

    def loss(scale):
        x = model.body.embed(model.body.words(batch), batch)
        vectors = model.body.encode(minift.Tensor(x.data * scale[:, None]), batch)
        pooled = model.body.pooler(vectors[batch.offsets[:-1]])
        return minift.cross_entropy(model.classifier(pooled), 1).item()

    for token in range(batch.tokens):
        step = np.zeros(batch.tokens)
        step[token] = 1e-6
        slope = (loss(1 + step) - loss(1 - step)) / 2e-6
        assert saliency[token] == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_rows_of_attention_add_up_to_1(model, tmp_path):
    data = data_of(written(model, tmp_path / "trace.html"))
    assert len(data["attention"]) == 2 and all(len(layer["heads"]) == 3 for layer in data["attention"])
    for head in data["attention"][0]["heads"]:
        rows = np.frombuffer(base64.b64decode(head), np.uint8).reshape(8, 8)
        np.testing.assert_allclose(rows.sum(axis=1), 255, atol=5)


def test_a_long_text_keeps_the_strongest_attention_and_says_so(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        trace_page, "ATTENTION_BYTES", 3 * 6 * 8 * 2
    )  # three bytes, six heads, eight rows, two keys
    page = written(model, tmp_path / "trace.html")
    data = data_of(page)
    assert data["attention_kept"] == 2 and "only the 2 strongest of 8 are kept" in page
    _, attention = trace_page.look_closer(model, TEXT, "positive")
    kept = np.frombuffer(base64.b64decode(data["attention"][0]["heads"][0]), np.uint8).reshape(8, 2, 3)
    for row, (strongest, second) in enumerate(kept):
        order = np.argsort(-attention[0][0][row], kind="stable")
        assert [strongest[0], second[0]] == order[:2].tolist()
    last = np.frombuffer(base64.b64decode(data["attention"][-1]["heads"][0]), np.uint8)
    assert last.reshape(2, 3)[:, 0].tolist() == np.argsort(-attention[-1][0][0], kind="stable")[:2].tolist()


# ---- The file ----


@pytest.mark.slow
def test_a_bert_base_and_64_tokens_fit_in_3_megabytes(tmp_path):
    tokenizer = Tokenizer.from_directory(minift.hub.resolve("minilm"))
    model = TextClassification(ARCHITECTURE, BertConfig(), ["negative", "positive"], tokenizer)
    text = "good " * 62
    assert model.encode(text).tokens == 64
    trace_page.write_trace(model, text, "positive", tmp_path / "trace.html", "bert-base")
    data = data_of((tmp_path / "trace.html").read_text())
    assert data["attention_kept"] == 64 and len(data["attention"]) == 12
    assert (tmp_path / "trace.html").stat().st_size < 3_000_000


def test_the_page_asks_nobody_for_anything(model, tmp_path):
    page = written(model, tmp_path / "trace.html", 'a "great" film </script><script>alert(1)</script>')
    assert not re.findall(r"(?:src|href)=|url\((?!#)|@import|\bfetch\(", page)
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"] * page.count("http://")
    assert "<script>alert" not in page
    assert len(data_of(page)["tokens"]) > 8


def test_the_gradients_and_the_frozen_parameters_are_as_before(model, tmp_path):
    model.body.freeze(1)
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    written(model, tmp_path / "trace.html")
    assert before == {name: each.requires_grad for name, each in model.named_parameters()}


@pytest.mark.parametrize(
    ("text", "label", "name", "message"),
    [
        (
            TEXT,
            "excellent",
            "a.html",
            "there is no label 'excellent'; the model's labels are negative, positive",
        ),
        (TEXT, "positive", "a.pdf", "unknown ending '.pdf'"),
        ("", "positive", "a.html", "the text '' has no tokens, so there is nothing to trace"),
    ],
)
def test_bad_input(model, tmp_path, text, label, name, message):
    with pytest.raises(minift.InputError, match=message):
        trace_page.write_trace(model, text, label, tmp_path / name, "tiny")
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_task(tmp_path):
    model = make_model(tmp_path, task="text-regression")
    with pytest.raises(minift.InputError, match="text-classification model; this one is for text-regression"):
        trace_page.write_trace(model, TEXT, "1", tmp_path / "a.html", "tiny")
