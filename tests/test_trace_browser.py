"""The trace page in a browser: opened from the disk, it works by mouse and by keyboard, in light and in dark."""

import shutil

import pytest

import minift
from minift import trace_page

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A trace of minilm with two frozen layers."""
    minift.manual_seed(0)
    model = minift.load("minilm", labels=["negative", "positive"])
    model.body.freeze(2)
    path = tmp_path_factory.mktemp("trace") / "trace.html"
    trace_page.write_trace(model, "The plot is thin, but the actors are good.", "positive", path, "minilm")
    return path


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=[(1200, 900), (390, 800)], ids=["desk", "phone"])
def page(browser, page_file, request):
    """The page, opened; afterwards it must have asked for nothing and complained of nothing."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
    opened = context.new_page()
    asked, complaints = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(page_file.as_uri())
    yield opened
    assert asked == [page_file.as_uri()] and not complaints
    context.close()


def count(page) -> int:
    """The number of the step that is shown."""
    return int(page.locator("#count").inner_text().split("/")[0])


def test_slider_buttons_and_keys_move_through_the_steps(page):
    last = int(page.locator("#count").inner_text().split("/")[1])
    assert count(page) == 1 and page.locator("#operation").inner_text() == "cross_entropy"
    page.locator("#next").click()
    assert count(page) == 2
    page.locator("h1").click()
    for key, expected in [("ArrowRight", 3), ("ArrowLeft", 2), ("PageDown", 12), ("End", last), ("Home", 1)]:
        page.keyboard.press(key)
        assert count(page) == expected, key
    page.locator("#slider").fill(str(last - 1))
    assert count(page) == last and page.locator("#picture .current").count() == 1
    page.locator("#slider").focus()
    page.keyboard.press("ArrowLeft")
    assert count(page) == last - 1


def test_play_runs_to_the_end_and_starts_anew(page):
    page.locator("h1").click()
    page.keyboard.press("End")
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('4 ')")
    page.locator("#play").click()
    stopped = count(page)
    page.wait_for_timeout(500)
    assert count(page) == stopped < 10


def test_a_part_of_the_picture_opens_its_operations(page):
    page.locator("#picture [data-stage='5']").focus()
    page.keyboard.press("Enter")
    stage = page.locator("#stage-5")
    assert stage.get_attribute("open") is not None
    stage.locator(".operation").nth(2).click()
    current = stage.locator(".operation[aria-current]")
    assert current.count() == 1 and page.locator("#operation").inner_text() in current.inner_text()
    page.locator("#stage-0 summary").click()
    assert "nothing in it is trained" in page.locator("#stage-0").inner_text()


def test_the_theme_follows_the_system_until_the_reader_chooses(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    dark = paper()
    assert dark != light
    page.locator("#theme").click()
    assert paper() == light


def test_attention_is_drawn_and_can_be_read(page):
    def inked():
        return page.evaluate(
            "(() => { const map = document.getElementById('attention-map');"
            " const pixels = map.getContext('2d').getImageData(0, 0, map.width, map.height).data;"
            " return pixels.reduce((sum, value) => sum + value, 0); })()"
        )

    first = inked()
    page.locator("#head").select_option("3")
    assert first > 0 and inked() != first
    box = page.locator("#attention-map").bounding_box()
    page.locator("#attention-map").hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.9})
    assert "of its attention to" in page.locator("#attention-cell").inner_text()


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
