"""The script behind the table of methods: it says its cost, goes on where it was stopped, and weighs each method."""

import json
import subprocess
import sys
from pathlib import Path

from tiny import rows, write_tsv

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "methods.py"


def run_script(folder, *options):
    command = [sys.executable, SCRIPT, "--data", folder, "--results", folder / "methods.jsonl"]
    done = subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_of_methods(tiny, tmp_path, compiled):
    (tmp_path / "sst2").mkdir()
    write_tsv(tmp_path / "sst2" / "train_sentences.tsv", rows(30, seed=1))
    write_tsv(tmp_path / "sst2" / "dev.tsv", rows(10, seed=2))
    small = ["--model", tiny / "model", "--sentences", 20, "--epochs", 1, "--seeds", 0]
    printed = run_script(tmp_path, *small, "--only", "lora")
    assert "1 runs of 1 epochs over 20 sentences: about 0 minutes (a guess for 2 cores)" in printed
    printed = run_script(tmp_path, *small, "--only", "lora", "head")
    assert "1 runs of 1 epochs over 20 sentences: about 0 minutes (as runs took before)" in printed
    lora, head = map(json.loads, (tmp_path / "methods.jsonl").read_text().splitlines())
    # 2 layers, query and value, A (8, 24) and B (24, 8); the head 24 weights and a bias for each of two labels.
    assert lora["trained_parameters"] == 2 * 2 * 2 * 8 * 24 + 2 * 25
    assert head["trained_parameters"] == 24 * 25 + 2 * 25
    assert 4 * lora["trained_parameters"] < lora["saved_bytes"] < 4 * lora["trained_parameters"] + 3000
    for result in (lora, head):
        assert result["seconds_an_epoch"] > 0 and result["peak_bytes"] > 1e7 and 0 <= result["accuracy"] <= 1
    assert len([line for line in printed.splitlines() if line.startswith(("lora ", "head "))]) == 2
