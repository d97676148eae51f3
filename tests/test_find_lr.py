"""The learning-rate finder: the grid is real fine-tuning, and a rate is suggested only where two ways agree."""

import math

import pytest

import minift
from minift.find_lr import (
    PAGE,
    RATES,
    FoundRate,
    RateSearch,
    dev_loss,
    find_lr,
    grid,
    page,
    range_test,
    verdict,
)

STEPS_PER_EPOCH = 10


def search(tiny, out, **changes) -> RateSearch:
    examples = len(minift.Dataset(tiny / "train.tsv"))
    options = {
        "model": str(tiny / "model"), "train": tiny / "train.tsv", "dev": tiny / "dev.tsv", "out": out,
        "batch_size": math.ceil(examples / STEPS_PER_EPOCH), "steps": 2 * STEPS_PER_EPOCH, **changes,
    }  # fmt: skip
    return RateSearch(**options)


def test_a_run_of_the_grid_is_a_fine_tuning(tiny, tmp_path, compiled):
    config = search(tiny, tmp_path)
    told = {name: getattr(config, name) for name in ("model", "train", "dev", "batch_size")}
    tuned = minift.finetune(minift.TrainingConfig(**told, out=tmp_path, epochs=2, learning_rate=3e-3))
    assert dev_loss(config, 3e-3) == tuned["after"]["loss"]


def test_the_rates_rise_until_the_loss_explodes(tiny, tmp_path, compiled):
    rates, losses = range_test(search(tiny, tmp_path, steps=60))
    assert rates[0] == RATES[0] and rates == sorted(rates) and len(rates) == len(losses)
    assert max(losses) < 4 * min(losses)
    assert (rates, losses) == range_test(search(tiny, tmp_path, steps=60))


@pytest.mark.parametrize("best", [1e-4, 1e-5, 1e-2])
def test_the_grid_goes_on_where_its_best_stands_at_an_end(best):
    found = grid(lambda rate: abs(math.log(rate / best)))
    assert min(found, key=lambda rate: found[rate]) == best
    index = RATES.index(best)
    assert RATES[index - 1] in found and RATES[index + 1] in found
    assert len(found) <= 8


def found_with(range_rate: float | None, grid_rate: float) -> FoundRate:
    falls = range_rate is not None
    return FoundRate(
        [1e-6, 10 * range_rate if range_rate else 1e-3],
        [1.0, 0.5 if falls else 2.0],
        grid(lambda rate: abs(math.log(rate / grid_rate))),
    )


@pytest.mark.parametrize(
    ("range_rate", "grid_rate", "suggestion", "said"),
    [
        (1e-4, 1e-4, 1e-4, "Suggestion: 1e-04"),
        (2.9e-4, 1e-4, 1e-4, "Suggestion: 1e-04"),
        (3.4e-5, 1e-4, 1e-4, "Suggestion: 1e-04"),
        (1e-3, 1e-5, None, "the range test reads 1.0e-03, but 1e-05 did best"),
        (3.1e-4, 1e-4, None, "a factor of 3.1 apart"),
        (None, 1e-4, None, "never fell"),
        (1e-4, 1e-9, None, "the best may lie beyond"),
    ],
)
def test_it_suggests_only_what_both_say(range_rate, grid_rate, suggestion, said):
    found = found_with(range_rate, grid_rate)
    assert found.suggestion == suggestion
    assert said in verdict(found) and verdict(found) in page(found)


@pytest.mark.parametrize(
    ("losses", "best", "said"),
    [
        ([math.inf] * 3, None, "infinite or no number at all rates"),
        ([0.7, 0.7, 0.7], None, "the loss on the dev set is 0.7 at all rates of the grid"),
        ([0.7, 0.7, math.inf], None, "the loss on the dev set is 0.7 at all rates of the grid"),
        ([math.inf, 0.7, math.inf], 1e-4, "Suggestion: 1e-04"),
    ],
)
def test_no_rate_is_best_where_none_is_better(losses, best, said):
    found = FoundRate([1e-6, 1e-3], [1.0, 0.5], dict(zip((3e-5, 1e-4, 3e-4), losses, strict=True)))
    assert found.grid_rate == best and said in verdict(found)


def test_a_rate_that_leaves_the_numbers_is_the_worst(tiny, tmp_path, compiled):
    assert dev_loss(search(tiny, tmp_path, max_grad_norm=1e30), 1e30) == math.inf


def test_out_is_looked_at_before_any_run(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(minift.InputError, match="file: cannot be made a directory"):
        find_lr(search(tiny, tmp_path / "file", model="no model, so no run"))


def test_a_loss_that_is_zero_throughout(tiny, tmp_path, compiled, caplog):
    one = tmp_path / "one.conll"
    one.write_text("film\tO\n\n" * 20)
    options = {"model": str(tiny / "body"), "task": "token-classification", "train": one, "dev": one}
    found = find_lr(search(tiny, tmp_path, **options, steps=10))
    assert set(found.grid.values()) == {0.0} and found.suggestion is None
    assert len(caplog.messages) == 1, "every run of the search says the same of the new head"
    assert "the loss on the dev set is 0 at all rates" in (tmp_path / PAGE).read_text()


def test_a_model_that_is_no_number_from_the_start(tiny, tmp_path, compiled):
    model = minift.load(tiny / "model")
    model.classifier.weight.data[:] = math.nan
    model.save(tmp_path / "model")
    with pytest.raises(minift.InputError, match="model: the loss of the first batch is nan, before any step"):
        range_test(search(tiny, tmp_path, model=str(tmp_path / "model")))


def test_the_command_line(tiny, tmp_path, capsys, compiled):
    from minift.cli import main

    files = [
        "--train",
        str(tiny / "train.tsv"),
        "--dev",
        str(tiny / "dev.tsv"),
        "--out",
        str(tmp_path / "rate"),
    ]
    assert main(["find-lr", "--model", str(tiny / "model"), *files, "--steps", "12"]) == 0
    written = (tmp_path / "rate" / "find_lr.md").read_text()
    assert written in capsys.readouterr().out and "The grid" in written


def test_it_has_no_option_that_it_does_not_use(run):
    status, printed, _ = run("find-lr", "--help")
    assert status == 0 and "--steps" in printed and "--batch-size" in printed
    unused = "epochs learning-rate save-every resume overwrite watch port tensorboard".split()
    assert not [name for name in unused if f"--{name}" in printed]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dev": None}, "find-lr needs --dev"), ({"steps": 3}, "steps is 3, expected 10 or more")],
)
def test_bad_input(tiny, tmp_path, changes, message):
    with pytest.raises(minift.InputError) as caught:
        find_lr(search(tiny, tmp_path, **changes))
    assert message in str(caught.value)
