"""The script behind the table of methods: it says its cost, goes on where it was stopped, and weighs each method."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from tiny import rows, write_tsv

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "methods.py"


def run_script(folder, *options):
    command = [sys.executable, SCRIPT, "--data", folder, "--results", folder / "methods.jsonl"]
    done = subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def data_folder(tmp_path):
    (tmp_path / "sst2").mkdir()
    for name, count, seed in (("train_sentences.tsv", 60, 1), ("dev.tsv", 10, 2)):
        write_tsv(tmp_path / "sst2" / name, rows(count, seed))
    return tmp_path


def test_the_table_of_methods(tiny, data_folder, compiled):
    small = ["--model", tiny / "model", "--sentences", 40, "--epochs", 1, "--seeds", 0]
    printed = run_script(data_folder, *small, "--only", "lora")
    assert "1 of 1 runs to do: about 0 minutes (a guess)" in printed
    printed = run_script(data_folder, *small, "--only", "lora", "head")
    assert "1 of 2 runs to do: about 0 minutes (as runs took before)" in printed
    lora, head = map(json.loads, (data_folder / "methods.jsonl").read_text().splitlines())
    # 2 layers, query and value, A (8, 24) and B (24, 8); the head 24 weights and a bias for each of two labels.
    assert lora["trained_parameters"] == 2 * 2 * 2 * 8 * 24 + 2 * 25
    assert head["trained_parameters"] == 24 * 25 + 2 * 25
    assert 4 * lora["trained_parameters"] < lora["saved_bytes"] < 4 * lora["trained_parameters"] + 3000
    for result in (lora, head):
        assert result["seconds_an_epoch"] > 0 and result["peak_bytes"] > 1e7 and 0 <= result["accuracy"] <= 1
        assert 0 < result["moved_tensors"] <= result["trained_tensors"] and result["threads"] >= 1
    table = (data_folder / "methods.md").read_text()
    assert table in printed
    rows_of_table = [line for line in table.splitlines() if line.startswith(("| lora", "| head"))]
    assert len(rows_of_table) == 2 and all(f"| 0: {each['accuracy']:.4f} |" in table for each in (lora, head))
    assert all("| ~" in row for row in rows_of_table)  # not timed apart
    printed = run_script(data_folder, *small, "--only", "lora", "--timing")
    assert "1 of 1 runs to do" in printed and "| lora |" in printed and "| ~" not in printed
    assert "runs to do" not in run_script(data_folder, *small, "--only", "lora", "--so-far")


@pytest.fixture
def methods():
    """The script as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import methods

        yield methods
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_the_search_does_not_see_dev(methods, tiny, data_folder, tmp_path, monkeypatch, capsys):
    """It is judged by training sentences that it does not train on."""
    assert set(methods.SEARCHED) <= set(methods.RECIPES)
    seen = {}

    def fine_tune(run, train, dev, out, model):
        seen["train"], seen["judges"] = (path.read_text().splitlines()[1:] for path in (train, dev))
        return {}

    monkeypatch.setattr(methods.runs, "fine_tune", fine_tune)
    options = Namespace(only=["head"], epochs=1, sentences=40, batch_size=16, model="minilm")
    wanted = methods.searched_runs(options, methods.Sentiment(data_folder))
    assert [run["learning_rate"] for run in wanted] == list(methods.SEARCHED["head"])
    methods.measure(wanted[0], data_folder, tmp_path)
    everything = (data_folder / "sst2" / "train_sentences.tsv").read_text().splitlines()[1:]
    names = {"negative": "0", "positive": "1"}
    expected = sorted(f"{text}\t{names[label]}" for text, label in (line.split("\t") for line in everything))
    assert sorted(seen["train"] + seen["judges"]) == expected and len(seen["train"]) == 40
    methods.print_search(
        [{"run": run, "accuracy": rate} for run, rate in zip(wanted, (0.5, 0.7, 0.6), strict=True)]
    )
    assert f"{methods.SEARCHED['head'][1]:g}: 0.700*" in capsys.readouterr().out


def test_a_run_that_changes_frozen_weights_is_refused(
    methods, tiny, data_folder, tmp_path, monkeypatch, compiled
):
    from minift.methods import BitFit

    options = Namespace(only=["bitfit"], epochs=2, sentences=40, batch_size=16, model=str(tiny / "model"))
    run = methods.run_of("bitfit", 0, options, methods.Sentiment(data_folder))
    original = BitFit.save

    def save(method, model, directory):
        model.bert.embeddings.word_embeddings.weight.requires_grad = True
        model.bert.embeddings.word_embeddings.weight.data = (
            model.bert.embeddings.word_embeddings.weight.data + 1
        )
        original(method, model, directory)

    monkeypatch.setattr(BitFit, "save", save)
    with pytest.raises(SystemExit, match=r"frozen weights changed: bert.embeddings.word_embeddings.weight"):
        methods.measure(run, data_folder, tmp_path)
