"""The report in a browser: from the disk and, while a real process trains, from that process."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from command import ROOT, finetune_options
from test_report import data_of
from test_trace_browser import browser  # noqa: F401
from tiny import rows, write_tsv

from minift.train import TrainingConfig, finetune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory):
    """A finished run of 40 steps whose embeddings and first layer are frozen."""
    out = tmp_path_factory.mktemp("report") / "out"
    finetune(
        TrainingConfig(
            model=str(tiny / "model"), train=tiny / "train.tsv", dev=tiny / "dev.tsv", out=out, epochs=5,
            batch_size=8, learning_rate=3e-3, method="frozen", method_options=("layers=1",),
        )
    )  # fmt: skip
    return out


@pytest.fixture(params=[(1200, 900), (390, 800)], ids=["desk", "phone"])
def page(browser, directory, request):  # noqa: F811
    """The page, opened; afterwards it must have asked for nothing and complained of nothing."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
    opened = context.new_page()
    asked, complaints = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    address = (directory / "report.html").as_uri()
    opened.goto(address)
    yield opened
    assert asked == [address] and not complaints
    context.close()


def test_curves_are_read_by_key_and_by_pointing(page, directory):
    losses = data_of(directory)["curves"]["loss"]
    curve = page.locator("#curve-loss")
    readout = page.locator("figure:has(#curve-loss) .readout")
    curve.focus()
    for key, step in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("PageDown", 12),
        ("End", 40),
        ("ArrowLeft", 39),
        ("Home", 1),
    ]:
        page.keyboard.press(key)
        assert readout.inner_text().startswith(f"step {step}: each step {losses[step - 1]:.4g}"[:22]), key
    box = curve.bounding_box()
    curve.hover(position={"x": box["width"] - 14, "y": box["height"] / 2})
    assert readout.inner_text().startswith("step 40: ")
    assert page.locator("figure:has(#curve-loss) .key").count() == 2, "two lines have a legend"
    assert page.locator("figure:has(#curve-rate) .key").count() == 0


def test_the_heat_map_is_read_by_key_and_by_pointing(page, directory):
    data = data_of(directory)
    said = page.locator("#heat-cell")
    page.locator("#heat-map").focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() == "embeddings, step 8: update / weight frozen"
    for _ in range(2):
        page.keyboard.press("ArrowUp")
    one = data["measured"][0]

    def shown() -> float:
        return float(re.fullmatch(r"layer 1, step 8: [a-z/ ]+ ([-.e\d]+)", said.inner_text())[1])

    assert shown() == pytest.approx(one["update"][2] / one["weight"][2], rel=1e-2)
    page.locator("#quantity").select_option("gradient")
    assert shown() == pytest.approx(one["gradient"][2], rel=1e-2)
    cells = page.locator("#heat-map rect.cell:not(.current)")
    assert cells.count() == 4 * len(data["measured"])
    cells.last.hover()
    assert said.inner_text().startswith(f"head, step {data['measured'][-1]['step']}: gradient norm ")
    fills = page.evaluate(
        "[...document.querySelectorAll('#heat-map rect.cell')].map((each) => getComputedStyle(each).fill)"
    )
    assert fills[0] == "none" and len(set(fills)) > 3


def test_tables_show_what_the_data_says(page, directory):
    data = data_of(directory)
    for side in ("before", "after"):
        table = page.locator("#outcomes table", has_text=f"{side.capitalize()} training")
        numbers = [int(text) for text in table.locator("td").all_inner_texts()]
        assert numbers == [count for row in data["outcomes"][side]["counts"] for count in row]
    assert page.locator("#changed tbody tr").count() == len(data["changed"]["examples"])
    assert page.locator("#command").inner_text() == data["command"]
    assert "Finished: 40 steps" in page.locator("#state").inner_text()


def test_the_theme_follows_the_system_until_the_reader_chooses(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert paper() != light
    page.locator("#theme").click()
    assert paper() == light


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for drawing in page.locator("svg").all():
        box = drawing.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]


# ---- A real process ----


def start(*arguments) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "minift", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def address_of(process: subprocess.Popen) -> str:
    for line in process.stderr:
        if found := re.search(r"watch it at (\S+)", line):
            return found[1]
    raise AssertionError("the process said no address")


def steps_shown(page) -> int:
    return int(
        re.search(r"step (\d+) of|Finished: (\d+)", page.locator("#state").inner_text()).expand(r"\1\2")
    )


def test_watching_a_process_that_trains(tiny, tmp_path, browser):  # noqa: F811
    train = write_tsv(tmp_path / "train.tsv", rows(600, seed=1))
    process = start(*finetune_options(tiny, tmp_path / "out", train=train, epochs=8, batch_size=2), "--watch")
    try:
        context = browser.new_context(viewport={"width": 390, "height": 700})
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address_of(process))
        page.locator("#quantity").select_option("update")
        page.locator("#heat-map").focus()
        page.keyboard.press("ArrowRight")
        page.evaluate("scrollTo(0, 900)")
        place = page.evaluate("[scrollY, document.activeElement.id]")
        first = steps_shown(page)
        page.wait_for_function(
            "(first) => Number(/step (\\d+)/.exec(document.getElementById('state').textContent)?.[1]) > first",
            arg=first,
            timeout=60_000,
        )
        assert page.evaluate("[scrollY, document.activeElement.id]") == place
        assert page.locator("#quantity").input_value() == "update"
        page.wait_for_function(
            "document.getElementById('state').textContent.startsWith('Finished')", timeout=200_000
        )
        assert steps_shown(page) == 2400
        assert page.locator("#changed tbody tr").count() > 0 and not complaints
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        shown = page.evaluate("data")
        assert shown == data_of(tmp_path / "out")
        context.close()
    finally:
        process.kill()


def test_killed_and_resumed_the_curves_are_those_of_a_run_that_was_not(tiny, tmp_path):
    train = write_tsv(tmp_path / "train.tsv", rows(320, seed=1))

    def options(name, **more):
        return finetune_options(
            tiny, tmp_path / name, train=train, epochs=3, batch_size=4, save_every=7, **more
        )

    whole = start(*options("whole"))
    _, stderr = whole.communicate(timeout=200)
    assert whole.returncode == 0, stderr
    for steps in (30, 120, 200):
        killed = start(*options("parts"), "--resume")
        log = tmp_path / "parts" / "train_log.jsonl"
        until = time.monotonic() + 100
        while time.monotonic() < until and (not log.exists() or log.read_bytes().count(b"\n") < steps):
            time.sleep(0.002)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
    last = start(*options("parts"), "--resume")
    _, stderr = last.communicate(timeout=200)
    assert last.returncode == 0, stderr
    one, other = data_of(tmp_path / "whole"), data_of(tmp_path / "parts")
    del one["command"], other["command"]
    assert json.dumps(one) == json.dumps(other)
