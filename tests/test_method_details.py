"""What each method's paper says of it: LoRA's first step and its merging, ULMFiT's rates, prompts of words."""

import numpy as np
import pytest
from minift_kernels import matmul as matmul_kernels
from test_methods import LABELS, TEXTS, train, values

import minift
from minift.data import pack
from minift.methods.prompt import lengthened


@pytest.fixture
def model(tiny):
    minift.manual_seed(0)
    return minift.load(tiny / "model").eval()


def logits(model) -> np.ndarray:
    return model(list(TEXTS)).data


def loss_of(model):
    return minift.cross_entropy(model(list(TEXTS)), LABELS)


# ---- LoRA ----


def test_lora_begins_at_the_pre_trained_model(model):
    before = logits(model)
    minift.apply_method(model, "lora", rank=3)
    np.testing.assert_array_equal(logits(model), before)
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            assert parameter.data.any() and parameter.grad is not None and not parameter.grad.any(), name
        elif "lora_B" in name:
            assert not parameter.data.any() and parameter.grad.any(), name


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_the_formula(model, rslora):
    """Against W + s B A put into the plain model by hand."""
    method = minift.apply_method(model, "lora", rank=4, alpha=6.0, rslora=rslora, targets=("key", "dense"))
    train(model, method)
    minift.manual_seed(0)
    now = values(model)
    scale = 6.0 / (2.0 if rslora else 4.0)
    changed = [name.removesuffix(".lora_A.weight") for name in now if name.endswith("lora_A.weight")]
    assert len(changed) == 2 * 4
    expected = logits(model)
    method.unload(model)
    assert model.method is None
    for name, parameter in model.named_parameters():
        parameter.data = now[name]
        if (path := name.removesuffix(".weight")) in changed:
            delta = now[f"{path}.lora_B.weight"] @ now[f"{path}.lora_A.weight"]
            parameter.data = now[name] + np.float32(scale) * delta
    assert np.abs(logits(model) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_lora_merged_is_lora_unmerged(model, tmp_path):
    method = minift.apply_method(model, "lora", rank=3)
    train(model, method)
    model.eval()
    before, unmerged = values(model), logits(model)
    method.merge(model)
    assert np.abs(logits(model) - unmerged).max() <= 1e-5 * max(1, np.abs(unmerged).max())
    assert (model.bert.encoder.layer[0].attention.self.query.weight.data != before[QUERY]).any()
    with pytest.raises(minift.InputError, match="are merged; unmerge them before saving"):
        model.save(tmp_path)
    method.merge(model)  # once is enough
    method.unmerge(model)
    assert np.abs(logits(model) - unmerged).max() <= 1e-5 * max(1, np.abs(unmerged).max())
    np.testing.assert_allclose(values(model)[QUERY], before[QUERY], atol=1e-6)


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def test_lora_runs_no_product_for_a_frozen_weight(model, monkeypatch):
    """Under a frozen W only dx is computed: one product each, and none where x needs no gradient either."""
    minift.apply_method(model, "lora", rank=3)
    loss = loss_of(model)
    products = []
    real = matmul_kernels.linear_backward

    def counting(dy, x, weight, *rest):
        products.append([name for name, factor in (("dW", x), ("dx", weight)) if factor is not None])
        return real(dy, x, weight, *rest)

    monkeypatch.setattr(matmul_kernels, "linear_backward", counting)
    ran = {}
    for step in loss.backward_steps():
        if step.node.operation == "linear":
            ran[step.node.module] = products.pop()
    assert not products
    for module, [*computed] in ran.items():
        if module == "classifier" or module.endswith("lora_B"):
            assert computed == ["dW", "dx"], module
        elif module.endswith("lora_A"):
            assert computed == (["dW"] if ".layer.0." in module else ["dW", "dx"]), module
        else:
            assert computed == ["dx"], module
    assert sum(module.endswith(("lora_A", "lora_B")) for module in ran) == 8
    # Below the first layer nothing is trained: its W needs no dx and no dW, so it has no node at all.
    assert "bert.encoder.layer.0.attention.self.query" not in ran
    assert "bert.encoder.layer.1.attention.self.query" in ran


def test_lora_drops_only_in_training(model):
    minift.apply_method(model, "lora", rank=3, dropout=0.5, targets=("query",))
    layer = model.bert.encoder.layer[0].attention.self.query
    layer.lora_B.weight.data += 1
    x = minift.Tensor(np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32))
    np.testing.assert_array_equal(layer(x).data, layer(x).data)
    layer.train()
    assert (layer(x).data != layer(x).data).any()


# ---- IA3 ----


def test_ia3_begins_at_the_pre_trained_model_and_can_be_folded_into_it(model, tmp_path):
    before = logits(model)
    method = minift.apply_method(model, "ia3")
    np.testing.assert_array_equal(logits(model), before)
    vectors = {name: each.shape for name, each in model.named_parameters() if "ia3_l" in name}
    assert set(vectors.values()) == {(24, 1), (1, 40)} and len(vectors) == 2 * 3
    assert not any("attention.output" in name for name in vectors)
    train(model, method)
    trained = logits(model.eval())
    method.unload(model)
    assert np.abs(logits(model) - trained).max() <= 1e-5 * max(1, np.abs(trained).max())
    model.save(tmp_path)
    assert minift.load(tmp_path).method is None


# ---- ULMFiT ----


def test_ulmfit_unfreezes_one_layer_an_epoch(model):
    method = minift.apply_method(model, "ulmfit")
    expected = [
        ("bert.pooler", "classifier"),
        ("bert.pooler", "classifier", "bert.encoder.layer.1"),
        ("bert.pooler", "classifier", "bert.encoder"),
        ("bert", "classifier"),
        ("bert", "classifier"),
    ]
    for epoch, trained in enumerate(expected):
        method.start_epoch(model, epoch)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == name.startswith(trained), (epoch, name)


def test_ulmfit_rates_fall_by_the_ratio_from_layer_to_layer(model):
    method = minift.apply_method(model, "ulmfit", ratio=2.0, gradual=False)
    groups = method.parameter_groups(model, 0.8, 0.01)
    rate_of = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert groups[0]["lr"] == 0.8 and len(rate_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        depth = next(
            depth
            for depth, part in enumerate(("layer.1", "layer.0", "embeddings"), start=1)
            if part in name or part == "embeddings"
        )
        depth = 0 if name.startswith(("bert.pooler", "classifier")) else depth
        assert rate_of[parameter] == pytest.approx(0.8 / 2**depth), name
    method.start_epoch(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---- Prompts ----


def test_a_prompt_begins_as_words_over_and_over(model):
    minift.apply_method(model, "prompt", tokens=5, text="good film")
    words = model.bert.embeddings.word_embeddings.weight.data
    ids = model.tokenizer.backend.encode("good film", add_special_tokens=False).ids
    np.testing.assert_array_equal(model.bert.soft_prompt.prompt_embeddings.data, words[[*ids, *ids, ids[0]]])
    assert model.tokenizer.max_length == 32 - 5


def test_a_prompt_of_words_is_these_words_in_front_of_the_text(model):
    """Until it is trained: the same ids before [CLS], on the plain model."""
    encodings = model.tokenizer.encode(["a dull meal", "great"])
    ids = model.tokenizer.backend.encode("good film", add_special_tokens=False).ids
    written = [type(each)([*ids, *each.ids], [0, 0, *each.token_types], False) for each in encodings]
    expected = model(pack(written)).data
    minift.apply_method(model, "prompt", tokens=2, text="good film")
    np.testing.assert_allclose(model(pack(encodings)).data, expected, atol=1e-6)


def test_a_lengthened_batch():
    batch = minift.Batch(
        ids=np.array([5, 6, 7, 8, 9]),
        token_types=np.array([0, 1, 0, 0, 1]),
        positions=np.array([0, 1, 0, 1, 2]),
        offsets=np.array([0, 2, 5]),
        labels=np.array([1, 2, 3, 4, 5]),
    )
    longer = lengthened(batch, 2)
    assert longer.ids.tolist() == [0, 0, 5, 6, 0, 0, 7, 8, 9]
    assert longer.token_types.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert longer.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert longer.offsets.tolist() == [0, 4, 9]
    assert longer.labels.tolist() == [-100, -100, 1, 2, -100, -100, 3, 4, 5]


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_what_stands_in_front_of_texts_cannot_be_merged(model, name):
    method = minift.apply_method(model, name, tokens=2)
    with pytest.raises(minift.InputError, match="cannot be merged"):
        method.unload(model)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_every_text_has_its_own_copy_of_what_stands_in_front(model, name):
    minift.apply_method(model, name, tokens=4)
    alone = np.concatenate([model(text).data for text in TEXTS])
    np.testing.assert_allclose(logits(model), alone, atol=1e-6)
