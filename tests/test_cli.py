"""The command line: what it writes and what it prints. What it refuses is in test_cli_errors.py."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from command import finetune_options, run_process
from tiny import rows, write_tsv

import minift
from minift import checkpoint
from minift.train import LOG, METRICS

pytestmark = pytest.mark.usefixtures("compiled")

# ---- The way through ----


def test_finetune_then_evaluate_then_predict(tiny, tmp_path, run):
    out = tmp_path / "out"
    status, printed, _ = run(*finetune_options(tiny, out, epochs=2))
    assert status == 0
    metrics = json.loads((out / METRICS).read_text())
    assert f"before  accuracy {metrics['before']['accuracy']:.4f}" in printed
    assert f"after   accuracy {metrics['after']['accuracy']:.4f}" in printed
    assert f"next: minift predict {out}" in printed
    assert len((out / LOG).read_text().splitlines()) == metrics["steps"] == 16

    status, printed, _ = run("evaluate", out, "--data", tiny / "dev.tsv", "--json")
    evaluated = json.loads(printed)
    assert status == 0 and evaluated.keys() == {
        "accuracy",
        "macro_f1",
        "matthews",
        "loss",
        "examples",
        "seconds",
    }
    assert evaluated["accuracy"] == metrics["after"]["accuracy"] and evaluated["examples"] == 30
    status, printed, _ = run("evaluate", out, "--data", tiny / "dev.tsv")
    assert printed.startswith(f"accuracy {evaluated['accuracy']:.4f}  macro_f1 ")
    assert printed.endswith(f"  loss {evaluated['loss']:.4f}  examples 30\n")

    texts = ["the film was great", "a dull book ."]
    status, printed, stderr = run("predict", out, "--text", *texts, "--json")
    predicted = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and stderr == "" and [line["text"] for line in predicted] == texts
    for line, expected in zip(predicted, minift.load(out).predict(texts), strict=True):
        assert line["label"] == expected.label
        assert line["probabilities"] == pytest.approx(expected.probabilities, rel=1e-6)
    status, printed, _ = run("predict", out, "--text", *texts)
    assert [line.split("  ") for line in printed.splitlines()] == [
        [line["label"], f"{line['probabilities'][line['label']]:.3f}", line["text"]] for line in predicted
    ]


def test_a_process_prints_a_progress_bar(tiny, tmp_path):
    done = run_process(*finetune_options(tiny, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    bar = done.stderr.split("\r")[-1]
    assert re.search(r"8/8 \[.*loss \d\.\d{3}, rate \d.*, [\d,]+ tokens/s", bar)
    assert "wrote" in done.stdout


def test_a_reader_that_has_enough_ends_it_quietly():
    arguments = [sys.executable, "-m", "minift", "info", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_info(run):
    status, printed, _ = run("info", "--json")
    facts = json.loads(printed)
    assert status == 0 and facts["versions"]["numpy"] == np.__version__ and facts["threads"] >= 1
    assert facts["rungs"]["attention"] == "numba_cpu"
    status, printed, _ = run("info")
    assert status == 0 and re.search(r"attention +numba_cpu", printed)
    with minift.use_kernels("reference"):
        assert set(json.loads(run("info", "--json")[1])["rungs"].values()) == {"reference"}


TEXTS = ["a great film", "the book was dull , not fine"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(TEXTS)),
        ("a.txt", "\n".join(TEXTS) + "\n"),
        ("a.tsv", "sentence\n" + "\n".join(TEXTS)),
        ("a.tsv", f"label\ttext\n?\t{TEXTS[0]}\n\t{TEXTS[1]}\n"),
        ("a.csv", f'text\n{TEXTS[0]}\n"{TEXTS[1]}"\n'),
        ("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)),
    ],
)
def test_predict_reads_texts_from_files(tiny, tmp_path, run, name, content):
    (tmp_path / name).write_text(content)
    from_file = run("predict", tiny / "model", "--file", tmp_path / name, "--json")
    assert from_file == run("predict", tiny / "model", "--text", *TEXTS, "--json")
    assert from_file[0] == 0 and len(from_file[1].splitlines()) == 2


def test_a_prediction_is_one_line_and_a_line_of_a_file_has_one(tiny, tmp_path, run):
    (tmp_path / "a.txt").write_text("a great film\n\na\tdull  book\n\n")
    lines = run("predict", tiny / "model", "--file", tmp_path / "a.txt")[1].split("\n")
    assert [line.split("  ", 2)[2:] for line in lines] == [
        ["a great film"],
        [""],
        ["a\\tdull  book"],
        [""],
        [],
    ]
    lines = run("predict", tiny / "model", "--text", "a great\nfilm\u2028")[1].splitlines()
    assert [line.split("  ")[2] for line in lines] == ["a great\\nfilm\\u2028"]


def test_pairs_of_texts(tiny, tmp_path, run):
    lines = [
        f"{text}\t{other}\t{label}"
        for (text, label), (other, _) in zip(rows(24, 3), rows(24, 4), strict=True)
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]))
    (tmp_path / "named.csv").write_text(
        "\n".join(["q,a,y", *(line.replace(",", "").replace("\t", ",") for line in lines)])
    )
    out = tmp_path / "out"
    assert run(*finetune_options(tiny, out, train=tmp_path / "pairs.tsv", dev=None))[0] == 0
    status, printed, _ = run("predict", out, "--file", tmp_path / "pairs.tsv", "--json")
    first = json.loads(printed.splitlines()[0])
    assert first["text"] == lines[0].split("\t")[:2]
    model = minift.load(out).eval()
    assert model.encode((first["text"][0], first["text"][1])).token_types.max() == 1
    [expected] = model.predict(tuple(first["text"]))
    assert first["probabilities"] == pytest.approx(expected.probabilities, rel=1e-5)

    columns = ["--text-column", "q", "--pair-column", "a", "--label-column", "y"]
    status, printed, _ = run("evaluate", out, "--data", tmp_path / "named.csv", *columns, "--json")
    assert status == 0 and json.loads(printed)["examples"] == 24


def test_frozen_layers_are_left_alone(tiny, tmp_path, run):
    options = finetune_options(tiny, tmp_path / "out", method="frozen", method_options="layers=1")
    assert run(*options)[0] == 0
    before, after = (checkpoint.read_tensors(path) for path in (tiny / "model", tmp_path / "out"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed and not any(
        name.startswith(("bert.embeddings", "bert.encoder.layer.0")) for name in changed
    )


def test_resume_of_a_run_that_was_not_begun_begins_it(tiny, tmp_path, run):
    for name, flags in (("a", ["--resume"]), ("b", [])):
        assert run(*finetune_options(tiny, tmp_path / name), *flags)[0] == 0
    assert (tmp_path / "a" / checkpoint.WEIGHTS).read_bytes() == (
        tmp_path / "b" / checkpoint.WEIGHTS
    ).read_bytes()


# ---- Texts that are too long ----


def test_truncated_texts_are_counted_and_said(tiny, tmp_path, run, caplog):
    rows = [("good " * 50, "positive"), ("bad", "negative"), ("dull " * 31, "negative")]
    path = write_tsv(tmp_path / "long.tsv", rows)
    said = "2 of 3 texts: longer than 32 tokens, truncated"
    assert run("predict", tiny / "model", "--file", path)[0] == 0 and caplog.messages == [said]
    _, printed, _ = run(*finetune_options(tiny, tmp_path / "out", train=path, epochs=2))
    assert "4 texts were longer than the maximum" in printed
    evaluated = run_process("evaluate", tiny / "model", "--data", path, "--json")
    assert evaluated.stderr == f"{said}\n" and json.loads(evaluated.stdout)["examples"] == 3


def test_max_length_is_what_is_said(tiny, run, caplog):
    assert run("predict", tiny / "model", "--text", "good " * 20, "bad", "--max-length", 10)[0] == 0
    assert caplog.messages == ["1 of 2 texts: longer than 10 tokens, truncated"]
