"""A sweep finds settings, goes on where it was killed, and says in one line what is wrong."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command import the_one_line
from tiny import make_model

import minift
from minift import sweep as sweep_module
from minift.sweep import Sweep, sweep

ROOT = Path(__file__).parents[1]
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
    assert [path.name for path in tmp_path.glob("trial-*")] == [f"trial-{study.best_trial.number}"]
    with pytest.raises(minift.InputError, match=r"the sweep was begun with batch_size = 20, not 10"):
        sweep(small(tiny, tmp_path, batch_size=10))


def stored(folder):
    """What the storage holds, as anybody with Optuna reads it."""
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'sweep.db'}")


def test_a_run_that_stays_behind_the_median_is_ended(tiny, tmp_path, compiled):
    """Optuna prunes from the sixth run on: here five that were better after their first epoch came before."""
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    study = optuna.create_study(study_name="sweep", storage=storage, direction="maximize")
    for _ in range(5):
        study.add_trial(
            optuna.trial.create_trial(
                value=1.0, intermediate_values={1: 1.0, 2: 1.0}, user_attrs={"metrics": {"accuracy": 1.0}}
            )
        )
    sweep(small(tiny, tmp_path, trials=6, search=("learning_rate=1e-9:2e-9",), epochs=2))
    behind = stored(tmp_path).trials[5]
    assert behind.state.name == "PRUNED" and list(behind.intermediate_values) == [1]
    assert "| pruned |" in (tmp_path / "results.md").read_text()
    assert not list(tmp_path.glob("trial-*"))


def test_a_run_that_diverges_does_not_end_the_sweep(tiny, tmp_path, compiled, monkeypatch):
    # Each of the two once; what the sweep's own sampler draws is chance, and may be the same twice.
    grid = optuna.samplers.GridSampler({"learning_rate": [1e30, 1e-3]}, seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(optuna.samplers, "TPESampler", lambda: grid)
        best = sweep(small(tiny, tmp_path, trials=2, search=("learning_rate=1e-3,1e30",), epochs=2))
    states = {each.params["learning_rate"]: each.state.name for each in stored(tmp_path).trials}
    assert states == {1e30: "PRUNED", 1e-3: "COMPLETE"}
    assert best["values"] == {"learning_rate": 1e-3}
    said = r"results.md: all runs were ended early, so none is the best; run 0: (step 3: the loss became .*)"
    with pytest.raises(minift.InputError, match=said) as caught:
        sweep(small(tiny, tmp_path / "all", trials=1, search=("learning_rate=1e30,2e30",), epochs=2))
    reason = re.search(said, str(caught.value))[1]
    assert f"| diverged: {reason} |" in (tmp_path / "all" / "results.md").read_text()


def test_overwrite_begins_a_sweep_anew(tiny, tmp_path, compiled):
    sweep(small(tiny, tmp_path, trials=2))
    other = small(tiny, tmp_path, trials=1, search=("warmup=0.1,0.2",), epochs=1)
    with pytest.raises(minift.InputError, match=r"begun with epochs = .*; pass --overwrite to begin it anew"):
        sweep(other)
    with pytest.raises(minift.InputError, match="there is no such file"):
        sweep(replace(other, overwrite=True, dev=tmp_path / "none.tsv"))
    with pytest.raises(minift.InputError, match="there is no such directory"):
        sweep(replace(other, overwrite=True, model=str(tmp_path / "none")))
    assert len(stored(tmp_path).trials) == 2, "what cannot be begun replaces nothing"
    assert sweep(replace(other, overwrite=True))["values"].keys() == {"warmup"}
    assert len(stored(tmp_path).trials) == 1
    assert [path.name for path in tmp_path.glob("trial-*")] == ["trial-0"]


def test_what_every_run_warns_of_is_said_once(tiny, tmp_path, compiled, caplog):
    sweep(small(tiny, tmp_path, model=str(tiny / "body"), trials=2))
    assert len(caplog.messages) == 1 and "newly initialized" in caplog.messages[0]


@pytest.mark.parametrize("task", ["text-classification", "text-regression", "fill-mask"])
def test_a_model_that_is_no_number_on_the_dev_set_is_never_the_best(tiny, tmp_path, compiled, task):
    """Its last step is what spoils it, so that no loss in training tells; and then the sweep must come to its end."""
    data = tiny / "train.tsv"
    if task == "text-regression":
        data = tmp_path / "scores.tsv"
        data.write_text("text\tscore\na good film\t2\na bad film\t1\na fine meal\t2\n")
    changes = {"task": task, "model": str(tiny / "body"), "train": data, "dev": data, "batch_size": 60}
    if task == "fill-mask":
        make_model(tmp_path / "vocabulary", task=task).save(tmp_path / "model")
        changes["model"] = str(tmp_path / "model")
    search = ("learning_rate=1e30,2e30",)
    with pytest.raises(minift.InputError, match="all runs were ended early, so none is the best"):
        sweep(small(tiny, tmp_path / "out", trials=2, search=search, epochs=1, warmup=0.0, **changes))
    assert [each.state.name for each in stored(tmp_path / "out").trials] == ["PRUNED"] * 2


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("perplexity", [3.0, 2.0, 9.0], 2.0),
        ("loss", [0.5, 0.25, 0.75], 0.25),
        ("pearson", [-0.02, 0.01, -0.5], 0.01),
    ],
)
def test_the_best_is_the_smallest_or_the_largest_and_keeps_its_sign(
    tiny, tmp_path, monkeypatch, metric, values, best
):
    given = iter(values)

    def finetune(run, after_epoch):
        run.out.mkdir()
        return {"after": dict.fromkeys([metric, "loss"], next(given))}

    monkeypatch.setattr(sweep_module, "finetune", finetune)
    found = sweep(small(tiny, tmp_path, trials=3, search=("learning_rate=1e-4:1e-2",)))
    assert found["metrics"][metric] == best
    listed = [float(line.split("|")[2]) for line in found["page"].splitlines()[4:]]
    assert listed == sorted(values, reverse=metric == "pearson")


def test_any_option_is_searched(tiny, tmp_path, compiled):
    search = (
        "method.rank=2,3",
        "method.targets=query,key",
        "schedule=cosine,constant",
        "warmup=0.1:0.5",
        "max_length=12,16",
    )
    best = sweep(small(tiny, tmp_path, trials=2, search=search, method="lora", epochs=1))
    assert set(best["values"]) == {"method.rank", "method.targets", "schedule", "warmup", "max_length"}
    trained = minift.load(tmp_path / "best").method
    assert trained.rank == best["values"]["method.rank"]
    assert all(best["values"]["method.targets"] in target for target in trained.targets)
    best = sweep(small(tiny, tmp_path / "methods", trials=2, search=("method=bitfit,head",), epochs=1))
    assert minift.load(tmp_path / "methods" / "best").method.name == best["values"]["method"]


def test_a_locked_storage(tiny, tmp_path, run, monkeypatch):
    monkeypatch.setattr(sweep_module, "LOCK_SECONDS", 0.1)
    connection = sqlite3.connect(tmp_path / "sweep.db")
    connection.execute("BEGIN EXCLUSIVE")
    options = ["--model", tiny / "model", "--train", tiny / "train.tsv", "--dev", tiny / "dev.tsv"]
    line = the_one_line(*run("sweep", *options, "--out", tmp_path, "--trials", 1))
    connection.close()
    assert "sweep.db: the sweep's storage is locked by another process" in line


def test_a_storage_that_is_locked_in_the_middle(tiny, tmp_path, run, monkeypatch):
    monkeypatch.setattr(sweep_module, "LOCK_SECONDS", 0.1)
    connection = sqlite3.connect(tmp_path / "sweep.db", check_same_thread=False)
    real = sweep_module.evaluate

    def evaluate(*given):
        connection.execute("BEGIN EXCLUSIVE")
        return real(*given)

    monkeypatch.setattr(sweep_module, "evaluate", evaluate)
    options = ["--model", tiny / "model", "--train", tiny / "train.tsv", "--dev", tiny / "dev.tsv"]
    status, printed, errors = run("sweep", *options, "--out", tmp_path, "--trials", 1, "--epochs", 1)
    connection.close()
    assert status == 2 and "Traceback" not in errors and printed == ""
    assert "sweep.db: the sweep's storage is locked by another process" in errors.splitlines()[-1]


def test_a_file_that_is_no_storage(tiny, tmp_path, run):
    (tmp_path / "sweep.db").write_text("not a database, but long enough to be taken for one" * 30)
    options = ["--model", tiny / "model", "--train", tiny / "train.tsv", "--dev", tiny / "dev.tsv"]
    line = the_one_line(*run("sweep", *options, "--out", tmp_path))
    assert line.endswith("sweep.db: the sweep's storage cannot be used: file is not a database")


def test_what_is_wrong_in_a_run_is_one_line(tiny, tmp_path, run):
    options = ["--model", tiny / "model", "--train", tiny / "train.tsv", "--dev", tiny / "dev.tsv"]
    line = the_one_line(*run("sweep", *options, "--out", tmp_path, "--search", "method.rank=2,3"))
    assert line == "method full has no option 'rank'; it has no options"


# ---- Several processes ----

SHARING = """
import sys
from minift import sweep
from minift.cli import main

sweep.ALIVE_SECONDS = 3
sys.exit(main(sys.argv[1:]))
"""


def start(tiny, out, trials, *options) -> subprocess.Popen:
    """`minift sweep` in a process of its own, which says every three seconds that it is alive."""
    given = [
        "--model",
        tiny / "model",
        "--train",
        tiny / "train.tsv",
        "--dev",
        tiny / "dev.tsv",
        "--out",
        out,
    ]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SHARING, "sweep", *map(str, given), "--trials", str(trials), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def check_finished(out, trials: int) -> None:
    """Exactly so many runs, one page of them, and the best one's model."""
    study = stored(out)
    finished = [each for each in study.trials if each.state.name in ("COMPLETE", "PRUNED")]
    assert len(finished) == trials
    assert not [each for each in study.trials if each.state.name in ("RUNNING", "WAITING")]
    best = minift.load(out / "best")
    assert [path.name for path in out.glob("trial-*")] == [os.readlink(out / "best")]
    assert (out / "best" / "metrics.json").exists() and best.labels == ("negative", "positive")
    written = json.loads((out / "best" / "metrics.json").read_text())["after"]["accuracy"]
    assert written == max(each.value for each in finished if each.value is not None)
    page = (out / "results.md").read_text()
    assert all(f"| {each.number} |" in page for each in finished)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_processes_share_a_sweep(tiny, tmp_path, compiled, attempt):
    """Started in the same moment, three of them do exactly what was asked for, and all agree on the best."""
    processes = [start(tiny, tmp_path / "sweep", 7, "--search", "learning_rate=1e-4:1e-2") for _ in range(3)]
    printed = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        assert "Traceback" not in stderr, stderr
        printed.append(stdout)
    check_finished(tmp_path / "sweep", 7)
    assert len(set(printed)) == 1
    assert not [
        each for each in stored(tmp_path / "sweep").trials if each.state.name == "FAIL" and each.params
    ]


@pytest.mark.slow
@pytest.mark.parametrize("others", [0, 1])
def test_a_killed_sweep_goes_on(tiny, tmp_path, compiled, others):
    """SIGKILL in the middle of a run: the same command, or a process beside it, repeats that run and does the rest."""
    options = ("--search", "learning_rate=1e-4:1e-2", "--epochs", "60")
    killed = start(tiny, tmp_path, 4, *options)
    beside = [start(tiny, tmp_path, 4, *options) for _ in range(others)]
    deadline = time.monotonic() + 100
    while not (
        (tmp_path / "sweep.db").exists()
        and len(os.listdir(tmp_path)) > 1
        and (running := runs_of(tmp_path, killed.pid))
    ):
        assert time.monotonic() < deadline and killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    for process in [*beside, *([] if others else [start(tiny, tmp_path, 4, *options)])]:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    check_finished(tmp_path, 4)
    trials = {each.number: each for each in stored(tmp_path).trials}
    assert trials[running].state.name == "FAIL"
    again = [
        each for each in trials.values() if each.params == trials[running].params and each.number != running
    ]
    assert [each.state.name for each in again] in (["COMPLETE"], ["PRUNED"])


def runs_of(out, pid: int) -> int | None:
    """The number of the run whose log the process has open."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = Path(os.readlink(link))
        except OSError:
            continue
        if target.parent.parent == out and target.parent.name.startswith("trial-"):
            return int(target.parent.name.removeprefix("trial-"))
    return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": None}, "a sweep needs --dev"),
        ({"trials": 0}, "trials is 0, expected 1 or more"),
        ({"search": ("learning=1:2",)}, "search 'learning=1:2': expected option=low:high or option=a,b"),
        (
            {"search": ("epochs=3:2",)},
            "search 'epochs=3:2': expected two finite numbers, the lower one first",
        ),
        ({"search": ("learning_rate=0:inf",)}, "expected two finite numbers, the lower one first"),
        ({"search": ("weight_decay=-inf:1",)}, "expected two finite numbers, the lower one first"),
        ({"task": "foo"}, "there is no task 'foo'; the tasks are text-classification, "),
        (
            {"search": ("task=multi-label,foo",)},
            "there is no task 'foo'; the tasks are text-classification, ",
        ),
        ({"search": ()}, "search is empty: expected option=low:high or option=a,b"),
        ({"search": ("epochs=1,2", "epochs=3,4")}, "search 'epochs=3,4': epochs is searched twice"),
        ({"search": ("epochs=2,0",)}, "epochs is 0, expected 1 or more"),
        ({"search": ("epochs=2,2.5",)}, "search 'epochs=2,2.5': '2.5' is no int"),
        ({"search": ("max_length=1,much",)}, "search 'max_length=1,much': 'much' is no int"),
        ({"search": ("schedule=linear,slow",)}, "'slow' is none of linear, cosine, constant"),
        ({"search": ("schedule=cosine:linear",)}, "expected two finite numbers, the lower one first"),
        ({"search": ("method_options=rank=2",)}, "the options are .*, and method.option"),
        ({"search": ("method.rank=2,3",)}, "method full has no option 'rank'"),
    ],
)
def test_searches_that_cannot_be(tiny, tmp_path, changes, message, compiled):
    with pytest.raises(minift.InputError, match=message):
        sweep(small(tiny, tmp_path, **changes))
