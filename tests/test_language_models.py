"""Language models: plain text in blocks, masks, pre-training from nothing, and generation with a cache and without."""

import json
import math

import numpy as np
import pytest
from minift_kernels import use_kernels
from tiny import rows, write_tsv

import minift
from minift import checkpoint, train
from minift.cli import main
from minift.generation import Sampling
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.pretrain import PretrainingConfig, learn_tokenizer, new_shape
from minift.tasks import TASKS
from minift.tasks.documents import Documents
from minift.train import TrainingConfig

TEXT = "the cat sat on the mat. a dog ate the cat's food! who let it in?\n" * 3
SIZE = dict(layers=2, heads=2, width=16, context=24, tokens="characters")


def make(family: str, tmp_path, **change):
    """A model with random weights, larger than a new model's, so that differences show."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    config = PretrainingConfig(path, tmp_path / "out", family=family, **(SIZE | change))
    minift.manual_seed(1)
    tokenizer = learn_tokenizer([TEXT], config)
    task = TASKS["fill-mask" if family == "bert" else "text-generation"]
    model = task(MODELS[family], new_shape(config, tokenizer), None, tokenizer)
    initialize(dict(model.named_parameters()), 0.3)
    return model


decoders = pytest.mark.parametrize("family", ["gpt2", "llama"])


# ---- Generation ----

PROMPTS = ["the c", "a", "who let i"]


@decoders
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_and_without_the_cache_the_same_tokens(family, temperature, tmp_path):
    model = make(family, tmp_path)
    sampling = Sampling(temperature, seed=3)
    together = model.generate(PROMPTS, 12, sampling)
    assert together == model.generate(PROMPTS, 12, sampling, use_cache=False)
    assert len(set(together)) == 3 and all(0 < len(text) <= 12 for text in together)
    if temperature == 0:
        assert together == [model.generate([prompt], 12)[0] for prompt in PROMPTS]
    else:
        assert together != model.generate(PROMPTS, 12, Sampling(temperature, seed=4))


def test_it_stops_at_the_end_of_text_and_where_positions_end(tmp_path):
    model = make("gpt2", tmp_path)
    model.lm_head.weight.data = np.zeros_like(model.lm_head.weight.data)  # all alike: token 0, the end, wins
    assert model.end_of_text == 0 and model.generate(["the"], 50) == [""]
    minift.manual_seed(1)
    initialize(dict(model.named_parameters()), 0.3)
    longest = model.config.longest_text
    ids = model.tokenizer.pieces(TEXT)[: longest - 2]
    written = minift.generation.generate(model, [ids], 50, Sampling(), stop=None)
    assert len(written[0]) == 2


def test_a_prompt_at_the_maximum_length_is_one_clear_error(tmp_path, capsys):
    model = make("gpt2", tmp_path)
    model.save(tmp_path / "model")
    assert main(["generate", str(tmp_path / "model"), "--prompt", TEXT[:24]]) == 2
    error = capsys.readouterr().err
    assert error == (
        "minift: the prompt has 24 tokens; expected 1 to 23, since the model has positions for 24 "
        "and one must be left to write\n"
    )
    assert main(["generate", str(tmp_path / "model"), "--prompt", TEXT[:23]]) == 0
    assert capsys.readouterr().out.startswith(TEXT[:23])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--prompt", "a", "--seed", "-1"], "seed is -1, expected 0 or more"),
        (["--prompt", "a", "--temperature", "nan"], "temperature is nan, expected 0 or more"),
        (["--prompt", "a", "--temperature", "inf"], "temperature is inf, expected 0 or more"),
        (["--prompt", "a", "--max-new-tokens", "-3"], "max_new_tokens is -3, expected 1 or more"),
        (["--prompt", "\udcff"], "the text '\\udcff' holds '\\udcff', which is no character"),
    ],
)
def test_options_of_generate(option, message, tmp_path, capsys):
    make("gpt2", tmp_path).save(tmp_path / "model")
    assert main(["generate", str(tmp_path / "model"), *option]) == 2
    assert capsys.readouterr().err.startswith(f"minift: {message}")


def test_what_is_drawn_from():
    logits = np.log([[0.5, 0.1, 0.3, 0.1]])
    np.testing.assert_allclose(Sampling(1.0).probabilities(logits), [[0.5, 0.1, 0.3, 0.1]])
    np.testing.assert_allclose(Sampling(1.0, top_k=2).probabilities(logits), [[0.625, 0, 0.375, 0]])
    np.testing.assert_allclose(Sampling(1.0, top_p=0.6).probabilities(logits), [[0.625, 0, 0.375, 0]])
    np.testing.assert_allclose(Sampling(1.0, top_p=0.4).probabilities(logits), [[1, 0, 0, 0]])
    squares = np.array([0.25, 0.01, 0.09, 0.01])
    np.testing.assert_allclose(Sampling(0.5).probabilities(logits)[0], squares / squares.sum())
    generator = np.random.default_rng(0)
    drawn = [int(Sampling(1.0).choose(logits, generator)[0]) for _ in range(2000)]
    np.testing.assert_allclose(np.bincount(drawn) / 2000, [0.5, 0.1, 0.3, 0.1], atol=0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(minift.InputError, match=f"{name} is {value}, expected"):
        Sampling(**wrong)


# ---- Plain text ----


def write_documents(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@decoders
def test_every_token_is_foretold_once_from_its_own_document_alone(family, tmp_path):
    model = make(family, tmp_path)
    texts = ["the cat sat on the mat. the dog ate", "a", "who let it in?"]  # 35 characters, 1 and 14
    documents = Documents(write_documents(tmp_path / "texts.jsonl", texts))
    [batch] = model.batches(documents, 8)
    end = model.end_of_text
    assert len(documents) == 4 and np.diff(batch.offsets).tolist() == [24, 11, 1, 14]
    ids = [[*model.tokenizer.pieces(text), end] for text in texts]
    assert batch.labels.tolist() == [token for document in ids for token in document[1:]]
    metrics = minift.evaluate(model, documents, batch_size=3)
    losses = []
    with minift.no_grad():
        for start, stop in batch.segments:
            one = model.pack([np.append(batch.ids[start:stop], batch.labels[stop - 1])], [0])
            losses.append(model.loss(model.eval()(one), one).item() * (stop - start))
    assert metrics["loss"] == pytest.approx(sum(losses) / batch.tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]), rel=1e-5)


def test_only_the_rows_with_labels_are_computed(tmp_path):
    model = make("gpt2", tmp_path).eval()
    documents = Documents(write_documents(tmp_path / "texts.jsonl", ["the cat", "a dog"]))
    [batch] = model.batches(documents, 2)
    whole = model(batch).numpy()
    batch.labels[::2] = -100
    np.testing.assert_allclose(model(batch).numpy(), whole[1::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rung", ["numba_cpu", "reference"])
def test_gradients_lie_in_memory_as_their_weights_do(rung, tmp_path):
    """So AdamW copies none of them, though GPT-2 keeps the transpose of what a linear layer multiplies with."""
    model = make("gpt2", tmp_path)
    [batch] = model.batches(Documents(write_documents(tmp_path / "texts.jsonl", ["the cat"])), 1)
    with use_kernels(rung):
        model.loss(model(batch), batch).backward()
    assert [name for name, each in model.named_parameters() if not each.grad.flags.c_contiguous] == []


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_a_file_without_text(content, tmp_path):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(minift.InputError, match=r"empty.txt: there is no text in it"):
        Documents(tmp_path / "empty.txt")


PAIRS = "label\tsentence1\tsentence2\n1\tthe cat sat\ta dog ate\n0\twho let it\tin?\n"


def test_of_two_columns_of_text_one_must_be_chosen(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    message = (
        "pairs.tsv: one text a row was expected, found two, 'sentence1' and 'sentence2'; choose one with"
    )
    with pytest.raises(minift.InputError, match=message):
        Documents(tmp_path / "pairs.tsv")
    assert Documents(tmp_path / "pairs.tsv", "sentence2").texts == ["a dog ate", "in?"]
    make("gpt2", tmp_path).save(tmp_path / "model")
    predict = ["predict", str(tmp_path / "model"), "--file", str(tmp_path / "pairs.tsv")]
    assert main(predict) == 2 and message in capsys.readouterr().err
    assert main([*predict, "--text-column", "sentence2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    pretrain = ["pretrain", "--train", str(tmp_path / "pairs.tsv"), "--out", str(tmp_path / "new")]
    shape = "--layers 1 --heads 2 --width 16 --context 8 --tokens characters".split()
    assert main([*pretrain, *shape]) == 2 and message in capsys.readouterr().err
    assert main([*pretrain, *shape, "--text-column", "sentence2"]) == 0


@decoders
def test_a_text_without_tokens_has_no_last_one_that_could_answer(family, tmp_path):
    """Not the last one of the text before it."""
    make(family, tmp_path).save(tmp_path / "model")
    model = minift.load(tmp_path / "model", task="text-classification", labels=["a", "b"])
    assert model.encode(["the cat", ""]).offsets[1] == model.encode(["the cat", ""]).offsets[2]
    for texts, number in (([""], "1 of 1"), (["the cat", ""], "2 of 2")):
        with pytest.raises(minift.InputError, match=f"text {number} has no tokens"):
            model.predict(texts)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_another_model_cuts_its_own_blocks(family, tmp_path):
    """One set of documents, judged by a model, then by one of another vocabulary, then with a shorter limit."""
    path = write_documents(
        tmp_path / "texts.jsonl", ["the cat sat on the mat. the dog ate", "who let it in?"]
    )
    documents = Documents(path)
    other = make(family, tmp_path)
    model = make(family, tmp_path, context=20)
    model.tokenizer = learn_tokenizer(
        [TEXT.replace("t", "")], PretrainingConfig(path, tmp_path, family=family, **SIZE)
    )
    for judge, length in ((other, 24), (model, 20), (model, 9), (other, 24)):
        judge.tokenizer.max_length = length
        assert minift.evaluate(judge, documents)["loss"] == minift.evaluate(judge, Documents(path))["loss"]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_batches_of_two_models_drawn_in_turn(family, tmp_path):
    path = write_documents(
        tmp_path / "texts.jsonl", ["the cat sat on the mat. the dog ate", "who let it in?"]
    )
    documents = Documents(path)
    models = make(family, tmp_path), make(family, tmp_path)
    models[1].tokenizer.max_length = 9
    alone = [[batch.ids.tolist() for batch in model.batches(documents, 1)] for model in models]
    together = zip(*(model.batches(documents, 1) for model in models), strict=False)
    for number, pair in enumerate(together):
        assert [batch.ids.tolist() for batch in pair] == [alone[0][number], alone[1][number]]


def test_nothing_goes_on_from_a_text_without_tokens(tmp_path):
    model = make("gpt2", tmp_path)
    first, nothing, last = map(str, model.predict(["the", "", "cat"]))
    assert nothing == ""
    assert [first, last] == list(map(str, model.predict(["the", "cat"])))


# ---- Masks ----


def test_masks_are_drawn_anew_each_epoch_and_follow_from_the_seed(tmp_path):
    model = make("bert", tmp_path)
    (tmp_path / "long.txt").write_text(TEXT * 100)
    documents = Documents(tmp_path / "long.txt")

    def epoch(seed, number, start=0):
        return list(model.batches(documents, 50, seed=seed, epoch=number, start=start))

    first = epoch(0, 0)
    for one, other in zip(first, epoch(0, 0), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(epoch(0, 0, start=2)[0].ids, first[2].ids)
    order = (
        np.argsort(minift.data.shuffled(len(documents), 0, 0)),
        np.argsort(minift.data.shuffled(len(documents), 0, 1)),
    )

    def masked_of_first_block(batches, place):
        texts = [batch.labels[start:end] for batch in batches for start, end in batch.segments]
        return (texts[place] != -100).tolist()

    assert masked_of_first_block(first, order[0][0]) != masked_of_first_block(epoch(0, 1), order[1][0])

    ids, labels = (np.concatenate([getattr(batch, name) for batch in first]) for name in ("ids", "labels"))
    asked = labels != -100
    special = np.isin(np.where(asked, labels, ids), model.special_ids)
    assert not (asked & special).any() and special.sum() == 2 * len(documents)
    assert asked.sum() / (~special).sum() == pytest.approx(0.15, abs=0.01)
    masked, kept = ids[asked] == model.mask, ids[asked] == labels[asked]
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 25, abs=0.02)  # another word may be the same by chance


def test_fillings_come_for_every_mask(tmp_path):
    model = make("bert", tmp_path)
    one, two = model.predict(["the [MASK]at", "[MASK] do[MASK]"], batch_size=2)
    assert len(one.words) == 1 and len(two.words) == 2
    [alone] = model.predict("the [MASK]at")
    assert list(one.words[0]) == list(alone.words[0])
    assert one.words[0] == pytest.approx(alone.words[0], rel=1e-6)  # MKL rounds by a product's shape
    assert list(one.words[0].values()) == sorted(one.words[0].values(), reverse=True)
    nothing, again = model.predict(["", "the [MASK]at"])
    assert nothing.words == [] and again.words == alone.words
    with pytest.raises(minift.InputError, match=r"text 2 of 2: there is no \[MASK\] in 'the cat'"):
        model.predict(["[MASK]", "the cat"])


# ---- With vectors in front of every block ----


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_blocks_leave_room_for_what_stands_in_front(family, method, tmp_path):
    model = make(family, tmp_path)
    model.save(tmp_path / "model")
    text, task = tmp_path / "text.txt", "fill-mask" if family == "bert" else "text-generation"
    config = TrainingConfig(
        model=str(tmp_path / "model"), task=task, train=text, dev=text, out=tmp_path / "out", epochs=1,
        method=method, method_options=("tokens=4",),
    )  # fmt: skip
    told = minift.finetune(config)["after"]
    found = minift.evaluate(minift.load(tmp_path / "out", task), Documents(text))
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-6)


# ---- From nothing ----


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("tokens", ["characters", "subwords"])
def test_pretraining_learns_and_leaves_a_checkpoint(family, tokens, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT * 4)
    out = tmp_path / "out"
    shape = "--layers 1 --heads 2 --width 16 --context 24 --vocab-size 300 --epochs 40 --learning-rate 1e-2".split()
    paths = ["--train", str(tmp_path / "text.txt"), "--dev", str(tmp_path / "text.txt"), "--out", str(out)]
    assert main(["pretrain", *paths, "--family", family, "--tokens", tokens, *shape]) == 0
    metrics = checkpoint.read_json(out / "metrics.json")
    assert metrics["before"]["loss"] > 2.9 and metrics["after"]["loss"] < 0.8 * metrics["before"]["loss"]
    capsys.readouterr()
    if family == "bert":
        assert main(["predict", str(out), "--text", "the cat [MASK] on"]) == 0
    else:
        assert main(["generate", str(out), "--prompt", "the c", "--max-new-tokens", "5"]) == 0
        assert capsys.readouterr().out.startswith("the c")
    train = write_tsv(tmp_path / "train.tsv", rows(8, seed=0))
    more = ["--train", str(train), "--out", str(tmp_path / "more"), "--max-length", "16", "--epochs", "1"]
    assert main(["finetune", "--model", str(out), *more]) == 0


@pytest.mark.parametrize("held", ["metrics.json", "config.json", "start/config.json"])
def test_pretraining_replaces_nothing_by_mistake(held, tmp_path, capsys):
    make("gpt2", tmp_path).save(tmp_path / "out" / "start")
    kept = (tmp_path / "out" / "start" / checkpoint.WEIGHTS).read_bytes()
    (tmp_path / "out" / held).touch()
    paths = ["--train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    shape = "--layers 1 --heads 2 --width 16 --context 24 --tokens characters".split()
    assert main(["pretrain", *paths, *shape]) == 2
    error = capsys.readouterr().err
    assert "already holds a " in error and "pass --overwrite" in error and "--resume" not in error
    assert (tmp_path / "out" / "start" / checkpoint.WEIGHTS).read_bytes() == kept
    assert main(["pretrain", *paths, *shape, "--overwrite"]) == 0


def test_pretraining_that_failed_is_repeated(tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT)
    paths = ["--train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    shape = "--layers 1 --heads 2 --width 16 --context 24 --tokens characters".split()
    assert main(["pretrain", *paths, *shape, "--epochs", "0"]) == 2
    assert not (tmp_path / "out").exists()
    assert main(["pretrain", *paths, *shape, "--dev", str(tmp_path / "none.txt")]) == 2
    assert not (tmp_path / "out").exists()

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.AdamW, "step", stop)
        assert main(["pretrain", *paths, *shape]) == 130
    assert (tmp_path / "out" / "start" / "config.json").exists()
    assert main(["pretrain", *paths, *shape]) == 0, capsys.readouterr().err


def test_shapes_that_cannot_be(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    paths = ["--train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main(["pretrain", *paths, "--width", "10"]) == 2
    assert capsys.readouterr().err == "minift: width 10 is no multiple of heads 4\n"
    assert main(["pretrain", *paths, "--family", "llama", "--width", "12"]) == 2
    assert "head_dim is 3, and pairs of numbers are turned" in capsys.readouterr().err
    assert main(["pretrain", *paths, "--dropout", "nan"]) == 2
    assert capsys.readouterr().err == "minift: dropout is nan, expected a probability from 0 to 1\n"
    assert not (tmp_path / "out").exists()
