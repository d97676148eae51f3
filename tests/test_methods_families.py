"""Every method on every family: it trains and is saved and read again, or one line says which families it takes."""

import numpy as np
import pytest
from test_methods import LABELS, OPTIONS, TEXTS, train, values
from tiny import WORDS, write_tokenizer

import minift
from minift.generation import Sampling, generate
from minift.methods import METHODS
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.tasks import TASKS

WORDS_AND_MARKS = 5 + len(WORDS)
ENCODER = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
DECODER = {**ENCODER, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
SIZES = {
    "roberta": {**ENCODER, "max_position_embeddings": 34},
    "distilbert": dict(dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=32),
    "gpt2": dict(n_embd=24, n_layer=2, n_head=3, n_positions=32),
    "llama": DECODER,
    "qwen2": DECODER,
    "word-vectors": dict(hidden_size=24),
}
DECODERS = ("gpt2", "llama", "qwen2")
REFUSED = {
    **{
        (family, name): f"method {name}: it is there for bert, roberta, not for {family}"
        for family in SIZES
        if family != "roberta"
        for name in ("houlsby", "pfeiffer")
    },
    **{
        ("word-vectors", name): (
            f"method {name}: it is there for bert, roberta, distilbert, gpt2, llama, qwen2, not for word-vectors"
        )
        for name in ("lora", "ia3", "prompt", "prefix")
    },
    ("llama", "bitfit"): "method bitfit: llama has no biases to train",
    ("word-vectors", "bitfit"): "method bitfit: word-vectors has no biases to train",
    ("word-vectors", "frozen"): "cannot freeze 1 layers: the model has 0",
}


def make(family: str, directory, task: str = "text-classification"):
    """A model with random weights, larger than a new model's, so that differences show; saved, and loaded again."""
    minift.manual_seed(3)
    architecture = MODELS[family]
    config = architecture.config(vocab_size=WORDS_AND_MARKS, **SIZES[family])
    labels = ("negative", "positive") if TASKS[task].has_labels else None
    model = TASKS[task](architecture, config, labels, write_tokenizer(directory / "vocabulary"))
    initialize(dict(model.named_parameters()), 0.3)
    model.save(directory / "base")
    return minift.load(directory / "base")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", SIZES)
def test_it_trains_and_is_read_again_or_is_refused(family, name, tmp_path, compiled):
    model = make(family, tmp_path)
    if (family, name) in REFUSED:
        with pytest.raises(minift.InputError) as refused:
            minift.apply_method(model, name, **OPTIONS.get(name, {}))
        assert str(refused.value) == REFUSED[family, name]
        return
    method = minift.apply_method(model, name, **OPTIONS.get(name, {}))
    before = values(model)
    train(model, method)
    moved = {path for path, each in values(model).items() if (each != before[path]).any()}
    trained = {path for path, each in model.named_parameters() if each.requires_grad}
    assert moved and moved <= trained
    assert name in ("full", "frozen", "head", "ulmfit", "bitfit") or moved & set(method.inserted(model))
    model.save(tmp_path / "part")
    loaded = minift.load(tmp_path / "part").eval()
    expected = model.eval()(list(TEXTS)).data
    np.testing.assert_array_equal(loaded(list(TEXTS)).data, expected)
    assert len(LABELS) == len(expected)
    if name in ("lora", "ia3"):
        method.unload(model)
        np.testing.assert_allclose(
            model(list(TEXTS)).data, expected, atol=1e-5 * max(1, np.abs(expected).max())
        )
        model.save(tmp_path / "whole")
        assert minift.load(tmp_path / "whole").method is None


PROMPTS = [[7], [9, 12, 8, 15, 11], [20, 6, 6, 17, 13, 10, 9, 8, 7, 25]]


@pytest.mark.parametrize("name", ["lora", "ia3", "prompt", "prefix"])
@pytest.mark.parametrize("family", DECODERS)
def test_generation_with_and_without_the_cache(family, name, tmp_path, compiled):
    model = make(family, tmp_path, "text-generation")
    plain = generate(model, PROMPTS, 12, Sampling())
    method = minift.apply_method(model, name, **OPTIONS.get(name, {}))
    random = np.random.default_rng(2)
    for parameter in method.inserted(model).values():
        parameter.data = parameter.data + 2 * random.standard_normal(parameter.shape, dtype=np.float32)
    together = generate(model, PROMPTS, 12, Sampling())
    assert together == generate(model, PROMPTS, 12, Sampling(), use_cache=False)
    assert together == [generate(model, [prompt], 12, Sampling())[0] for prompt in PROMPTS]
    assert together != plain, "the method changes nothing"


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_positions_end_earlier_behind_what_stands_in_front(name, tmp_path, compiled):
    model = make("gpt2", tmp_path, "text-generation")
    minift.apply_method(model, name, tokens=4)
    for use_cache in (True, False):
        [written] = generate(model, [[7] * 26], 50, Sampling(), use_cache=use_cache)
        assert len(written) == 32 - 4 - 26
    with pytest.raises(
        minift.InputError,
        match="the prompt has 28 tokens; expected 1 to 27, since the model has positions for 28 beside the 4 of its",
    ):
        generate(model, [[7] * 28], 1, Sampling())
