"""The same files as AdapterHub's library: what either saves, the other loads, with the same logits.

The library pins an older transformers, so these run in an environment of their own: `make test-adapters`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIG, make_model, rows

import minift

adapters = pytest.importorskip("adapters", reason="AdapterHub's library has its own run: make test-adapters")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

LABELS = ["bad", "middling", "good"]
TEXTS = [text for text, _ in rows(5, seed=8)] + ["good " * 12, ("the film", "was it good ?")]
PLACEMENTS = {"houlsby": "double_seq_bn", "pfeiffer": "seq_bn"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A BERT that both load, with a head of three classes."""
    folder = tmp_path_factory.mktemp("base")
    make_model(folder / "vocabulary", CONFIG, LABELS).save(folder / "model")
    return folder / "model"


def peer_base(base: Path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    adapters.init(model)
    return model


def assert_same_logits(model, peer, base: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    logits = []
    for text in TEXTS:
        given = [text] if isinstance(text, str) else list(text)
        with torch.no_grad():
            logits.append(peer.eval()(**tokenizer(*given, truncation=True, return_tensors="pt")).logits)
    expected = torch.cat(logits).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01, "all texts are alike, so nothing was compared"
    with minift.no_grad():
        found = model.eval()(TEXTS).data
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_library_loads_what_minift_saved(base, tmp_path, name):
    minift.manual_seed(1)
    model = minift.load(base)
    method = minift.apply_method(model, name, reduction=4)
    optimizer = minift.AdamW(method.parameter_groups(model, 3e-2, 0.01))
    plain = model.eval()(TEXTS).data
    for _ in range(4):
        minift.cross_entropy(model.train()(TEXTS), [0, 1, 2, 0, 1, 2, 0]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.abs(model.eval()(TEXTS).data - plain).max() > 0.1
    model.save(tmp_path)
    peer = peer_base(base)
    loaded = peer.load_adapter(str(tmp_path), with_head=True, use_safetensors=True)
    peer.set_active_adapters(loaded)
    assert_same_logits(model, peer, base)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_minift_loads_what_the_library_saved(base, tmp_path, name):
    torch.manual_seed(2)
    peer = peer_base(base)
    peer.add_adapter("sentiment", config=adapters.AdapterConfig.load(PLACEMENTS[name], reduction_factor=3))
    peer.train_adapter("sentiment")
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.requires_grad:  # as if it had been trained
                parameter.add_(0.2 * torch.randn_like(parameter))
    tmp_path.joinpath("theirs").mkdir()
    peer.save_adapter(str(tmp_path / "theirs"), "sentiment", with_head=True, use_safetensors=True)
    model = minift.load(tmp_path / "theirs")
    assert model.method.name == name and model.method.reduction == 3 and model.labels == tuple(LABELS)
    assert_same_logits(model, peer, base)

    model.save(tmp_path / "again")
    again = peer_base(base)
    again.set_active_adapters(
        again.load_adapter(str(tmp_path / "again"), with_head=True, use_safetensors=True)
    )
    assert_same_logits(model, again, base)


def test_the_keys_and_files_are_the_library_s(base, tmp_path):
    from safetensors.torch import load_file

    peer = peer_base(base)
    peer.add_adapter("minift", config="double_seq_bn")
    tmp_path.joinpath("theirs").mkdir()
    peer.save_adapter(str(tmp_path / "theirs"), "minift", with_head=True, use_safetensors=True)
    model = minift.load(base)
    minift.apply_method(model, "houlsby")
    model.save(tmp_path / "ours")
    for path in tmp_path.glob("theirs/*"):
        assert (tmp_path / "ours" / path.name).exists(), path.name
        if path.suffix == ".safetensors":
            theirs, ours = load_file(path), load_file(tmp_path / "ours" / path.name)
            assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}
        else:
            theirs, ours = (
                json.loads((tmp_path / who / path.name).read_text()) for who in ("theirs", "ours")
            )
            assert set(ours) <= set(theirs)


def test_a_pickle_is_not_opened(base, tmp_path):
    peer = peer_base(base)
    peer.add_adapter("sentiment", config="seq_bn")
    tmp_path.joinpath("theirs").mkdir()
    peer.save_adapter(str(tmp_path / "theirs"), "sentiment", with_head=True)
    with pytest.raises(minift.InputError, match=r"pytorch_adapter.bin is a pickle"):
        minift.load(tmp_path / "theirs")
