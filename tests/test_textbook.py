"""The script behind the chapter on the textbook's claims: its ways to train, its rule, its page."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from tiny import rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def textbook():
    """The script as a module; its neighbours are not importable afterwards."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import textbook

        yield textbook
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """Sentences as the script reads them, more than it holds out."""
    folder = tmp_path_factory.mktemp("data") / "sst2"
    folder.mkdir()
    for name, count, seed in (("train_sentences.tsv", 700, 1), ("dev.tsv", 20, 2)):
        lines = [f"{text}\t{int(label == 'positive')}\n" for text, label in rows(count, seed)]
        (folder / name).write_text("sentence\tlabel\n" + "".join(lines))
    return folder.parent


def options(tiny, **changes) -> Namespace:
    return Namespace(**{"seeds": SEEDS, "epochs": None, "model": str(tiny / "model"), **changes})


@pytest.mark.parametrize("way", ["fine-tuned", "from scratch", "frozen", "SetFit"])
def test_every_way_to_train(textbook, data_folder, tiny, tmp_path, compiled, way):
    data = textbook.Sentiment(data_folder)
    run = textbook.run_of(way, 24, 0, options(tiny, epochs=2), data)
    result = textbook.measure(run, data_folder, tmp_path)
    assert 0 <= result["accuracy"] <= 1
    if way != "SetFit":
        assert result["moved_tensors"] > 0


def test_the_examples(textbook, data_folder):
    """As many of either class, none of those held out, others for another seed; more of them hold the fewer."""
    data = textbook.Sentiment(data_folder)
    held_out, few = textbook.examples(data, 9, seed=0)
    _, more = textbook.examples(data, 40, seed=0)
    _, others = textbook.examples(data, 9, seed=1)
    assert sum(data.train_labels[i] for i in few) == 5 and len(set(few)) == 9
    assert set(few) <= set(more) and set(few) != set(others)
    assert len(held_out) == 500 and not set(held_out) & set(more)


def test_small_sets_get_enough_steps(textbook, data_folder, tiny):
    data = textbook.Sentiment(data_folder)
    epochs = {
        size: textbook.run_of("frozen", size, 0, options(tiny), data)["epochs"] for size in (8, 50, 5000)
    }
    assert epochs == {8: 100, 50: 25, 5000: 3}


def invented(run: dict) -> float:
    """Frozen is .1 better than fine-tuned everywhere, scratch .2 worse; no two rates differ."""
    noise = 0.01 * ((run["seed"] * 7 + len(run["name"])) % 5)
    if run["learning_rate"] != 5e-5 and run["name"] == "fine-tuned":
        return 0.7 + 0.01 * ((run["seed"] * 3) % 5)
    return 0.7 + noise + {"frozen": 0.1, "from scratch": -0.2}.get(run["name"], 0.0)


def test_the_page(textbook, data_folder, tiny, tmp_path):
    pytest.importorskip("matplotlib")
    data = textbook.Sentiment(data_folder)
    wanted = {part: textbook.runs_of(part, options(tiny), data) for part in textbook.PARTS}
    assert [len(wanted[part]) for part in ("scratch", "frozen", "rates", "few")] == [60, 60, 25, 45]
    found = {
        part: [
            {"run": run, "accuracy": invented(run)}
            for run in each
            if (run["sentences"], part) != (1000, "scratch")
        ]
        for part, each in wanted.items()
    }
    page = tmp_path / "05.md"
    textbook.write_page(found, wanted, data, page)
    text = page.read_text()
    assert (
        "| Fine-tuning against training from scratch | as claimed at 50, 100, 200, 500, 5000; missing at 1000 |"
        in text
    )
    assert (
        "| Frozen layers against all layers | as claimed at 50, 100, 200; the opposite at 500, 1000, 5000 |"
        in text
    )
    assert "| The rate | not told apart at 1e-5, 3e-4, 1e-3 |" in text
    assert "Runs so far: 50 of 60." in text
    # Frozen is .8 but for the noise, whose five values 0, .01, ... .04 have the mean .02 and the deviation .0158.
    assert "0.820 ± 0.020" in text
    few_runs = found | {"scratch": found["scratch"][:4]}
    textbook.write_page(few_runs, wanted, data, page)
    assert "Not measured yet: 4 of 60 runs are done." in page.read_text()
    textbook.write_page(found, wanted, data, page)
    picture = (tmp_path / "figures" / "05.svg").read_text()
    textbook.write_page(found, wanted, data, page)
    assert (tmp_path / "figures" / "05.svg").read_text() == picture and picture.rstrip().endswith("</svg>")


def test_a_verdict_needs_five_seeds_and_an_interval_without_zero(textbook):
    from textbook_page import judge

    assert judge([0.1, 0.1, 0.1, 0.1]) == "missing"
    # Mean .02, standard error .01 (five values with deviation .02236): the interval reaches .02 ± .0278.
    spread = [0.02 + 0.02236 * z for z in (-1.2649, -0.6325, 0, 0.6325, 1.2649)]
    assert judge(spread) == "not told apart"
    assert judge([each + 0.01 for each in spread]) == "as claimed"
    assert judge([each - 0.05 for each in spread]) == "the opposite"


def test_what_ran_is_not_run_again(textbook, data_folder, tiny, tmp_path, capsys):
    data = textbook.Sentiment(data_folder)
    run = textbook.run_of("frozen", 24, 0, options(tiny, epochs=2), data)
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps({"run": run, "accuracy": 0.5, "seconds": 1.0}) + "\n")
    given = Namespace(results=results, data=data_folder)
    [found] = textbook.runs.run_missing("no such script", [run], given)
    assert found["accuracy"] == 0.5 and "0 of 1 runs to do" in capsys.readouterr().out
