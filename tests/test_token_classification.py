"""Token classification: CoNLL files, which piece carries a word's tag, spans in the original text, and bad files."""

import json

import numpy as np
import pytest
from command import finetune_options, the_one_line
from small_vocabulary import write_vocabulary
from tiny import BAD, GOOD, make_model, rows

import minift
from minift.tasks.conll import TaggedSentences
from minift.tasks.token_classification import TokenClassification, spans_of_words
from minift.tokenizer import Tokenizer

LABELS = ("O", "B-BAD", "I-BAD", "B-GOOD", "I-GOOD")


def write(path, *lines: str):
    path.write_text("\n".join(lines) + "\n")
    return path


def tagged(count: int, seed: int) -> list[str]:
    """Sentences in which telling words are tagged, and what stands behind them continues the span if it is a noun."""
    lines = []
    for text, _ in rows(count, seed):
        before = "O"
        for word in text.split():
            kind = "GOOD" if word in GOOD else "BAD" if word in BAD else None
            if kind:
                before = f"B-{kind}"
            elif before != "O" and word in ("film", "book", "meal"):
                before = f"I-{before[2:]}"
            else:
                before = "O"
            lines.append(f"{word}\t{before}")
        lines.append("")
    return lines


# ---- Files ----


@pytest.mark.parametrize("separator", ["\t", " ", "  "])
def test_columns(tmp_path, separator):
    rows = ["-DOCSTART- -X- O", "", "a DT B-X", "b NN I-X", "", "", "c NN O"]
    path = write(tmp_path / "a.conll", *(row.replace(" ", separator) for row in rows))
    sentences = TaggedSentences(path)
    assert len(sentences) == 2 and sentences[0] == (("a", "b"), ["B-X", "I-X"])
    assert sentences[1] == (("c",), ["O"]) and sentences.first_lines == [3, 7]
    assert sentences.tag_names == ["O", "B-X", "I-X"]


BAD_FILES = {
    "a missing column": ("a\tO\nb\n", "line 2: 1 column, 2 were expected"),
    "an empty column": ("a\tO\nb\t\n", "line 2: 1 column, 2 were expected"),
    "one column alone": ("a\nb\n", "line 1: 1 column, 2 were expected"),
    "a column too many": ("a\tO\nb\tNN\tO\n", "line 2: 3 columns, 2 were expected"),
    "I- behind O": ("a\tO\nb\tI-X\n", "line 2: tag 'I-X' follows 'O'; a span begins with B-: 'B-X'"),
    "I- of another type": ("a\tB-Y\nb\tI-X\n", "line 2: tag 'I-X' follows 'B-Y'"),
    "I- first": ("a\tO\n\nb\tI-X\n", "line 3: tag 'I-X' begins the sentence"),
    "another scheme": ("a\tS-X\n", "line 1: tag 'S-X', expected O, or B- or I- with a type behind it"),
    "no type": ("a\tB-\n", "line 1: tag 'B-', expected O"),
    "nothing": ("\n\n", "no sentences in it"),
    "not UTF-8": (b"a\tO\ncaf\xe9\tO\n", "line 2, byte 4: 0xe9 is not UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tiny, tmp_path, run, content, message):
    path = tmp_path / "a.conll"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = the_one_line(
        *run(*finetune_options(tiny, tmp_path / "out", task="token-classification", train=path))
    )
    assert line.startswith(f"{path}") and message in line


def test_a_tag_that_the_model_does_not_have(tmp_path):
    model = make_model(tmp_path, labels=LABELS, task="token-classification")
    path = write(tmp_path / "a.conll", "a\tO", "", "b\tO", "c\tB-UGLY")
    with pytest.raises(minift.InputError) as caught:
        model.batches(TaggedSentences(path), 2)
    assert (
        str(caught.value) == f"{path}, line 4: tag 'B-UGLY', expected one of: O, B-BAD, I-BAD, B-GOOD, I-GOOD"
    )


# ---- Pieces and words ----


def test_the_first_piece_carries_the_label(tmp_path):
    model = make_model(tmp_path, labels=LABELS, task="token-classification")
    model.tokenizer = Tokenizer.from_directory(write_vocabulary(tmp_path), 8)
    batch = model.pack([("good", "films", "bore"), ("films", ".")], [[3, 4, 0], [1, 2]])
    tokens = [
        "[CLS]", "good", "film", "##s", "bore", "[SEP]",
        "[CLS]", "film", "##s", ".", "[SEP]",
    ]  # fmt: skip
    assert model.tokenizer.tokens(batch.ids) == tokens
    assert batch.labels.tolist() == [-100, 3, 4, -100, 0, -100, -100, 1, -100, 2, -100]
    assert batch.targets == 5


def test_words_behind_the_maximum_are_told_o_and_counted(tmp_path):
    model = make_model(tmp_path, labels=LABELS, task="token-classification")
    model.tokenizer = Tokenizer.from_directory(write_vocabulary(tmp_path), 5)
    batch = model.pack([("good", "bad", "film", "bore", "bore")], [[3, 1, 1, 1, 1]])
    assert batch.labels.tolist() == [-100, 3, 1, 1, -100] and batch.truncated == 1
    logits = np.zeros((5, 5), np.float32)
    logits[:, 1] = 1
    [prediction] = model.decode(logits, batch)
    assert prediction.tags == ["B-BAD"] * 3 + ["O"] * 2


def test_a_word_of_which_the_tokenizer_leaves_nothing_is_told_o(tmp_path):
    model = make_model(tmp_path, labels=LABELS, task="token-classification")
    batch = model.pack([("good", "\u200b", "bad")], [[3, 3, 1]])
    assert batch.first_pieces == [[1, None, 2]] and batch.labels.tolist() == [-100, 3, 1, -100]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_sentence_of_which_the_tokenizer_leaves_nothing_teaches_nothing(tiny, tmp_path, run, batch_size):
    path = write(tmp_path / "a.conll", "good\tB-GOOD", "", "\u200b\tO")
    changes = {"model": tiny / "body", "task": "token-classification", "train": path, "dev": path}
    status, _, stderr = run(*finetune_options(tiny, tmp_path / "out", batch_size=batch_size, **changes))
    assert status == 0, stderr
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    assert [each["loss"] == each["grad_norm"] == 0 for each in log].count(True) == 2 - batch_size
    model = minift.load(tmp_path / "out")
    alone = write(tmp_path / "b.conll", "good\tB-GOOD")
    found, expected = (
        minift.evaluate(model, TaggedSentences(each), batch_size)["loss"] for each in (path, alone)
    )
    assert found == pytest.approx(expected, rel=1e-6)
    nothing = minift.evaluate(model, TaggedSentences(write(tmp_path / "c.conll", "\u200b\tO")))
    assert nothing["loss"] == nothing["f1"] == 0


def test_words_of_plain_text():
    text = "@anna's #new U.S. film (don't!)  über-good"
    words = [text[start:end] for start, end in spans_of_words(text)]
    assert words == ["@anna's", "#new", "U.S", ".", "film", "(", "don't", "!", ")", "über-good"]


def test_spans_stand_in_the_original_text(tmp_path):
    model = make_model(tmp_path, labels=LABELS, task="token-classification")
    text = "  The GREAT   film, é bad"
    batch = model.encode(text)
    rows = [batch.first_pieces[0][index] for index in range(6)]  # the great film , é bad
    logits = np.zeros((batch.tokens, 5), np.float32)
    for row, label in zip(rows, [0, 3, 4, 0, 0, 2], strict=True):
        logits[row, label] = 10
    [prediction] = model.decode(logits, batch)
    assert prediction.tags == ["O", "B-GOOD", "I-GOOD", "O", "O", "I-BAD"]
    first, second = prediction.entities
    assert (first.label, first.text, first.start, first.end) == ("GOOD", "GREAT   film", 6, 18)
    assert (second.label, second.text) == ("BAD", "bad") and text[second.start : second.end] == "bad"
    assert first.probability == pytest.approx(1 / (1 + 4 * np.exp(-10)), rel=1e-5)
    assert str(prediction) == "GREAT   film (GOOD), bad (BAD)"


def test_a_batch_equals_each_sentence_alone(tmp_path):
    model = make_model(tmp_path, labels=LABELS, task="token-classification").eval()
    texts = [text for text, _ in rows(5, seed=3)]
    together = model(texts).numpy()
    alone = np.concatenate([model(text).numpy() for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


# ---- The way through ----


def test_from_end_to_end(tiny, tmp_path, run):
    for name, count, seed in (("train", 150, 1), ("dev", 30, 2)):
        write(tmp_path / f"{name}.conll", *tagged(count, seed))
    out = tmp_path / "out"
    changes = {
        "model": tiny / "body",
        "task": "token-classification",
        "train": tmp_path / "train.conll",
        "dev": tmp_path / "dev.conll",
    }
    status, printed, stderr = run(*finetune_options(tiny, out, epochs=8, **changes))
    assert status == 0, stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["after"])[:3] == ["f1", "precision", "recall"]
    assert metrics["after"]["f1"] > 0.7 > metrics["before"]["f1"]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == list(LABELS)

    assert isinstance(minift.load(out), TokenClassification)
    status, printed, _ = run("evaluate", out, "--data", tmp_path / "dev.conll", "--json")
    assert json.loads(printed)["f1"] == metrics["after"]["f1"]
    status, printed, _ = run("predict", out, "--text", "the film was great", "--json")
    line = json.loads(printed)
    assert line["entities"][0] | {"probability": None} == {
        "label": "GOOD", "text": "great", "start": 13, "end": 18, "probability": None,
    }  # fmt: skip
    status, printed, _ = run("predict", out, "--text", "the film was great")
    assert printed == "great (GOOD)  the film was great\n"


def test_predict_reads_words_and_texts_from_files(tmp_path, run):
    model = make_model(tmp_path / "vocabulary", labels=LABELS, task="token-classification")
    model.save(tmp_path / "model")
    words = write(tmp_path / "a.conll", "the", "film", "", "good", ".")
    texts = write(tmp_path / "a.txt", "the film", "good .")
    results = []
    for path in (words, texts):
        status, printed, stderr = run("predict", tmp_path / "model", "--file", path, "--json")
        assert status == 0, stderr
        results.append([json.loads(line) for line in printed.splitlines()])
    assert [line["text"] for line in results[0]] == [["the", "film"], ["good", "."]]
    assert [line["tags"] for line in results[0]] == [line["tags"] for line in results[1]]


def test_a_file_of_pairs_is_no_file_of_sentences(tmp_path, run):
    model = make_model(tmp_path / "vocabulary", labels=LABELS, task="token-classification")
    model.save(tmp_path / "model")
    path = write(tmp_path / "a.tsv", "sentence1\tsentence2", "the film\tgood .")
    line = the_one_line(*run("predict", tmp_path / "model", "--file", path))
    assert line.startswith(f"{path}: one text a row was expected, found two, 'sentence1' and 'sentence2'")
    _, printed, _ = run("predict", tmp_path / "model", "--file", path, "--text-column", "sentence2", "--json")
    assert json.loads(printed)["text"] == "good ."


@pytest.mark.parametrize(
    ("name", "sentences", "words", "entities"),
    [("train", 3394, 62730, 1975), ("dev", 1009, 15733, 836)],
)
def test_real_tweets(shared_data, name, sentences, words, entities):
    examples = TaggedSentences(shared_data / "wnut17" / f"{name}.conll")
    assert len(examples) == sentences and sum(map(len, examples.words)) == words
    assert sum(tag.startswith("B-") for tags in examples.tags for tag in tags) == entities
    assert len(examples.tag_names) == 13
