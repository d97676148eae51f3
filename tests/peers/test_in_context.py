"""In-context scores are transformers' log-likelihoods of the same labels behind the same prompt."""

import numpy as np
import pytest

import minift
from minift.in_context import log_likelihoods, prompt_of, score
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.pretrain import PretrainingConfig, learn_tokenizer, new_shape
from minift.tasks import TASKS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

EXAMPLES = [("good film", "positive"), ("a bore", "negative")]
LABELS = ["negative", "positive", "neither"]
TEXTS = ["fine", "a dull meal", ""]


@pytest.fixture
def both(tmp_path):
    """A GPT-2 of 2 layers with random weights, and the same in transformers."""
    config = PretrainingConfig(
        tmp_path / "text.txt", tmp_path, family="gpt2", layers=2, heads=4, width=32, context=120,
        tokens="characters",
    )  # fmt: skip
    minift.manual_seed(1)
    tokenizer = learn_tokenizer([prompt_of(EXAMPLES, " ".join([*TEXTS, *LABELS]))], config)
    model = TASKS["text-generation"](MODELS["gpt2"], new_shape(config, tokenizer), None, tokenizer)
    initialize(dict(model.named_parameters()), 0.3)
    model.save(tmp_path / "model")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    return model, peer, transformers.AutoTokenizer.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("examples", [[], EXAMPLES[:1], EXAMPLES], ids=["zero", "one", "two"])
def test_scores_are_transformers_log_likelihoods(both, examples):
    model, peer, tokenizer = both
    scores = score(model, examples, TEXTS, LABELS)
    assert scores.shape == (3, 3) and np.ptp(scores) > 1 and (scores < 0).all()
    for text, row in zip(TEXTS, scores, strict=True):
        prompt = tokenizer(prompt_of(examples, text))["input_ids"]
        for label, found in zip(LABELS, row, strict=True):
            ids = prompt + tokenizer(f" {label}")["input_ids"]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            with torch.no_grad():
                loss = peer(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
            expected = -loss * (len(ids) - len(prompt))
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_prompt_that_is_too_long(both):
    with pytest.raises(
        minift.InputError, match="takes 131 tokens; the model has positions for 120: show fewer"
    ):
        log_likelihoods(both[0], [1] * 130, [[2]])
