"""Breakpoints in the backward pass open the debugger where they should, before anything is handed on."""

import sys
import threading

import numpy as np
import pytest

import minift
from minift import Tensor


@pytest.fixture
def stops(monkeypatch):
    """What `breakpoint()` would show: the local variables of each place where it was called."""
    found = []

    def hook():
        assert threading.current_thread() is threading.main_thread()
        found.append(dict(sys._getframe(1).f_locals))

    monkeypatch.setattr(sys, "breakpointhook", hook)
    yield found
    minift.clear_breakpoints()


@pytest.fixture
def model(tiny):
    return minift.load(tiny / "model").eval()


def test_stops_at_an_operation_of_a_module_before_its_gradients_arrive(stops, model, capsys):
    attention = model.bert.encoder.layer[0].attention.self
    seen = []
    minift.set_breakpoint(op="attention", module="*.layer.0.*")
    minift.set_breakpoint(op="linear", module="*.query", when=lambda step: seen.append(step) or False)
    minift.cross_entropy(model("a good film"), "positive").backward()
    (stop,) = stops
    assert stop["node"].module == "bert.encoder.layer.0.attention.self"
    assert stop["dy"].shape == (5, 24)
    assert list(stop["contributions"]) == ["q", "k", "v"]
    for again, sent in zip(stop["backward"](stop["dy"]), stop["contributions"].values(), strict=True):
        np.testing.assert_array_equal(again, sent)
    assert len(seen) == 2, "when is asked only where op and module fit"
    assert attention.query.weight.grad is not None
    assert "breakpoint: op attention, module *.layer.0.*" in capsys.readouterr().out


def test_nothing_has_arrived_when_it_stops(monkeypatch):
    x = Tensor([3.0], requires_grad=True)
    at_the_stop = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: at_the_stop.append(x.grad))
    made = minift.set_breakpoint(when=lambda step: abs(step.contributions[0]).max() > 5)
    try:
        (x * x).sum().backward()
    finally:
        minift.clear_breakpoints()
    assert str(made).startswith("when ")
    assert at_the_stop == []  # each of the two contributions is 3
    minift.set_breakpoint(op="mul")
    try:
        (x * x).sum().backward()
    finally:
        minift.clear_breakpoints()
    assert at_the_stop == [np.float32(6)], "what the first pass left; nothing of the second"


def test_on_nan_stops_once_where_finite_numbers_turn_bad(stops):
    x = Tensor([0.0, 4.0], requires_grad=True)
    loss = ((x**0.5) * 2.0).exp().sum()
    with np.errstate(divide="ignore"):
        loss.backward(breakpoint_on="nan")
    (stop,) = stops
    assert stop["node"].operation == "pow"
    assert np.isfinite(stop["dy"]).all()
    assert not np.isfinite(stop["contributions"]["x"]).all()


def test_finite_gradients_never_stop(stops, model):
    minift.cross_entropy(model("a good film"), "positive").backward(breakpoint_on="nan")
    assert stops == []


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="op, module, when"):
        minift.set_breakpoint()
    with pytest.raises(ValueError, match="'zero'"):
        (Tensor([1.0], requires_grad=True) * 2).backward(breakpoint_on="zero")
