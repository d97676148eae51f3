"""Several labels per text, and a number per text: files, metrics, predictions and what is refused."""

import json

import numpy as np
import pytest
from command import finetune_options, the_one_line
from tiny import BAD, GOOD, make_model, rows

import minift
from minift.data import Columns
from minift.tasks.multi_label import LabelSets, MultiLabelClassification
from minift.tasks.text_regression import Scores, TextRegression

# ---- Several labels per text ----


def moods(text: str) -> list[str]:
    words = set(text.split())
    return [name for name, telling in (("sad", BAD), ("warm", GOOD), ("long", {"and"})) if telling & words]


def test_labels_are_a_list_in_json_and_have_commas_in_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "labels": ["x", "y"]}\n{"text": "b", "labels": []}\n{"text": "c", "labels": ["y", 1]}\n'
    )
    (tmp_path / "a.tsv").write_text("text\tlabel\na\ty, x\nb\t\nc\t1,y\n")
    for path in tmp_path.iterdir():
        examples = LabelSets(path)
        assert MultiLabelClassification.labels_in(examples) == ["1", "x", "y"]
        expected = [[0, 1, 1], [0, 0, 0], [1, 0, 1]]
        np.testing.assert_array_equal(examples.indicators(["1", "x", "y"]), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "labels": {"x": 1}}', "line 1: the labels were to be a list, or a text with commas"),
        ('{"text": "a", "labels": [["x"]]}', 'line 1: the labels were to be a list.* found \\[\\["x"\\]\\]'),
        (
            '{"text": "a", "labels": ["x", "\\ud800"]}',
            r"line 1: a label holds '\\ud800', which is no character",
        ),
        ('{"text": "a", "lables": ["x"]}', "no column 'labels'; there are: 'text', 'lables'"),
    ],
)
def test_what_is_no_list_of_labels(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content + "\n")
    with pytest.raises(minift.InputError, match=message):
        LabelSets(tmp_path / "a.jsonl")


def test_a_file_without_any_label(tiny, tmp_path, run):
    (tmp_path / "a.tsv").write_text("text\tlabels\na film\t\na book\t,\n")
    options = finetune_options(tiny, tmp_path / "out", task="multi-label", train=tmp_path / "a.tsv", dev=None)
    line = the_one_line(*run(*options))
    assert line == f"{tmp_path / 'a.tsv'}: no text in it has a label, so there is none to learn"


def test_multi_label_from_end_to_end(tiny, tmp_path, run):
    for name, count, seed in (("train", 300, 1), ("dev", 60, 2)):
        lines = [json.dumps({"text": text, "labels": moods(text)}) for text, _ in rows(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    changes = {
        "model": tiny / "body",
        "task": "multi-label",
        "train": tmp_path / "train.jsonl",
        "dev": tmp_path / "dev.jsonl",
    }
    status, printed, _ = run(*finetune_options(tiny, out, epochs=5, **changes))
    assert status == 0 and "after   micro_f1 " in printed
    after = json.loads((out / "metrics.json").read_text())["after"]
    assert list(after)[:3] == ["micro_f1", "macro_f1", "accuracy"] and after["micro_f1"] > 0.8
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "long", "1": "sad", "2": "warm"}

    model = minift.load(out)
    assert isinstance(model, MultiLabelClassification)
    status, printed, _ = run("evaluate", out, "--data", tmp_path / "dev.jsonl", "--json")
    assert json.loads(printed)["micro_f1"] == after["micro_f1"]
    texts = ["a film", "great and dull"]
    status, printed, _ = run("predict", out, "--text", *texts, "--json")
    for line, expected in zip(map(json.loads, printed.splitlines()), model.predict(texts), strict=True):
        assert line["labels"] == [name for name, p in line["probabilities"].items() if p > 0.5]
        assert line["labels"] == expected.labels
    bad = tmp_path / "bad.tsv"
    bad.write_text("text\tlabels\nfine\twarm\nso\twarm,cold\n")
    expected = f"{bad}, line 3: label 'cold', expected some of: 'long', 'sad', 'warm'"
    assert the_one_line(*run("evaluate", out, "--data", bad)) == expected


def test_sigmoid_and_threshold(tmp_path):
    model = make_model(tmp_path, labels=("x", "y", "z"), task="multi-label")
    logits = np.array([[1000.0, 0.1, -1000.0], [-0.1, -1.0, -2.0]], np.float32)
    both, none = model.decode(logits, None)
    assert both.labels == ["x", "y"] and none.labels == [] and str(none) == "(none)"
    assert both.probabilities == pytest.approx({"x": 1, "y": 1 / (1 + np.exp(-0.1)), "z": 0})


# ---- A number per text ----


def stars(text: str) -> float:
    return 4.5 if GOOD & set(text.split()) else 1.25


def test_scores(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tscore\tlabel\na\t1\tx\nb\t-2.5e-1\tx\nc\t1.0\tx\n")
    np.testing.assert_array_equal(Scores(tmp_path / "a.tsv").scores, [1, -0.25, 1])
    assert Scores(tmp_path / "a.tsv").scores.dtype == np.float32


@pytest.mark.parametrize("bad", ["good", "nan", "inf", "", "1,5", "1e308", "-4e38"])
def test_what_is_no_score(tmp_path, bad):
    (tmp_path / "a.tsv").write_text(f"text\tlabel\na\t1\nb\t{bad}\n")
    with pytest.raises(
        minift.InputError, match=rf'a.tsv, line 3: the score was to be a number \(of float32\), found "{bad}"'
    ):
        Scores(tmp_path / "a.tsv")


def test_an_integer_that_no_float_can_hold(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": 1' + 400 * "0" + "}\n")
    with pytest.raises(
        minift.InputError, match=r"a.jsonl, line 1: the score was to be a number \(of float32\)"
    ):
        Scores(tmp_path / "a.jsonl")


def test_regression_from_end_to_end(tiny, tmp_path, run):
    for name, count, seed in (("train", 200, 1), ("dev", 40, 2)):
        lines = [f"{text}\t{stars(text)}" for text, _ in rows(count, seed)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tscore", *lines]))
    out = tmp_path / "out"
    changes = {
        "model": tiny / "body",
        "task": "text-regression",
        "train": tmp_path / "train.tsv",
        "dev": tmp_path / "dev.tsv",
    }
    status, _, stderr = run(*finetune_options(tiny, out, epochs=8, **changes))
    assert status == 0, stderr
    after = json.loads((out / "metrics.json").read_text())["after"]
    assert list(after)[:2] == ["pearson", "spearman"] and after["pearson"] > 0.8

    model = minift.load(out)
    assert isinstance(model, TextRegression) and model.labels is None
    dev = model.read(tmp_path / "dev.tsv", Columns())
    found = model.predict([dev[row][0] for row in range(40)])
    loss = np.mean((np.array([each.score for each in found]) - dev.scores) ** 2)
    assert after["loss"] == pytest.approx(loss, rel=1e-5)
    status, printed, _ = run("predict", out, "--text", "a great film", "--json")
    assert json.loads(printed) == {
        "text": "a great film",
        "score": pytest.approx(model.predict("a great film")[0].score),
    }


def test_tasks_without_classes_refuse_label_smoothing(tiny, tmp_path, run):
    options = finetune_options(tiny, tmp_path / "out", task="text-regression", label_smoothing=0.1)
    expected = "label_smoothing: text-regression has none; these tasks have it: text-classification, "
    assert the_one_line(*run(*options)).startswith(expected)


def test_a_model_with_one_output_that_does_not_say_its_problem_is_a_regression(tiny, tmp_path):
    """transformers concludes the same, and older files do not say it."""
    make_model(tmp_path / "vocabulary", task="text-regression").save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0"}
    del config["problem_type"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert isinstance(minift.load(tmp_path / "model"), TextRegression)
