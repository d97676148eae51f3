"""The methods: what each trains moves, what it freezes stays to the bit, and what it saves is all that is needed."""

import json
import shutil

import numpy as np
import pytest
from tiny import make_model, rows

import minift
from minift import checkpoint, training_state
from minift.methods import METHODS, make_method, parse_options
from minift.methods.method import head_parameters
from minift.train import TrainingConfig, finetune

OPTIONS = {
    "frozen": {"layers": 1},
    "houlsby": {"reduction": 4},
    "pfeiffer": {"reduction": 4},
    "prompt": {"tokens": 3},
    "prefix": {"tokens": 3},
    "lora": {"rank": 2},
}
TRAINED = {
    "full": lambda name: True,
    "frozen": lambda name: not name.startswith(("bert.embeddings", "bert.encoder.layer.0")),
    "head": lambda name: name.startswith(("classifier", "bert.pooler")),
    "ulmfit": lambda name: True,
    "bitfit": lambda name: name.startswith("classifier") or name.endswith("bias"),
    "lora": lambda name: name.startswith("classifier") or "lora_" in name,
    "ia3": lambda name: name.startswith("classifier") or "ia3_l" in name,
    "houlsby": lambda name: name.startswith("classifier") or ".adapters." in name,
    "pfeiffer": lambda name: name.startswith("classifier") or ".adapters." in name,
    "prompt": lambda name: name.startswith("classifier") or "prompt_embeddings" in name,
    "prefix": lambda name: name.startswith("classifier") or "prompt_embeddings" in name,
}
"""Which parameters a method trains in the end."""
NEVER_MOVES = "attention.self.key.bias"
"""The softmax over keys does not see what is the same for all of them, so its gradient is rounding."""

TEXTS, LABELS = zip(*rows(8, seed=4), strict=True)


@pytest.fixture
def model(tiny):
    minift.manual_seed(0)
    return minift.load(tiny / "model")


def train(model, method, steps=3, learning_rate=1e-2):
    """A few steps on one batch, as the loop takes them; each step is an epoch. Returns the optimizer."""
    optimizer = minift.AdamW(method.parameter_groups(model, learning_rate, 0.01))
    for epoch in range(steps):
        method.start_epoch(model, epoch)
        minift.cross_entropy(model(list(TEXTS)), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def values(model) -> dict[str, np.ndarray]:
    return {name: each.data.copy() for name, each in model.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_what_it_trains_moves_and_the_rest_does_not(model, name):
    method = minift.apply_method(model, name, **OPTIONS.get(name, {}))
    before = values(model)
    optimizer = train(model, method, steps=5)
    for path, parameter in model.named_parameters():
        if TRAINED[name](path):
            assert (parameter.data != before[path]).any() or NEVER_MOVES in path, f"{path} did not move"
            assert parameter in optimizer.state
        else:
            np.testing.assert_array_equal(parameter.data, before[path], err_msg=path)
            assert parameter not in optimizer.state and parameter.grad is None, path


@pytest.mark.parametrize("name", METHODS)
def test_what_it_saves_is_the_trained_model(model, tmp_path, name):
    method = minift.apply_method(model, name, **OPTIONS.get(name, {}))
    train(model, method)
    model.save(tmp_path / "part")
    loaded = minift.load(tmp_path / "part")
    assert loaded.training and loaded.labels == model.labels
    np.testing.assert_array_equal(loaded.eval()(list(TEXTS)).data, model.eval()(list(TEXTS)).data)
    if name in ("full", "frozen", "ulmfit"):
        assert loaded.method is None
    else:
        assert loaded.method == method or name in ("lora", "ia3", "prompt", "prefix")
        trained = {path for path, each in loaded.named_parameters() if each.requires_grad}
        assert trained == {path for path, _ in loaded.named_parameters() if TRAINED[name](path)}
        loaded.save(tmp_path / "again")
        for file in tmp_path.glob("part/*.safetensors"):
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
            assert file.stat().st_size < 50_000


@pytest.mark.parametrize("earlier", ["full", "bitfit", "lora", "houlsby"])
@pytest.mark.parametrize("later", ["full", "bitfit", "lora", "houlsby"])
def test_what_is_saved_over_another_format_is_what_is_loaded(tiny, tmp_path, earlier, later):
    for name in (earlier, later):
        model = minift.load(tiny / "model")
        train(model, minift.apply_method(model, name, **OPTIONS.get(name, {})))
        model.save(tmp_path / "out")
    model.save(tmp_path / "alone")
    loaded = minift.load(tmp_path / "out").eval()
    np.testing.assert_array_equal(loaded(list(TEXTS)).data, model.eval()(list(TEXTS)).data)
    assert names(tmp_path / "out") == names(tmp_path / "alone")


def test_shards_do_not_outlive_the_model_that_replaces_them(model, tmp_path):
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    model.save(tmp_path)
    assert names(tmp_path) == {
        "config.json", "model.safetensors", "notes.txt", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("name", ["bitfit", "lora", "houlsby"])
def test_a_part_does_not_take_the_place_of_its_base_model(tiny, tmp_path, name):
    base = shutil.copytree(tiny / "model", tmp_path / "base")
    model = minift.load(base)
    minift.apply_method(model, name, **OPTIONS.get(name, {}))
    with pytest.raises(minift.InputError, match="not written: this is the base model's own directory"):
        model.save(tmp_path / "other" / ".." / "base")
    assert names(base) == names(tiny / "model")


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, tmp_path, name, monkeypatch):
    options = tuple(f"{option}={value}" for option, value in OPTIONS.get(name, {}).items())
    whole = {
        "model": str(tiny / "model"), "train": tiny / "train.tsv", "epochs": 3, "batch_size": 20,
        "learning_rate": 3e-3, "save_every": 1, "method": name, "method_options": options,
    }  # fmt: skip
    finetune(TrainingConfig(out=tmp_path / "whole", **whole))
    saves = iter(range(1, 100))
    real = training_state.save

    def interrupted(*arguments):
        real(*arguments)
        if next(saves) == 5:  # in the middle of the second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(TrainingConfig(out=tmp_path / "parts", **whole))
    finetune(TrainingConfig(out=tmp_path / "parts", resume=True, **whole))
    for file in tmp_path.glob("whole/*.safetensors"):
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes()


# ---- Choosing one ----


def test_options_are_read_as_their_types():
    method = make_method("lora", parse_options(["rank=4", "alpha=2.5", "targets=query,key", "rslora=true"]))
    assert method == METHODS["lora"](rank=4, alpha=2.5, targets=("query", "key"), rslora=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lore", [], "there is no method 'lore'; the methods are full, frozen, head, ulmfit, bitfit, lora"),
        ("lora", ["rnk=4"], "method lora has no option 'rnk'; its options are rank, alpha, dropout, targets"),
        ("full", ["rank=4"], "method full has no option 'rank'; it has no options"),
        ("frozen", [], "method frozen needs layers, such as layers=2"),
        ("frozen", ["layers=two"], "method frozen: layers is 'two', expected int"),
        ("frozen", ["layers=3"], "cannot freeze 3 layers: the model has 2"),
        ("frozen", ["layers"], "method option 'layers': expected option=value"),
        ("ulmfit", ["gradual=perhaps"], "method ulmfit: gradual is 'perhaps', expected true or false"),
        ("ulmfit", ["ratio=0"], "method ulmfit: ratio is 0.0, expected more than 0"),
        ("lora", ["rank=0"], "method lora: rank is 0, expected 1 or more"),
        (
            "lora",
            ["targets=q_proj"],
            "method lora: target 'q_proj' matches no linear layer; there are attention.output.dense, "
            "attention.self.key, attention.self.query, attention.self.value, intermediate.dense, output.dense",
        ),
        ("lora", ["targets=[query"], r"method lora: target '\[query' is no regular expression"),
        ("prompt", ["tokens=0"], "method prompt: tokens is 0, expected 1 or more"),
        ("prefix", ["tokens=30"], "method prefix: 30 tokens leave 2 of 32 for a text"),
    ],
)
def test_methods_and_options_that_do_not_exist(model, name, options, message):
    with pytest.raises(minift.InputError, match=message) as caught:
        minift.apply_method(model, name, **parse_options(options))
    assert "\n" not in str(caught.value)


def test_a_model_has_one_method(model):
    minift.apply_method(model, "bitfit")
    with pytest.raises(minift.InputError, match="already has the method bitfit"):
        minift.apply_method(model, "lora")


# ---- The head ----


def test_a_part_without_its_head_is_not_written(model, tmp_path, monkeypatch):
    minift.apply_method(model, "lora")
    monkeypatch.setattr("minift.methods.peft.head_parameters", lambda model: {})
    with pytest.raises(minift.InputError, match=r"not written: classifier.weight, classifier.bias would be"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_trained_besides_is_not_lost_in_silence(model, tmp_path):
    minift.apply_method(model, "lora")
    model.bert.pooler.requires_grad_(True)
    with pytest.raises(minift.InputError, match=r"not written: bert.pooler.dense.weight, .* would be lost"):
        model.save(tmp_path)


@pytest.mark.parametrize("name", ["lora", "bitfit", "prompt"])
def test_a_part_without_its_head_is_not_loaded(model, tmp_path, name):
    minift.apply_method(model, name)
    model.save(tmp_path)
    [path] = tmp_path.glob("*.safetensors")
    tensors = checkpoint.read_safetensors(path)
    checkpoint.write_tensors(path, {k: np.array(v) for k, v in tensors.items() if "classifier" not in k})
    with pytest.raises(
        minift.InputError, match=r"classifier.weight, .*missing; was it saved without its head"
    ):
        minift.load(tmp_path)


def test_what_the_base_model_lacked_is_trained_and_saved_with_the_head(tiny, tmp_path):
    minift.load(tiny / "model").save(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = checkpoint.read_safetensors(path)
    checkpoint.write_tensors(path, {k: np.array(v) for k, v in tensors.items() if "pooler" not in k})
    model = minift.load(tmp_path / "base")
    minift.apply_method(model, "lora")
    assert (
        "bert.pooler.dense.weight" in head_parameters(model) and model.bert.pooler.dense.weight.requires_grad
    )
    model.save(tmp_path / "part")
    minift.manual_seed(99)
    loaded = minift.load(tmp_path / "part").eval()
    np.testing.assert_array_equal(loaded(list(TEXTS)).data, model.eval()(list(TEXTS)).data)
    config = json.loads((tmp_path / "part" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]


# ---- Another base model ----


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_parts_for_another_base_model(model, tiny, tmp_path):
    minift.apply_method(model, "lora", rank=2)
    model.save(tmp_path / "part")
    config = tmp_path / "part" / "adapter_config.json"

    wider = make_model(tmp_path / "words", minift.BertConfig(**{**vars(model.config), "hidden_size": 36}))
    wider.save(tmp_path / "wider")
    edit(config, base_model_name_or_path=str(tmp_path / "wider"))
    with pytest.raises(
        minift.InputError, match=r"lora_A.weight' has shape \(2, 24\), the model expects \(2, 36\)"
    ):
        minift.load(tmp_path / "part")

    lower = make_model(
        tmp_path / "words", minift.BertConfig(**{**vars(model.config), "num_hidden_layers": 1})
    )
    lower.save(tmp_path / "lower")
    edit(config, base_model_name_or_path=str(tmp_path / "lower"))
    with pytest.raises(minift.InputError, match=r"target '.*layer.1.attention.self.query' matches no linear"):
        minift.load(tmp_path / "part")

    edit(config, base_model_name_or_path="no such model")
    with pytest.raises(
        minift.InputError, match="part: its base model: no such model: there is no such directory"
    ):
        minift.load(tmp_path / "part")
    edit(config, base_model_name_or_path=None)
    with pytest.raises(minift.InputError, match="base_model_name_or_path missing"):
        minift.load(tmp_path / "part")


def test_a_part_keeps_the_order_of_its_labels(model, tmp_path):
    minift.apply_method(model, "lora")
    model.save(tmp_path / "part")
    with pytest.raises(minift.InputError, match="its head was trained for negative, positive, in this order"):
        minift.load(tmp_path / "part", labels=["positive", "negative"])


def test_a_config_that_says_nothing_is_named(model, tmp_path):
    minift.apply_method(model, "lora")
    model.save(tmp_path / "part")
    (tmp_path / "part" / "config.json").write_text("{}")
    with pytest.raises(minift.InputError) as caught:
        minift.load(tmp_path / "part")
    assert str(caught.value).startswith(f"{tmp_path / 'part' / 'config.json'}: model_type is None, expected")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"peft_type": "LOHA"},
            "peft_type is 'LOHA', expected one of LORA, IA3, PREFIX_TUNING, PROMPT_TUNING",
        ),
        ({"use_dora": True}, "use_dora is True, which minift does not have"),
        ({"r": "many"}, "cannot be understood"),
    ],
)
def test_parts_that_minift_cannot_have(model, tmp_path, changes, message):
    minift.apply_method(model, "lora")
    model.save(tmp_path)
    edit(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(minift.InputError, match=message):
        minift.load(tmp_path)


def test_a_part_with_a_tokenizer_of_its_own_is_held_to_its_base_model(model, tmp_path):
    minift.apply_method(model, "lora")
    model.save(tmp_path)
    edit(tmp_path / "tokenizer_config.json", model_max_length=10**30)  # transformers' word for no maximum
    longest = model.config.longest_text
    assert minift.load(tmp_path).encode("good " * 2 * longest).tokens == longest

    words = json.loads((tmp_path / "tokenizer.json").read_text())
    words["model"]["vocab"]["excellent"] = model.config.vocab_size
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(minift.InputError, match=r"makes ids up to 26, the model knows those up to 25"):
        minift.load(tmp_path)


# ---- Making a plain model of it ----


def test_merge_writes_a_plain_model(model, tmp_path, run):
    train(model, minift.apply_method(model, "lora", rank=2))
    model.save(tmp_path / "part")
    assert run("merge", tmp_path / "part", "--out", tmp_path / "whole")[0] == 0
    whole = minift.load(tmp_path / "whole").eval()
    assert whole.method is None
    np.testing.assert_allclose(whole(list(TEXTS)).data, model.eval()(list(TEXTS)).data, atol=1e-5)
    status, _, error = run("merge", tmp_path / "whole", "--out", tmp_path / "again")
    assert status == 2 and "this is a plain model: there is nothing to merge" in error


def test_merge_replaces_a_model_only_where_it_is_told_to(tiny, tmp_path, run):
    base = shutil.copytree(tiny / "model", tmp_path / "base")
    model = minift.load(base)
    train(model, minift.apply_method(model, "lora", rank=2))
    part = tmp_path / "part"
    model.save(part)
    status, _, error = run("merge", part, "--out", part)
    assert (
        status == 2 and "part already holds a model (adapter_config.json, adapter_model.safetensors" in error
    )
    status, _, error = run("merge", part, "--out", base, "--overwrite")
    assert status == 2 and "base: not written: this is the base model's own directory" in error
    np.testing.assert_array_equal(minift.load(part).eval()(list(TEXTS)).data, model.eval()(list(TEXTS)).data)
    assert run("merge", part, "--out", part, "--overwrite")[0] == 0
    assert minift.load(part).method is None
