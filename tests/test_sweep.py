"""A sweep finds settings, goes on where it was killed, and says in one line what is wrong."""

import sqlite3

import pytest
from command import the_one_line

import minift
from minift import sweep as sweep_module
from minift.sweep import Sweep, sweep

optuna = pytest.importorskip("optuna", reason="Optuna is not installed (extra: sweep)")


def small(tiny, out, **changes) -> Sweep:
    options = {
        "model": str(tiny / "model"), "train": tiny / "train.tsv", "dev": tiny / "dev.tsv", "out": out,
        "search": ("learning_rate=1e-4:1e-2", "epochs=1,2"), "batch_size": 20, "trials": 3, **changes,
    }  # fmt: skip
    return Sweep(**options)


def test_a_sweep_goes_on_where_it_was_stopped(tiny, tmp_path, compiled):
    sweep(small(tiny, tmp_path, trials=2))
    best = sweep(small(tiny, tmp_path, trials=3))
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep.db'}")
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert best["values"] == study.best_params and 1e-4 <= best["values"]["learning_rate"] <= 1e-2
    assert best["metrics"]["accuracy"] == study.best_value
    found = minift.evaluate(minift.load(tmp_path / "best"), minift.Dataset(tiny / "dev.tsv"))
    assert found["accuracy"] == best["metrics"]["accuracy"]
    page = (tmp_path / "results.md").read_text()
    assert len(page.splitlines()) == 4 + 3 and f"{study.best_value:.4f}" in page.splitlines()[4]
    assert not list(tmp_path.glob("trial-*"))
    with pytest.raises(minift.InputError, match=r"the sweep was begun with batch_size = 20, not 10"):
        sweep(small(tiny, tmp_path, batch_size=10))


def test_a_run_that_stays_behind_is_ended(tiny, tmp_path, monkeypatch, compiled):
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    sweep(small(tiny, tmp_path, trials=2, search=("method.layers=0,1",), method="frozen"))
    assert "pruned" in (tmp_path / "results.md").read_text()


def test_a_locked_storage(tiny, tmp_path, run, monkeypatch):
    monkeypatch.setattr(sweep_module, "LOCK_SECONDS", 0.1)
    connection = sqlite3.connect(tmp_path / "sweep.db")
    connection.execute("BEGIN EXCLUSIVE")
    options = ["--model", tiny / "model", "--train", tiny / "train.tsv", "--dev", tiny / "dev.tsv"]
    line = the_one_line(*run("sweep", *options, "--out", tmp_path, "--trials", 1))
    connection.close()
    assert "sweep.db: the sweep's storage is locked by another process" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": None}, "a sweep needs --dev"),
        ({"trials": 0}, "trials is 0, expected 1 or more"),
        ({"search": ("learning=1:2",)}, "search 'learning=1:2': expected option=low:high or option=a,b"),
        ({"search": ("epochs=3:2",)}, "search 'epochs=3:2': expected two numbers, the lower one first"),
        ({"search": ("method.rank=2,3",)}, "method full has no option 'rank'"),
    ],
)
def test_searches_that_cannot_be(tiny, tmp_path, changes, message, compiled):
    with pytest.raises(minift.InputError, match=message):
        sweep(small(tiny, tmp_path, **changes))
