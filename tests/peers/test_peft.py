"""The same files as PEFT: what either saves, the other loads, with the same logits."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import CONFIG, make_model, rows, write_tokenizer

import minift
from minift.generation import Sampling, generate

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


# ---- Other families ----

SMALL = dict(vocab_size=CONFIG.vocab_size, num_labels=3)
BERT_SIZES = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, initializer_range=0.2
)
FAMILIES = {
    "roberta": lambda: transformers.RobertaConfig(
        **SMALL, **BERT_SIZES, max_position_embeddings=66, pad_token_id=1
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        **SMALL,
        dim=24,
        n_layers=2,
        n_heads=3,
        hidden_dim=40,
        max_position_embeddings=64,
        initializer_range=0.2,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        **SMALL, n_embd=24, n_layer=2, n_head=3, n_positions=64, pad_token_id=0, initializer_range=0.2
    ),
    "llama": lambda: transformers.LlamaConfig(
        **SMALL, **{**BERT_SIZES, "num_attention_heads": 4}, num_key_value_heads=2, pad_token_id=0
    ),
}
FAMILIES["qwen2"] = lambda: transformers.Qwen2Config(
    **SMALL, **{**BERT_SIZES, "num_attention_heads": 4}, num_key_value_heads=2, pad_token_id=0
)
CASES = [(family, name) for family in FAMILIES for name in ("lora", "ia3", "prompt", "prefix")]
CASES.remove(("distilbert", "prefix"))


def test_peft_has_no_prefix_for_distilbert(tmp_path):
    """Its class in transformers takes no keys from outside; minift's own reading is tested without PEFT."""
    peer = transformers.AutoModelForSequenceClassification.from_config(FAMILIES["distilbert"]())
    sizes = dict(num_layers=2, token_dim=24, num_attention_heads=3)
    peer = peft.get_peft_model(
        peer, peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, **sizes)
    )
    with pytest.raises(ValueError, match="does not support past key values"):
        peer(input_ids=torch.tensor([[2, 5, 3]]))


@pytest.mark.parametrize(("family", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_other_families(tmp_path, family, name):
    """What minift saved, PEFT loads; what PEFT then saves, minift loads."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    config = FAMILIES[family]()
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(base)
    write_tokenizer(base)
    minift.manual_seed(1)
    model = minift.load(base, "text-classification", labels=LABELS)
    method = minift.apply_method(model, name, **({"tokens": 4} if name in ("prompt", "prefix") else {}))
    generator = np.random.default_rng(2)
    for parameter in method.inserted(model).values():  # as if it had been trained
        parameter.data = parameter.data + 0.3 * generator.standard_normal(parameter.shape, dtype=np.float32)
    model.save(tmp_path / "ours")
    peer = peft.PeftModel.from_pretrained(peer_base(base), tmp_path / "ours").eval()
    texts = [text for text in TEXTS if isinstance(text, str)]

    def assert_same(model):
        with torch.no_grad():
            ids = [each.ids for each in model.tokenizer.encode(texts)]
            expected = torch.cat([peer(input_ids=torch.tensor([each])).logits for each in ids]).numpy()
        assert np.ptp(expected, axis=0).max() > 0.01
        found = model.eval()(texts).data
        assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())

    assert_same(model)
    peer.save_pretrained(tmp_path / "theirs")
    assert_same(minift.load(tmp_path / "theirs"))


# ---- Generation ----


def causal(family: str, tmp_path):
    """A decoder of 2 layers with random weights, of the family's name, saved by transformers."""
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.bos_token_id = config.eos_token_id = None
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("name", ["lora", "ia3", "prompt", "prefix"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_greedy_equals_peft_s_generate(tmp_path, family, name):
    base = causal(family, tmp_path)
    minift.manual_seed(1)
    model = minift.load(base, "text-generation")
    method = minift.apply_method(model, name, **({"tokens": 4} if name in ("prompt", "prefix") else {}))
    prompts = [[7], [9, 12, 8, 15, 11], [20, 6, 6, 17, 13, 10, 9, 8, 7, 25]]
    plain = generate(model, prompts, 20, Sampling())
    generator = np.random.default_rng(2)
    for parameter in method.inserted(model).values():
        parameter.data = parameter.data + 2 * generator.standard_normal(parameter.shape, dtype=np.float32)
    model.save(tmp_path / "ours")
    peer = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours"
    ).eval()
    found = generate(model, prompts, 20, Sampling())
    assert found == generate(model, prompts, 20, Sampling(), use_cache=False)
    assert found != plain, "the method changes nothing"
    for prompt, written in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = peer.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )[0].tolist()
        assert written == expected[-20:]
