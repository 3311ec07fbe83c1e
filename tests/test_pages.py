"""The built book in a browser without network: no script error, sliders that move, nothing cut off on a phone.

`make test` names the folder of the built pages in DEFECTDIFFU_HTML. Saved next to it: screenshots of every page, wide,
dark and narrow; in pages.txt how long each page is and where its first figure is. Skipped without such a folder,
Chromium or playwright.
"""

import os
import shutil
from pathlib import Path

import pytest

if "DEFECTDIFFU_HTML" not in os.environ:
    pytest.skip("no built pages: DEFECTDIFFU_HTML names none, `make test` builds them", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pages are not opened: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("pages are not opened: no Chromium, for instance `apt-get install chromium`", allow_module_level=True)

HTML = Path(os.environ["DEFECTDIFFU_HTML"]).resolve()
SCREENSHOTS = HTML.parent / "screenshots"
MEASURES = HTML.parent / "pages.txt"
ENTRANCE = HTML / "index.html"  # an empty page that only leads to the home page
PAGES = [page for page in sorted(HTML.rglob("*.html")) if page != ENTRANCE and "_static" not in page.parts]
WITH_SLIDER = [page for page in PAGES if 'aria-label="play"' in page.read_text()]
WITH_EXPLORER = [page for page in PAGES if "onpointerdown=" in page.read_text()]
WIDE, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}

# Elements beyond the right edge that are not in a scrolling box. Text only for screen readers has 1 pixel.
CUT_OFF = """() => {
    const scrolls = element => ['auto', 'scroll'].includes(getComputedStyle(element).overflowX);
    const boxed = element => element && (scrolls(element) || boxed(element.parentElement));
    const page = document.documentElement;
    return [...document.querySelectorAll('article *')]
        .filter(element => {
            const box = element.getBoundingClientRect();
            return box.width > 1 && box.right > page.clientWidth + 1 && !boxed(element.parentElement);
        })
        .map(element => `${element.tagName} ${element.className}: ${element.textContent.slice(0, 60)}`)
        .concat(page.scrollWidth > page.clientWidth ? [`the page is ${page.scrollWidth} pixels wide`] : []);
}"""

# Words outside code, code cells, and pixels from the page's top to its first figure.
MEASURE = """() => {
    const words = element => element.innerText.split(/\\s+/).filter(Boolean).length;
    const article = document.querySelector('article') ?? document.body;  // the search page has none
    const code = [...article.querySelectorAll('pre')].reduce((sum, element) => sum + words(element), 0);
    const figures = [...article.querySelectorAll('img, svg, figure')]
        .map(element => element.getBoundingClientRect()).filter(box => box.width > 200);
    return [words(article) - code, article.querySelectorAll('div.cell').length,
            figures.length ? Math.round(Math.min(...figures.map(box => box.top + scrollY))) : null];
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A new tab without network; `tab.troubles` lists script errors, missing files and calls for a server."""
    context = browser.new_context(viewport=WIDE, offline=True, has_touch=True)
    context.set_default_timeout(120_000)  # milliseconds: a busy machine is slow
    tab = context.new_page()
    tab.troubles = []
    tab.on("pageerror", lambda error: tab.troubles.append(f"script: {error}"))
    tab.on("console", lambda said: said.type == "error" and tab.troubles.append(f"console: {said.text}"))
    tab.on("requestfailed", lambda request: tab.troubles.append(f"not loaded: {request.url}"))
    tab.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:", "blob:")) or tab.troubles.append(f"server: {request.url}")
        ),
    )
    yield tab
    context.close()


@pytest.fixture(scope="module")
def measures():
    """Adds a line to pages.txt."""
    MEASURES.write_text(f"{'page':40}{'words':>8}{'minutes':>9}{'code cells':>12}{'first figure':>14}\n")

    def add(line: str) -> None:
        with MEASURES.open("a") as file:
            print(line, file=file)

    return add


def name(page: Path) -> str:
    return page.relative_to(HTML).with_suffix("").as_posix()


def test_entrance_leads_home(tab):
    tab.goto(ENTRANCE.as_uri())
    tab.wait_for_url("**/book/index.html")
    assert tab.locator("article h1").is_visible()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page(tab, measures, page):
    picture = SCREENSHOTS / name(page)
    tab.goto(page.as_uri())
    tab.screenshot(path=picture.with_name(f"{page.stem}_wide.png"), full_page=True)
    words, cells, figure = tab.evaluate(MEASURE)
    measures(f"{name(page):40}{words:8}{words / 200:9.0f}{cells:12}{'none' if figure is None else figure:>14}")
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.screenshot(path=picture.with_name(f"{page.stem}_dark.png"), full_page=True)
    plots = "[...document.querySelectorAll('.tag_plot img')].map(image => getComputedStyle(image).filter)"
    assert all("invert" in found for found in tab.evaluate(plots)), "plots are dark on a dark page"
    tab.evaluate("document.documentElement.dataset.theme = 'light'")
    tab.set_viewport_size(PHONE)
    tab.screenshot(path=picture.with_name(f"{page.stem}_narrow.png"), full_page=True)
    assert not tab.troubles
    assert not tab.evaluate(CUT_OFF)


def test_some_pages_have_a_slider_an_explorer_and_a_plot():
    assert WITH_SLIDER and WITH_EXPLORER
    assert any("tag_plot" in page.read_text() for page in PAGES)


@pytest.mark.parametrize("page", WITH_SLIDER, ids=name)
def test_sliders_move_by_mouse_finger_and_keyboard(tab, page):
    tab.goto(page.as_uri())
    for figure in tab.locator("figure:has(button[aria-label=play])").all():
        control, text = figure.locator("input[type=range]"), figure.locator("output")
        frames = figure.locator("img").all()
        last = len(frames) - 1

        def shown(frames=frames):
            return [i for i, frame in enumerate(frames) if frame.is_visible()]

        def point(share: float, control=control) -> tuple[float, float]:
            control.scroll_into_view_if_needed()
            box = control.bounding_box()
            return box["x"] + share * box["width"], box["y"] + box["height"] / 2

        (start,) = shown()
        said = {start: text.inner_text()}
        tab.mouse.move(*point(0.02 + 0.96 * start / last))
        tab.mouse.down()
        tab.mouse.move(*point(0.99), steps=5)
        tab.mouse.up()
        assert shown() == [last]
        said[last] = text.inner_text()
        tab.touchscreen.tap(*point(0.01))
        assert shown() == [0]
        said[0] = text.inner_text()
        control.press("ArrowRight")
        assert shown() == [1]
        said[1] = text.inner_text()
        assert len(set(said.values())) == len(said)
        assert control.get_attribute("aria-valuetext") == said[1]
        play, value = figure.get_by_role("button", name="play"), control.input_value()
        play.click()
        tab.wait_for_function("([range, value]) => range.value !== value", arg=[control.element_handle(), value])
        play.click()
    assert not tab.troubles


@pytest.mark.parametrize("page", WITH_EXPLORER, ids=name)
def test_explorers_move_in_two_directions_by_mouse_finger_and_keyboard(tab, page):
    tab.set_viewport_size(PHONE)
    tab.goto(page.as_uri())
    for figure in tab.locator("figure:has([onpointerdown])").all():
        frames, text, plane = figure.locator("img").all(), figure.locator("output"), figure.locator("svg")
        w_p, w_d = figure.locator("input[type=range]").all()
        most_p, most_d = (int(control.get_attribute("max")) for control in (w_p, w_d))
        point, dots = plane.locator(":scope > circle").last, plane.locator("circle[r='2']").all()

        def at(frames=frames, w_p=w_p, w_d=w_d, most_d=most_d):
            """Indices of w_p and w_d; the frame shown is theirs."""
            i, j = (int(control.input_value()) for control in (w_p, w_d))
            assert [k for k, frame in enumerate(frames) if frame.is_visible()] == [i * (most_d + 1) + j]
            return i, j

        def middle(element):
            box = element.bounding_box()
            return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        plane.scroll_into_view_if_needed()
        tab.mouse.move(*middle(point))
        tab.mouse.down()
        tab.mouse.move(*middle(dots[-1]), steps=5)
        tab.mouse.up()
        assert at() == (most_p, most_d)
        assert middle(point) == pytest.approx(middle(dots[-1]), abs=1)
        far = text.inner_text()
        tab.mouse.move(*middle(dots[0]))  # no button: nothing moves
        assert at() == (most_p, most_d)
        tab.touchscreen.tap(*middle(dots[0]))
        assert at() == (0, 0)
        assert text.inner_text() != far
        w_p.press("ArrowRight")
        w_d.press("ArrowRight")
        assert at() == (1, 1)
        assert w_p.get_attribute("aria-valuetext") == w_d.get_attribute("aria-valuetext") == text.inner_text()
    assert not tab.troubles
