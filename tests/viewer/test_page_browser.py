"""The page in a browser, against the real server: what a user sees, clicks and types."""

import shutil
import sys
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from view_slide import write_results  # noqa: E402

from cellvit.labels import read_labels  # noqa: E402
from cellvit.viewer import vendor  # noqa: E402
from cellvit.viewer.serve import ViewServer  # noqa: E402

CHROMIUM = shutil.which("chromium")
SIDE, NUCLEI = 1024, 400
SETTLED = "() => globalThis.cellvitPage?.()?.view.settled"
HTML_NAME = "<b>Bold</b>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH"),
    pytest.mark.skipif(bool(vendor.missing()), reason=f"the page lacks its scripts: {vendor.FETCH_COMMAND}"),
    # chromium and its driver are processes of their own, whose pipes are closed after the loop that reads them
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("drawn"), side=SIDE, nuclei=NUCLEI)


@pytest.fixture(scope="module")
def server():
    with ViewServer() as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        arguments = ["--headless", "--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared(browser, server, results):
    """One page on the drawn slide, and every address that it asked for."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.set_default_timeout(15_000)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.show([results]).address)
    page.wait_for_function(SETTLED)
    page.asked, page.wrong = asked, wrong
    return page


@pytest.fixture
def page(shared):
    """The page as when it was opened."""
    shared.evaluate("location.hash = `#slide=${cellvitPage().slide.id}`")
    shared.evaluate("cellvitPage().setTool('move')")
    shared.wait_for_function("() => cellvitPage().state.scale !== null && cellvitPage().view.settled")
    total(shared, NUCLEI)
    yield shared
    assert shared.wrong == []


def total(page, number):
    """Wait until so many nuclei are in view."""
    page.wait_for_function(
        "(text) => document.querySelector('.total').textContent.startsWith(text)", arg=f"{number:,} of"
    )


def fewer(page, number):
    """Wait until some but fewer nuclei are in view."""
    shown = "parseInt(document.querySelector('.total').textContent)"
    page.wait_for_function(f"(most) => {shown} > 0 && {shown} < most", arg=number)


def place_of(page, index):
    """Return row and place on the page of a nucleus on the screen."""
    return page.evaluate(
        """(index) => {
          const { nuclei } = cellvitPage().view;
          const tile = nuclei.tiles[0];
          const [x, y] = cellvitPage().view.onPage(tile.corner[0] + tile.x[index], tile.corner[1] + tile.y[index]);
          return { row: tile.row[index], x, y };
        }""",
        index,
    )


def labels_of(page):
    return page.evaluate("Object.fromEntries(cellvitPage().labels.labels)")


def test_slide_and_nuclei_are_shown_and_nothing_is_fetched_from_elsewhere(page, results):
    assert page.inner_text("#title") == "slide.tif"
    shown = page.evaluate("cellvitPage().view.nuclei.tiles.reduce((sum, tile) => sum + tile.count, 0)")
    assert shown == NUCLEI
    pixels = page.evaluate("""() => {
      const { nuclei, screen } = cellvitPage().view;
      const { gl } = nuclei.layer;
      nuclei.draw(screen);
      const all = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
      gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, all);
      const wanted = nuclei.slide.nuclei.classes.map(({ color }) => parseInt(color.slice(1), 16));
      const found = new Set();
      for (let i = 0; i < all.length; i += 4) {
        if (all[i + 3] === 255) found.add((all[i] << 16) | (all[i + 1] << 8) | all[i + 2]);
      }
      return wanted.filter((color) => found.has(color)).length / wanted.length;
    }""")
    assert pixels == 1  # every type's own colour is on the canvas
    assert any("/image/" in url for url in page.asked)
    elsewhere = [url for url in page.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert elsewhere == []
    assert page.locator(".scalebar").inner_text().endswith("µm")


def test_colours_and_filters(page):
    page.select_option("#colorchoice", label="Area")
    page.wait_for_function("() => cellvitPage().view.nuclei.tiles.every((tile) => tile.value)")
    assert page.locator(".ramp").is_visible()
    assert "color=area_um2" in page.url or page.wait_for_url("**color=area_um2**") is None
    box = page.locator(".types input").first
    counts = [int(text.replace(",", "")) for text in page.locator(".types .number").all_inner_texts()]
    assert sum(counts) == NUCLEI
    box.uncheck()
    total(page, NUCLEI - counts[0])
    page.locator(".types .only").first.click()
    total(page, counts[0])
    page.get_by_role("button", name="Clear all").click()
    page.get_by_label("Area, at least").fill("40")
    page.get_by_label("Area, at least").press("Enter")
    fewer(page, NUCLEI)
    page.wait_for_function("() => location.hash.includes('only.area_um2=40')")
    page.wait_for_function(SETTLED)
    drawn = page.evaluate("Math.min(...cellvitPage().view.nuclei.tiles.flatMap((tile) => [...tile.value]))")
    assert drawn >= 40


def test_region_is_drawn_and_kept_in_the_address(page):
    page.keyboard.press("f")
    left, top = page.evaluate("cellvitPage().view.onPage(0, 0)")
    right, bottom = page.evaluate("cellvitPage().view.onPage(512, 512)")
    page.mouse.move(left + 1, top + 1)
    page.mouse.down()
    page.mouse.move(right, bottom, steps=3)
    page.mouse.up()
    fewer(page, NUCLEI / 2)
    page.wait_for_function("() => location.hash.includes('region=')")
    assert page.locator("svg.overlay .region:not(.under)").count() == 1


def test_click_and_keys_tell_of_a_nucleus(page):
    target = place_of(page, 5)
    page.mouse.click(target["x"], target["y"])
    page.wait_for_selector(".nucleus .headline")
    assert page.evaluate("cellvitPage().nucleus.nucleus.row") == target["row"]
    assert page.locator("svg.overlay .selected").count() == 2
    page.locator(".neighbors button").first.click()
    page.wait_for_function("(row) => cellvitPage().nucleus.nucleus.row !== row", arg=target["row"])
    page.focus("#picture")
    page.keyboard.press("Escape")
    assert not page.locator(".nucleus").is_visible()
    page.wait_for_timeout(600)  # the view has moved to the neighbour
    page.keyboard.press("Enter")
    page.wait_for_selector(".nucleus .headline")


def test_keys_move_turn_and_explain(page):
    before = page.evaluate("[cellvitPage().state.x, cellvitPage().state.scale, cellvitPage().state.rotation]")
    page.focus("#picture")
    for key in ("+", "ArrowRight", "r"):
        page.keyboard.press(key)
    page.wait_for_function("(x) => cellvitPage().state.x > x && cellvitPage().state.rotation === 15", arg=before[0])
    page.wait_for_function("() => location.hash.includes('rotation=15')")
    assert page.evaluate("cellvitPage().state.scale") > before[1]
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert "Next suggested nucleus" in page.inner_text("#help")
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("d")
    small = page.evaluate("""() => [...document.querySelectorAll('button, select, .types label')]
      .filter((node) => node.offsetParent && node.getBoundingClientRect().height < 40).map((node) => node.outerHTML)""")
    assert small == []  # a finger needs 40 pixels


def test_labels_by_click_and_lasso_with_undo_and_html_as_text(page, results):
    page.fill("[aria-label='Name of a new class']", HTML_NAME)
    page.keyboard.press("Enter")
    button = page.locator(".labelclass")
    button.wait_for()
    assert HTML_NAME in button.inner_text()
    assert page.locator(".labelclass b, .nucleus b b, #toasts b").count() == 0
    target = place_of(page, 7)
    page.keyboard.press("Tab")
    page.locator("[data-tool=label]").click()
    page.mouse.click(target["x"], target["y"])
    page.wait_for_function("() => cellvitPage().labels.labels.size === 1")
    assert labels_of(page) == {str(target["row"]): HTML_NAME}
    assert page.evaluate("cellvitPage().view.nuclei.marks.vertices") == 1
    page.wait_for_function("(name) => document.querySelector('.nucleus').textContent.includes(name)", arg=HTML_NAME)
    kept = read_labels(results)
    assert [(int(kept.nucleus[0]), str(kept.class_name[0]))] == [(target["row"], HTML_NAME)]  # on disk at once
    page.focus("#picture")
    page.keyboard.press("l")
    left, top = page.evaluate("cellvitPage().view.onPage(0, 0)")
    side = page.evaluate("cellvitPage().view.onPage(300, 0)[0]") - left
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((side, 0), (side, side), (0, side)):
        page.mouse.move(left + x, top + y, steps=2)
    page.mouse.up()
    page.wait_for_function("() => cellvitPage().labels.labels.size > 20")
    page.keyboard.press("u")
    page.wait_for_function("() => cellvitPage().labels.labels.size === 1")
    page.keyboard.press("Control+z")
    page.wait_for_function("() => cellvitPage().labels.labels.size === 0")


def test_lost_server_is_told_and_found_again(page):
    page.route("**/api/**", lambda route: route.abort())
    page.evaluate("cellvitPage().countView()")
    page.wait_for_selector("#banner:not([hidden])")
    page.unroute("**/api/**")
    page.wait_for_selector("#banner", state="hidden")
    total(page, NUCLEI)


def test_list_of_slides_and_a_table_without_its_image(browser, server, results, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "nuclei.parquet").write_bytes((results / "nuclei.parquet").read_bytes())
    page = browser.new_page(viewport={"width": 800, "height": 600})
    page.goto(server.show([results, alone], title="<i>All</i>").address)
    page.wait_for_selector(".card")
    assert page.locator(".card").count() == 2
    assert page.inner_text("#title") == "<i>All</i>"
    page.fill("[type=search]", "slide.tif")
    page.locator(".cards .card h2 a").first.click()
    page.wait_for_function(SETTLED)
    page.click("#back")
    page.locator(".card h2 a").last.click()
    page.wait_for_function(SETTLED)
    page.wait_for_function("() => cellvitPage().view.nuclei.tiles.length > 0")
    assert page.locator(".grid").is_visible() == (page.evaluate("cellvitPage().slide.image") is None)
    page.close()
