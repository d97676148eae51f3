"""Every family with every head: transformers' numbers and transformers' files, both ways.

Tiny models with random weights, large enough that differences show. minift gets one packed batch, transformers one text
at a time.
"""

import numpy as np
import pytest
from tiny import write_tokenizer

from minift import checkpoint
from minift.data import Batch
from minift.load import fill
from minift.models import architecture_of
from minift.nn import skip_init
from minift.tasks.task_model import TaskModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

ENCODER = dict(
    vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40
)
DECODER = ENCODER | dict(num_attention_heads=4, max_position_embeddings=64)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
FAMILIES = {
    "bert": transformers.BertConfig(**ENCODER, max_position_embeddings=32),
    "roberta": transformers.RobertaConfig(**ENCODER, max_position_embeddings=34, pad_token_id=1),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=40, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=32
    ),
    "gpt2": transformers.GPT2Config(vocab_size=40, n_embd=24, n_layer=2, n_head=3, n_positions=32, **ENDS),
    "llama": transformers.LlamaConfig(**DECODER, num_key_value_heads=2, head_dim=8, **ENDS),
    "llama 3.2": transformers.LlamaConfig(
        **DECODER, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=LLAMA3, **ENDS
    ),
    "llama with biases": transformers.LlamaConfig(
        **DECODER,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.0),
        **ENDS,
    ),
    "qwen 2.5": transformers.Qwen2Config(**DECODER | ENDS, num_key_value_heads=2, tie_word_embeddings=True),
}
HEADS = {
    "encoder": {
        "SequenceClassification": transformers.AutoModelForSequenceClassification,
        "TokenClassification": transformers.AutoModelForTokenClassification,
        "QuestionAnswering": transformers.AutoModelForQuestionAnswering,
        "MaskedLM": transformers.AutoModelForMaskedLM,
    },
    "decoder": {
        "SequenceClassification": transformers.AutoModelForSequenceClassification,
        "TokenClassification": transformers.AutoModelForTokenClassification,
        "CausalLM": transformers.AutoModelForCausalLM,
    },
}
CASES = [
    (family, head)
    for family in FAMILIES
    for head in HEADS["encoder" if "bert" in family else "decoder"]
    if family not in ("llama with biases", "llama 3.2") or head == "CausalLM"
]
cases = pytest.mark.parametrize(("family", "head"), CASES, ids=[" ".join(case) for case in CASES])
LABELS = {"SequenceClassification": ["a", "b", "c"], "TokenClassification": ["a", "b", "c"]}
LENGTHS = (7, 1, 24, 4)


def batch_of_texts() -> Batch:
    """Random tokens other than the padding's; of the second text of a pair where a family has token types."""
    lengths = np.array(LENGTHS)
    ids = np.random.default_rng(0).integers(3, 40, lengths.sum())
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(ids, np.zeros_like(ids), positions, np.concatenate([[0], np.cumsum(lengths)]))


@pytest.fixture
def peer(family, head):
    """A transformers model in float64 whose own detours over float32 are removed (see `without_float32`)."""
    torch.manual_seed(0)
    labels = LABELS.get(head, ["LABEL_0", "LABEL_1"])
    config = FAMILIES[family].__class__(
        **{**FAMILIES[family].to_dict(), "id2label": dict(enumerate(labels)), "initializer_range": 0.15}
    )
    model = HEADS["encoder" if "bert" in family else "decoder"][head].from_config(
        config, attn_implementation="sdpa"
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1, std=0.1)
    return model.double().eval()


@pytest.fixture
def without_float32(monkeypatch):
    """transformers computes Llama's norms and angles in float32 whatever the model is; here in float64."""
    for module in (transformers.models.llama.modeling_llama, transformers.models.qwen2.modeling_qwen2):
        name = "Llama" if "llama" in module.__name__ else "Qwen2"

        def norm(self, x):
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

        def angles(self, x, position_ids):
            parameters, size = self.config.rope_parameters, 2 * len(self.inv_freq)
            speeds = parameters["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
            ratio = (self.inv_freq.double() / speeds).round(decimals=4)  # what scaling does to each speed
            if parameters["rope_type"] != "llama3":
                speeds = speeds * ratio
            else:
                speeds = exactly_scaled(speeds, parameters, self.inv_freq)
            angle = position_ids[..., None] * speeds
            both = torch.cat([angle, angle], dim=-1)
            return both.cos(), both.sin()

        monkeypatch.setattr(getattr(module, f"{name}RMSNorm"), "forward", norm)
        monkeypatch.setattr(getattr(module, f"{name}RotaryEmbedding"), "forward", angles)


def exactly_scaled(speeds, parameters, in_float32):
    """Llama 3's scaling as its published code writes it, in float64; close to what transformers computed."""
    scaled = []
    length = parameters["original_max_position_embeddings"]
    for speed in speeds.tolist():
        wavelength = 2 * np.pi / speed
        if wavelength < length / parameters["high_freq_factor"]:
            scaled.append(speed)
        elif wavelength > length / parameters["low_freq_factor"]:
            scaled.append(speed / parameters["factor"])
        else:
            smooth = (length / wavelength - parameters["low_freq_factor"]) / (
                parameters["high_freq_factor"] - parameters["low_freq_factor"]
            )
            scaled.append((1 - smooth) * speed / parameters["factor"] + smooth * speed)
    scaled = torch.tensor(scaled, dtype=torch.float64)
    torch.testing.assert_close(scaled, in_float32.double(), rtol=1e-6, atol=0)
    return scaled


def peer_logits(peer, batch: Batch):
    """Each text by itself, one under the other: (B, C) or (T, C)."""
    rows = []
    for start, end in batch.segments:
        output = peer(input_ids=torch.tensor(batch.ids[None, start:end]))
        if hasattr(output, "start_logits"):
            rows.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=1))
        else:
            rows.append(output.logits.reshape(-1, output.logits.shape[-1]))
    return torch.cat(rows)


def loaded(directory, head: str, tokenizer) -> TaskModel:
    """What minift makes of the directory; asserts that every key was found and used."""

    class WithHead(TaskModel):
        outputs = len(LABELS.get(head, ["begin", "end"]))

    WithHead.head = head
    source = str(directory / "config.json")
    config_json = checkpoint.read_config(directory)
    architecture = architecture_of(config_json, source)
    config = architecture.config.from_dict(config_json, source)
    with skip_init():
        model = WithHead(architecture, config, LABELS.get(head), tokenizer)
    report = fill(model, directory, 0.02)
    assert not report.initialized and not report.unused, str(report)
    return model


@cases
def test_logits_and_every_gradient(family, head, peer, tmp_path, without_float32):
    peer.save_pretrained(tmp_path / "saved")
    model = loaded(tmp_path / "saved", head, write_tokenizer(tmp_path)).to(np.float64).eval()
    for name, parameter in model.named_parameters():  # the file's floats are double, minift reads float32
        parameter.data = dict(peer.named_parameters())[name].detach().numpy()
    batch = batch_of_texts()
    logits = model.answer(batch)
    expected = peer_logits(peer, batch)
    assert np.ptp(logits.data, axis=0).max() > 0.1, "all rows are alike, so nothing was compared"
    np.testing.assert_allclose(logits.data, expected.detach().numpy(), rtol=1e-9, atol=1e-9)

    dy = np.random.default_rng(1).standard_normal(logits.shape)
    logits.backward(dy)
    expected.backward(torch.tensor(dy))
    gradients = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    largest = max(np.linalg.norm(gradient) for gradient in gradients.values())
    assert {name for name, _ in model.named_parameters()} == set(gradients)
    for name, parameter in model.named_parameters():
        # A key bias shifts all scores of a row alike, which softmax does not see: its gradient is 0 but for rounding.
        floor = 1e-12 * largest if "key" in name or "k_lin" in name or "k_proj" in name else 0.0
        error = np.linalg.norm(parameter.grad - gradients[name])
        assert error <= 1e-9 * np.linalg.norm(gradients[name]) + floor, name


@cases
def test_transformers_loads_what_minift_saves(family, head, peer, tmp_path):
    peer.float().save_pretrained(tmp_path / "theirs")
    model = loaded(tmp_path / "theirs", head, write_tokenizer(tmp_path)).eval()
    model.save(tmp_path / "ours")
    again, report = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], (kind, report[kind])
    if head in LABELS:
        assert again.config.id2label == dict(enumerate(LABELS[head]))
    for (name, before), (_, after) in zip(peer.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(before, after), name
    batch = batch_of_texts()
    with torch.no_grad():
        expected = peer_logits(again.eval(), batch).numpy()
    assert np.abs(model.answer(batch).data - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    written = checkpoint.read_config(tmp_path / "ours")
    assert written["architectures"] == [type(peer).__name__]
    assert loaded(tmp_path / "ours", head, model.tokenizer).config == model.config


def test_old_files_say_the_rotation_otherwise():
    config_json = {
        "model_type": "llama",
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    config = architecture_of(config_json, "").config.from_dict(config_json, "config.json")
    assert config.rope_parameters == {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}
