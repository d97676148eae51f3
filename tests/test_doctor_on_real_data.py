"""The doctor is silent on the recipes of `benchmarks/`, on real texts: those that tasks and methods are compared by."""

import sys
from pathlib import Path

import pytest

import minift
from minift.data import Columns
from minift.methods import parse_options
from minift.tasks import TASKS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import methods
import task_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def case_of(folder: Path, shared_data: Path, data: str, seed: int, method: str, options=(), rate=None):
    """(model, batch, optimizer) before the first step of a recipe."""
    recipe = task_data.RECIPES[data]
    task = TASKS[recipe.task]
    examples = task.read(task_data.write_split(data, shared_data, folder, None).train, Columns())
    minift.manual_seed(seed)
    model = minift.load("minilm", recipe.task, task.labels_in(examples), recipe.max_length, new_head=True)
    model.prepare(examples)
    made = minift.apply_method(model, method, **parse_options(options))
    optimizer = minift.AdamW(made.parameter_groups(model, rate or recipe.learning_rate, 0.01))
    made.start_epoch(model, 0)
    return model, next(model.batches(examples, recipe.batch_size, seed=seed)), optimizer


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("data", list(task_data.RECIPES))
def test_silent_on_every_task(tmp_path, shared_data, data, seed):
    assert minift.doctor(*case_of(tmp_path, shared_data, data, seed, "full")) == []


@pytest.mark.parametrize("name", list(methods.RECIPES))
def test_silent_on_every_method(tmp_path, shared_data, name):
    assert minift.doctor(*case_of(tmp_path, shared_data, "sst2", 0, *methods.RECIPES[name])) == []
