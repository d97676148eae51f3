"""The same files as PEFT: what either saves, the other loads, with the same logits."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIG, make_model, rows

import minift

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.peers

LABELS = ["bad", "middling", "good"]
TEXTS = [text for text, _ in rows(5, seed=8)] + ["good " * 12, ("the film", "was it good ?")]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A BERT that both load, with a head of three classes."""
    folder = tmp_path_factory.mktemp("base")
    make_model(folder / "vocabulary", CONFIG, LABELS).save(folder / "model")
    return folder / "model"


def peer_base(base: Path):
    return transformers.AutoModelForSequenceClassification.from_pretrained(base)


def peer_logits(model, base: Path, max_length: int = 28) -> np.ndarray:
    """Each text by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    logits = []
    for text in TEXTS:
        given = [text] if isinstance(text, str) else list(text)
        encoded = tokenizer(*given, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            logits.append(model.eval()(**encoded).logits)
    return torch.cat(logits).numpy()


def assert_same_logits(model, peer, base: Path) -> None:
    expected = peer_logits(peer, base)
    assert np.ptp(expected, axis=0).max() > 0.01, "all texts are alike, so nothing was compared"
    with minift.no_grad():
        found = model.eval()(TEXTS).data
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


OURS = [
    ("lora", {"rank": 3}),
    ("lora", {"rank": 4, "alpha": 3.0, "rslora": True, "targets": ("key", "dense")}),
    ("ia3", {}),
    ("ia3", {"targets": ("query",), "feed_forward": ("attention.output.dense",)}),
    ("prompt", {"tokens": 4}),
    ("prefix", {"tokens": 4}),
]


@pytest.mark.parametrize(("name", "options"), OURS, ids=str)
def test_peft_loads_what_minift_saved(base, tmp_path, name, options):
    minift.manual_seed(1)
    model = minift.load(base)
    method = minift.apply_method(model, name, **options)
    optimizer = minift.AdamW(method.parameter_groups(model, 3e-2, 0.01))
    for _ in range(3):
        minift.cross_entropy(model(TEXTS), [0, 1, 2, 0, 1, 2, 0]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save(tmp_path)
    peer = peft.PeftModel.from_pretrained(peer_base(base), tmp_path)
    report = peft.get_peft_model_state_dict(peer, save_embedding_layers=False)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == set(report), "PEFT would save the same keys"
    assert_same_logits(model, peer, base)
    assert np.abs(peer_logits(peer, base) - peer_logits(peer_base(base), base)).max() > 1e-2


PEFT_S = {
    "lora": lambda: peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=["query", "value"]
    ),
    "lora by a pattern": lambda: peft.LoraConfig(
        task_type="SEQ_CLS", r=2, use_rslora=True, target_modules=r".*layer\.1.*\.(key|dense)"
    ),
    "lora and the biases": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, bias="all"),
    "lora and the pooler": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, modules_to_save=["pooler"]),
    "ia3": lambda: peft.IA3Config(task_type="SEQ_CLS"),
    "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
}


@pytest.mark.parametrize("name", PEFT_S)
def test_minift_loads_what_peft_saved(base, tmp_path, name):
    torch.manual_seed(3)
    peer = peft.get_peft_model(peer_base(base), PEFT_S[name]())
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.requires_grad:  # as if it had been trained
                parameter.add_(0.3 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path)
    model = minift.load(tmp_path)
    assert model.labels == tuple(LABELS)
    assert_same_logits(model, peer, base)
    if name not in ("lora and the biases", "lora and the pooler"):
        model.save(tmp_path / "again")
        again = peft.PeftModel.from_pretrained(peer_base(base), tmp_path / "again")
        assert_same_logits(model, again, base)


def test_a_small_configuration_is_enough(base, tmp_path):
    torch.manual_seed(3)
    peer = peft.get_peft_model(peer_base(base), peft.LoraConfig(task_type="SEQ_CLS", r=4))
    peer.save_pretrained(tmp_path)
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(base)})
    )
    assert_same_logits(minift.load(tmp_path), peer, base)


def test_a_part_that_peft_saved_without_its_head_is_refused(base, tmp_path):
    peer = peft.get_peft_model(peer_base(base), peft.LoraConfig(r=4))  # no task_type: a common mistake
    peer.save_pretrained(tmp_path)
    with pytest.raises(minift.InputError, match=r"classifier.weight, .*saved without its head"):
        minift.load(tmp_path)
