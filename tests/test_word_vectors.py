"""Word vectors: the file they come from, both poolings, static and fine-tuned."""

import json

import numpy as np
import pytest
from tiny import WORDS, rows, write_tsv

import minift
from minift.cli import main
from minift.models.word_vectors import import_word2vec, read_word2vec


def write_vectors(path, width=8):
    vectors = np.random.default_rng(0).standard_normal((len(WORDS), width)).round(4)
    lines = [" ".join([word, *map(str, vector)]) for word, vector in zip(WORDS, vectors, strict=True)]
    path.write_text("\n".join([f"{len(WORDS)} {width}", *lines]) + "\n")
    return vectors


@pytest.fixture(params=["mean", "convolution"])
def directory(request, tmp_path):
    write_vectors(tmp_path / "vectors.txt")
    import_word2vec(tmp_path / "vectors.txt", tmp_path / "model", request.param)
    return tmp_path / "model"


def test_the_vectors_are_those_of_the_file(directory, tmp_path):
    words, vectors = read_word2vec(tmp_path / "vectors.txt")
    assert words == WORDS
    model = minift.load(directory, labels=["a", "b"])
    batch = model.encode("A good, unheard-of film")
    assert model.tokenizer.tokens(batch.ids) == "a good , <unk> <unk> <unk> film".split()
    found = model.vectors(batch).numpy()
    np.testing.assert_array_equal(found[1], vectors[WORDS.index("good")])
    assert not found[3].any()


def test_contractions_are_split_as_glove_has_them(tmp_path):
    (tmp_path / "v.txt").write_text("4 1\ndo 1\nn't 2\nit 3\n's 4\n")
    import_word2vec(tmp_path / "v.txt", tmp_path / "model")
    tokenizer = minift.load(tmp_path / "model", labels=["a"]).tokenizer
    assert tokenizer.tokens(tokenizer.pieces("Don't it's do n't")) == ["do", "n't", "it", "'s", "do", "n't"]


def test_cased_vectors_are_found(tmp_path):
    (tmp_path / "v.txt").write_text("3 1\nApple 1\nParis 2\nhouse 3\n")
    import_word2vec(tmp_path / "v.txt", tmp_path / "model")
    tokenizer = minift.load(tmp_path / "model", labels=["a", "b"]).tokenizer
    assert tokenizer.tokens(tokenizer.pieces("Paris house House")) == ["Paris", "house", "<unk>"]


def test_a_text_does_not_see_its_neighbours(directory):
    model = minift.load(directory, labels=["a", "b"]).eval()
    texts = ["good", "a very bad film", "the book was dull and not very good ."]
    together = model(texts).numpy()
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(model(text).numpy()[0], row, atol=1e-5)


def test_the_mean_is_the_mean(tmp_path):
    vectors = write_vectors(tmp_path / "vectors.txt")
    import_word2vec(tmp_path / "vectors.txt", tmp_path / "model")
    model = minift.load(tmp_path / "model", labels=["a", "b"]).eval()
    mean = vectors[[WORDS.index("good"), WORDS.index("film")]].mean(axis=0)
    expected = mean @ model.classifier.weight.data.T + model.classifier.bias.data
    np.testing.assert_allclose(model("good film").numpy()[0], expected, rtol=1e-5)


def test_of_a_text_without_words_the_mean_is_0(directory):
    model = minift.load(directory, labels=["a", "b"]).eval()
    texts = ["", "good film", " "]
    together = model(texts).numpy()
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(model(text).numpy()[0], row, atol=1e-6)
    loss = minift.cross_entropy(model(texts), ["a", "b", "a"])
    loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(model.vectors.vocabulary.weight.grad).all()
    if model.config.pooling == "mean":
        np.testing.assert_array_equal(together[0], model.classifier.bias.data)


@pytest.mark.parametrize("method", ["full", "head"])
def test_static_and_fine_tuned(directory, method, tmp_path, capsys):
    train, dev = (
        write_tsv(tmp_path / "train.tsv", rows(300, 0)),
        write_tsv(tmp_path / "dev.tsv", rows(100, 1)),
    )
    arguments = [
        "--model",
        str(directory),
        "--train",
        str(train),
        "--dev",
        str(dev),
        "--out",
        str(tmp_path / "out"),
    ]
    options = ["--learning-rate", "2e-2", "--epochs", "10", "--method", method]
    assert main(["finetune", *arguments, *options]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # Of random vectors, fixed, a linear layer makes less than of those that it may change.
    wanted = 0.8 if method == "full" else 0.65
    assert metrics["after"]["accuracy"] > wanted > metrics["before"]["accuracy"]
    before = minift.load(directory, labels=["a", "b"]).vectors.vocabulary.weight.data
    tuned = minift.load(tmp_path / "out")
    assert (tuned.vectors.vocabulary.weight.data == before).all() == (method == "head")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good 1 2\n", "line 1: '<words> <numbers>' was expected, found 'good 1 2'"),
        ("2 2\ngood 1 2\nbad 1\n", "line 3: 1 numbers, 2 were expected"),
        ("1 2\ngood 1 x\n", "line 2: 'good' is followed by something that is no number"),
        ("1 2\ngood 1 nan\n", "line 2: 'good' is followed by nan, expected a number (of float32)"),
        ("1 2\ngood 1e39 1\n", "line 2: 'good' is followed by 1e39, expected a number (of float32)"),
        ("3 1\ngood 1\nbad 2\n", "3 distinct words were promised, found 2 in 2 lines"),
        ("2 1\ngood 1\ngood 2\n", "2 distinct words were promised, found 1 in 2 lines"),
    ],
)
def test_broken_files(content, message, tmp_path, capsys):
    (tmp_path / "v.txt").write_text(content)
    assert main(["import-vectors", str(tmp_path / "v.txt"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_model_is_replaced_only_where_it_is_told_to(tmp_path, capsys):
    write_vectors(tmp_path / "vectors.txt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text(
        "{}"
    )  # another model, which would be loaded instead
    command = ["import-vectors", str(tmp_path / "vectors.txt"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "out already holds a model (adapter_config.json); pass --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    minift.load(tmp_path / "out", labels=["a", "b"])
