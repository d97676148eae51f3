"""Every bug of the zoo (`tutorials/bug_zoo`) changes what happens, can be undone, and is named by the doctor."""

import sys
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minift
from minift.errors import InputError
from minift.nn import Parameter, evaluating

sys.path.append(str(Path(__file__).parents[1] / "tutorials"))

from bug_zoo import PLANTS, Plant, Setup

PLACES = 3
ORDINARY = {next(group) for _, group in groupby(PLANTS, key=lambda plant: plant.name)}
"""One place of each bug; the others are for the slow tests."""

UNSEEN_AT_FIRST = {
    "not-in-optimizer", "foreign-parameters", "does-not-move", "gradients-not-zeroed", "rate-too-high",
    "rate-too-low", "missing-bias-correction", "wrong-update", "decayed-norms", "frozen-head", "wrong-gradient",
    "no-gradient", "untied-embeddings",
}  # fmt: skip
"""Bugs that leave the batch and its first loss as they are, to the bit."""

in_every_place = pytest.mark.parametrize(
    "plant",
    [
        pytest.param(
            plant,
            id=f"{plant.name}: {plant.place}",
            marks=() if plant in ORDINARY else pytest.mark.slow,
        )
        for plant in PLANTS
    ],
)


def identity(make: Any) -> str:
    """What tells one clean set-up from another: sentiment bert method=lora rank=4."""
    options = [f"{name}={value}" for name, value in make.keywords.items()]
    return " ".join([make.func.__name__, *make.args, *options])


MAKERS = {identity(plant.make): plant.make for plant in PLANTS}
OFTEN_MADE = {identity(plant.make) for plant in ORDINARY}


# ---- What a set-up does --------------------------------------------------------------------------


def bits(arrays: Iterable[Any]) -> list[bytes]:
    return [b"" if array is None else np.asarray(array).tobytes() for array in arrays]


def what_happens(setup: Setup) -> dict[str, list[bytes]]:
    """To the bit: the batch, its loss, gradients and updates in two steps, and what evaluation says of it.

    Afterwards the parameters are as they were, and have no gradient but those that they came with.
    """
    model, batch, optimizer = setup
    named = dict(model.named_parameters())
    before = {name: (each.data, each.data.copy(), each.grad) for name, each in named.items()}
    arrays = [each for each in vars(batch).values() if isinstance(each, np.ndarray)]
    happened: dict[str, list[bytes]] = {"batch": bits(arrays)}
    try:
        for step in ("first", "second"):
            minift.manual_seed(0)
            loss = model.loss(model(batch), batch)
            loss.backward()
            happened[f"{step} loss"] = bits([loss.data])
            happened[f"{step} gradients"] = bits(each.grad for each in named.values())
            optimizer.step()
            happened[f"{step} updates"] = bits(each.data for each in named.values())
            optimizer.zero_grad()
        with evaluating(model):
            happened["evaluation"] = bits([model(batch).data])
    except InputError as refused:
        happened["refused"] = [str(refused).encode()]
    finally:
        for name, (array, values, gradient) in before.items():
            array[...] = values
            named[name].data, named[name].grad = array, gradient
        optimizer.state.clear()
    return happened


def owned(setup: Setup) -> dict[str, int]:
    """The identity of all that a patch could change: attributes of modules and classes of minift, and of the set-up."""
    model = setup.model
    places: dict[str, Any] = {
        name: module for name, module in sys.modules.items() if name.startswith("minift")
    }
    for name, module in list(places.items()):
        classes = {key: value for key, value in vars(module).items() if isinstance(value, type)}
        places |= {f"{name}.{key}": value for key, value in classes.items() if value.__module__ == name}
    places["optimizer"] = setup.optimizer
    places |= {f"model {path}": module for path, module in model.named_modules()}
    places |= {f"parameter {path}": parameter for path, parameter in model.named_parameters()}
    return {
        f"{place} {key}": id(value) for place, each in places.items() for key, value in slots(each).items()
    }


def slots(owner: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(owner).items()
        if not key.startswith("__") and not (isinstance(owner, Parameter) and key == "grad" and value is None)
    }


# ---- The tests -----------------------------------------------------------------------------------


def test_there_are_at_least_28_bugs_in_three_places_each():
    places = Counter(plant.name for plant in PLANTS)
    assert len(places) >= 28
    assert set(places.values()) == {PLACES}
    assert len({(plant.name, plant.place) for plant in PLANTS}) == len(PLANTS)
    assert len({plant.plant for plant in PLANTS}) == len(PLANTS)


@pytest.mark.parametrize("name", sorted({plant.name for plant in PLANTS}))
def test_its_places_differ(name):
    """Another family, task or method each time."""
    places = [identity(plant.make) for plant in PLANTS if plant.name == name]
    assert len(set(places)) == PLACES


@in_every_place
def test_it_changes_what_happens_and_can_be_undone(plant: Plant, tmp_path, compiled):
    setup = plant.make(tmp_path)
    clean, owned_before = what_happens(setup), owned(setup)
    assert "refused" not in clean
    with plant.plant(setup) as planted:
        ill = what_happens(planted)
    changed = {part for part in clean.keys() | ill.keys() if clean.get(part) != ill.get(part)}
    print(plant.name, plant.place, sorted(changed))
    assert changed
    if plant.name in UNSEEN_AT_FIRST:
        assert not changed & {"batch", "first loss"}
    assert owned(setup) == owned_before
    assert what_happens(setup) == clean


@in_every_place
def test_it_is_undone_after_an_error(plant: Plant, tmp_path, compiled):
    setup = plant.make(tmp_path)
    owned_before = owned(setup)
    with pytest.raises(ZeroDivisionError), plant.plant(setup):
        _ = 1 / 0
    assert owned(setup) == owned_before


@in_every_place
def test_the_doctor_names_it(plant: Plant, tmp_path, compiled):
    from minift import doctor

    setup = plant.make(tmp_path)
    with plant.plant(setup) as planted:
        findings = doctor(*planted)
    assert plant.name in {finding.name for finding in findings}, findings


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in OFTEN_MADE else pytest.mark.slow)
        for name, make in MAKERS.items()
    ],
)
def test_the_doctor_is_silent_where_nothing_is_wrong(make, tmp_path, compiled):
    from minift import doctor

    assert doctor(*make(tmp_path)) == []
