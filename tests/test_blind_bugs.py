"""Each planted bug of the second set changes what it is said to change, hurts the training, can be undone, and is named
by the doctor.

That it names all ten is no measure of what it finds in bugs that it has not seen. When it first met these, whose
author had not read it, it named three: the likelihood without the minus, the optimizer before LoRA, the positions that
run on. Of two it said something else that was wrong with the loss ("scores against all labels" and "softmax for
independent labels" were `loss-not-mean`), five it did not see. It was silent on the ten set-ups without a bug. What it
knows of the seven it was taught afterwards.
"""

from collections.abc import Iterable

import numpy as np
import pytest
from blind_bugs import BUGS, Setup

import minift
from minift.nn import Parameter, evaluating

EVERYTHING = {"loss", "gradients", "updates"}
CHANGES = {
    "softmax twice": EVERYTHING,
    "scores against all labels": EVERYTHING,
    "filters in a plain list": {"updates"},
    "softmax for independent labels": EVERYTHING,
    "likelihood without the minus": EVERYTHING,
    "tags one token early": EVERYTHING | {"batch"},
    "class 0 ignored": EVERYTHING,
    "nothing masked": EVERYTHING | {"batch"},
    "optimizer before LoRA": {"updates"},
    "positions run on": EVERYTHING | {"batch"},
}
"""What differs between the set-up with the bug and the one without, in the first step."""

NAMES = {
    "softmax twice": "softmax-twice",
    "scores against all labels": "loss-across-texts",
    "filters in a plain list": "unlisted-parameters",
    "softmax for independent labels": "labels-compete",
    "likelihood without the minus": "wrong-sign",
    "tags one token early": "label-on-special-token",
    "class 0 ignored": "class-ignored",
    "nothing masked": "nothing-masked",
    "optimizer before LoRA": "not-in-optimizer",
    "positions run on": "wrong-positions",
}
"""What the doctor calls them."""

STEPS = 120


def first_step(setup: Setup, parameters: Iterable[Parameter]) -> dict[str, list[bytes]]:
    """The batch, the loss, the gradients and the updates of one step, to the bit; afterwards nothing has changed."""
    model, batch, optimizer = setup
    parameters = list(parameters)
    before = [parameter.data.copy() for parameter in parameters]
    minift.manual_seed(0)
    loss = model.loss(model(batch), batch)
    loss.backward()
    gradients = [b"" if each.grad is None else each.grad.tobytes() for each in parameters]
    optimizer.step()
    updates = [each.data.tobytes() for each in parameters]
    for parameter, data in zip(parameters, before, strict=True):
        parameter.data[...] = data
        parameter.grad = None
    optimizer.state.clear()
    arrays = [value.tobytes() for value in vars(batch).values() if isinstance(value, np.ndarray)]
    return {"batch": arrays, "loss": [loss.data.tobytes()], "gradients": gradients, "updates": updates}


def train(setup: Setup) -> None:
    minift.manual_seed(0)
    for _ in range(STEPS):
        setup.model.loss(setup.model(setup.batch), setup.batch).backward()
        setup.optimizer.step()
        setup.model.zero_grad()


def loss_of(clean: Setup, task: type) -> float:
    """Of what the model says of the clean batch in evaluation, by the task's own loss."""
    with evaluating(clean.model):
        return task.loss(clean.model, clean.model(clean.batch), clean.batch).item()


def test_there_are_ten_and_each_has_a_name():
    assert len({bug.name for bug in BUGS}) == len(BUGS) == 10


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_changes_the_first_step_and_can_be_undone(bug, tmp_path, compiled):
    setup = bug.make(tmp_path)
    parameters = list(setup.model.parameters())
    before = first_step(setup, parameters)
    with bug.plant(setup) as planted:
        during = first_step(planted, parameters)
    assert {part for part in before if during[part] != before[part]} == CHANGES[bug.name]
    assert first_step(setup, parameters) == before
    assert list(map(id, setup.model.parameters())) == list(map(id, parameters))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_hurts(bug, tmp_path, compiled):
    """The model with the bug, trained, does worse on the clean batch than one without; judged by the right loss."""
    right, wrong = bug.make(tmp_path), bug.make(tmp_path)
    task = type(right.model)
    start = loss_of(right, task)
    train(right)
    learned = loss_of(right, task)
    with bug.plant(wrong) as planted:
        train(planted)
        hurt = loss_of(wrong, task)
    print(f"{bug.name}: {start:.3f} -> {learned:.3f}, with the bug {hurt:.3f}")
    assert learned < 0.5 * start
    assert hurt > 1.5 * learned


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_doctor_names_it_and_nothing_else(bug, tmp_path, compiled):
    setup = bug.make(tmp_path)
    assert minift.doctor(*setup) == []
    with bug.plant(setup) as planted:
        assert [finding.name for finding in minift.doctor(*planted)] == [NAMES[bug.name]]
