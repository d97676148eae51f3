"""Greedy generation writes the same tokens as transformers' generate, and plain text has the same loss."""

import numpy as np
import pytest

import minift
from minift.generation import Sampling, generate
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.pretrain import PretrainingConfig, learn_tokenizer, new_shape
from minift.tasks import TASKS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

TEXT = "the cat sat on the mat. a dog ate the cat's food! who let it in?\n"


@pytest.fixture(params=["gpt2", "llama"])
def both(request, tmp_path):
    """A model of 2 layers with random weights, and the same in transformers, which loads what minift saved."""
    config = PretrainingConfig(
        tmp_path / "text.txt",
        tmp_path,
        family=request.param,
        layers=2,
        heads=4,
        width=32,
        context=64,
        tokens="characters",
    )
    minift.manual_seed(1)
    tokenizer = learn_tokenizer([TEXT], config)
    model = TASKS["text-generation"](MODELS[request.param], new_shape(config, tokenizer), None, tokenizer)
    initialize(dict(model.named_parameters()), 0.3)
    model.save(tmp_path / "model")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    return model, peer, transformers.AutoTokenizer.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_generate(both, use_cache):
    model, peer, _ = both
    random = np.random.default_rng(0)
    prompts = [random.integers(2, model.config.vocab_size, length).tolist() for length in (1, 5, 17, 30)]
    found = generate(model, prompts, 30, Sampling(), stop=model.end_of_text, use_cache=use_cache)
    for prompt, written in zip(prompts, found, strict=True):
        expected = peer.generate(
            torch.tensor([prompt]),
            max_new_tokens=30,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=model.end_of_text,
        )
        assert written == expected[0, len(prompt) :].tolist()
    assert len({tuple(written) for written in found}) == len(found)


def test_the_same_tokens_text_and_loss(both):
    model, peer, tokenizer = both
    ids = tokenizer(TEXT[:40])["input_ids"]
    assert ids == model.tokenizer.pieces(TEXT[:40])
    assert tokenizer.decode(ids) == model.tokenizer.decode(ids) == TEXT[:40]
    batch = model.pack([np.array(ids)], [0])
    loss = peer(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert model.loss(model.eval()(batch), batch).item() == pytest.approx(loss, rel=1e-5)


def test_sampling_cuts_as_transformers_does():
    logits = np.random.default_rng(0).standard_normal((4, 50)) * 3
    warped = torch.tensor(logits)
    for warper in (
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(20),
        transformers.TopPLogitsWarper(0.8),
    ):
        warped = warper(None, warped)
    found = Sampling(0.7, top_k=20, top_p=0.8).probabilities(logits)
    np.testing.assert_allclose(found, torch.softmax(warped, dim=1).numpy(), rtol=1e-9)
