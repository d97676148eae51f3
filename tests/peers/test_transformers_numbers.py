"""The same numbers as PyTorch and transformers: logits, every gradient, and training steps.

minift packs the texts into one batch; transformers is given them one by one, so that neither padding nor a mask can
hide a difference.
"""

import numpy as np
import pytest

import minift
from minift import checkpoint, hub
from minift.models.architecture import initialize
from minift.models.bert import ARCHITECTURE, BertConfig
from minift.tasks.text_classification import TextClassification
from minift.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

LABELS = ["negative", "positive"]
MODELS = ["minilm", "bert-base, 2 layers"]


def sentences(shared_data) -> tuple[list[str], np.ndarray]:
    """64 SST-2 sentences from the shortest to the longest, in a mixed order, and their labels."""
    dataset = minift.Dataset(shared_data / "sst2" / "train_sentences.tsv")
    rows = sorted((dataset[index] for index in range(0, len(dataset), 11)), key=lambda row: len(row[0]))
    chosen = [rows[index] for index in np.linspace(0, len(rows) - 1, 64).astype(int)]
    chosen = [chosen[index] for index in np.random.default_rng(0).permutation(64)]
    return [text for text, _ in chosen], np.array([label for _, label in chosen])


def minift_model(name: str, dtype) -> TextClassification:
    """Without dropout; the head, and all of a random model, are drawn from a fixed seed."""
    minift.manual_seed(1)
    directory = hub.resolve("minilm")
    if name == "minilm":
        model = minift.load("minilm", labels=LABELS)
        config = checkpoint.read_config(directory)
        assert config["num_hidden_layers"] == 6
    else:
        model = TextClassification(
            ARCHITECTURE, BertConfig(num_hidden_layers=2), LABELS, Tokenizer.from_directory(directory)
        )
        # Larger than a new model's 0.02, so that attention is not uniform and differences show.
        initialize(dict(model.named_parameters()), 0.05)
    return model.to(dtype).eval()


def transformers_model(model: TextClassification):
    """transformers' own model with the same weights, in the same dtype."""
    shape = {name: value for name, value in vars(model.bert.config).items() if name != "classifier_dropout"}
    config = transformers.BertConfig(**shape, num_labels=len(LABELS), attn_implementation="eager")
    dtype = torch.float64 if next(model.parameters()).dtype == np.float64 else torch.float32
    peer = transformers.BertForSequenceClassification(config).to(dtype).eval()
    weights = {name: torch.tensor(parameter.data) for name, parameter in model.named_parameters()}
    missing = peer.load_state_dict(weights, strict=False).missing_keys
    assert all("position_ids" in key for key in missing)
    return peer


def peer_logits(peer, tokenizer: Tokenizer, texts: list[str]):
    """Each text by itself: (B, C)."""
    rows = []
    for encoding in tokenizer.encode(texts):
        ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.token_types])
        rows.append(peer(input_ids=ids, token_type_ids=types).logits)
    return torch.cat(rows)


@pytest.mark.parametrize("name", MODELS)
def test_float64_logits_and_every_gradient(name, shared_data):
    texts, labels = sentences(shared_data)
    model = minift_model(name, np.float64)
    peer = transformers_model(model)

    logits = model(texts)
    minift.cross_entropy(logits, labels).backward()
    expected = peer_logits(peer, model.tokenizer, texts)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()

    # A logit near 0 is the rest of larger terms: it has their roundings, a few units of 1e-16.
    np.testing.assert_allclose(logits.data, expected.detach().numpy(), rtol=1e-9, atol=1e-15)
    gradients = {key: parameter.grad.numpy() for key, parameter in peer.named_parameters()}
    largest = max(np.linalg.norm(gradient) for gradient in gradients.values())
    for key, parameter in model.named_parameters():
        error = np.linalg.norm(parameter.grad - gradients[key])
        # A key bias shifts all scores of a row alike, which softmax does not see: its gradient is 0 but for rounding.
        floor = 1e-12 * largest if key.endswith("key.bias") else 0.0
        assert error <= 1e-9 * np.linalg.norm(gradients[key]) + floor, key


@pytest.mark.parametrize("name", MODELS)
def test_float32_logits_and_every_gradient(name, shared_data):
    texts, labels = sentences(shared_data)
    model = minift_model(name, np.float32)
    peer = transformers_model(model)

    logits = model(texts)
    minift.cross_entropy(logits, labels).backward()
    expected = peer_logits(peer, model.tokenizer, texts)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()

    expected = expected.detach().numpy()
    assert np.abs(logits.data - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    gradients = {key: parameter.grad.numpy() for key, parameter in peer.named_parameters()}
    largest = max(np.linalg.norm(gradient) for gradient in gradients.values())
    for key, parameter in model.named_parameters():
        error = np.linalg.norm(parameter.grad - gradients[key])
        assert error <= 1e-4 * np.linalg.norm(gradients[key]) + 1e-6 * largest, key


STEPS, WARMUP, BATCH = 20, 4, 4


def train_both(model, peer, texts, labels):
    """20 steps of clipping, AdamW with decay for matrices alone, and a linear schedule; the losses of both."""
    optimizer = minift.AdamW(minift.decay_groups(model, 0.05), lr=1e-4)
    schedule = minift.linear_schedule(optimizer, STEPS, WARMUP)
    exempt = {key for key, _ in peer.named_parameters() if key.endswith("bias") or "LayerNorm" in key}
    peer_groups = [
        {"params": [p for key, p in peer.named_parameters() if key not in exempt], "weight_decay": 0.05},
        {"params": [p for key, p in peer.named_parameters() if key in exempt], "weight_decay": 0.0},
    ]
    peer_optimizer = torch.optim.AdamW(peer_groups, lr=1e-4)
    peer_schedule = transformers.get_linear_schedule_with_warmup(peer_optimizer, WARMUP, STEPS)
    losses, peer_losses = [], []
    for step in range(STEPS):
        rows = slice(step * BATCH % 64, step * BATCH % 64 + BATCH)
        loss = minift.cross_entropy(model(texts[rows]), labels[rows])
        loss.backward()
        norm = minift.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())

        logits = peer_logits(peer, model.tokenizer, texts[rows])
        peer_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[rows]))
        peer_loss.backward()
        peer_norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        peer_optimizer.step()
        peer_schedule.step()
        peer_optimizer.zero_grad()
        peer_losses.append(peer_loss.item())
        assert norm == pytest.approx(float(peer_norm), rel=1e-3)
    assert max(losses) > 1.05 * min(losses), "nothing was learned, so nothing was compared"
    return np.array(losses), np.array(peer_losses)


@pytest.mark.parametrize("name", MODELS)
def test_float64_twenty_steps(name, shared_data):
    texts, labels = sentences(shared_data)
    model = minift_model(name, np.float64)
    before = {key: parameter.data.copy() for key, parameter in model.named_parameters()}
    peer = transformers_model(model)
    losses, peer_losses = train_both(model, peer, texts, labels)
    np.testing.assert_allclose(losses, peer_losses, rtol=1e-9)
    for key, parameter in peer.named_parameters():
        found = dict(model.named_parameters())[key].data
        if key.endswith("key.bias"):
            # Its gradient is rounding noise, which Adam blows up to steps of full size in an arbitrary direction.
            continue
        assert np.linalg.norm(found - before[key]) > 0
        np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_float32_twenty_steps(name, shared_data):
    texts, labels = sentences(shared_data)
    model = minift_model(name, np.float32)
    losses, peer_losses = train_both(model, transformers_model(model), texts, labels)
    np.testing.assert_allclose(losses, peer_losses, rtol=1e-4)
