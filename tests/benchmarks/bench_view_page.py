"""The page of `cellvit view` in headless Chromium: first picture, frames per second, a tile of outlines, memory.

Prints JSON. The slide is drawn (`view_slide.py`): 40,000 x 40,000 px with 1,000,000 nuclei. Chromium has no graphics
card here: WebGL and the image are drawn by the processor, so a laptop is faster. Times are of the wall: keep the
machine idle.

    python tests/benchmarks/bench_view_page.py [--folder DIR] [--repeats 3]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright
from view_slide import write_results

from cellvit.viewer.serve import ViewServer

ARGUMENTS = ["--headless", "--no-sandbox", "--enable-unsafe-swiftshader"]
SETTLED = "() => globalThis.cellvitPage?.()?.view.settled"

# frames while the view moves a little in each: what a drag or a wheel does
FRAMES = """async ([seconds, zoom]) => {
  const { view } = cellvitPage();
  const { viewport } = view.viewer;
  const begin = performance.now();
  let [frames, last, longest] = [0, begin, 0];
  while (performance.now() - begin < 1000 * seconds) {
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    longest = Math.max(longest, now - last);
    [last, frames] = [now, frames + 1];
    const turn = Math.sin((now - begin) / 300);
    if (zoom) viewport.zoomTo(zoom * (1 + 0.12 * turn), undefined, true);
    else view.viewer.viewport.panBy(new OpenSeadragon.Point(0.0004 * turn, 0.0004 * turn), true);
  }
  const { nuclei } = view;
  const [left, top, right, bottom] = view.box;
  let points = 0;
  for (const { x, y, corner } of nuclei.tiles)
    for (let i = 0; i < x.length; i++) {
      const [u, v] = [corner[0] + x[i], corner[1] + y[i]];
      points += Number(u > left && u < right && v > top && v < bottom);
    }
  return { kind: nuclei.kind, points, per_second: frames / seconds, longest_ms: longest };
}"""

# from the request to pixels that are there: reading one of them back waits for the drawing
OUTLINES = """async ([z, x, y]) => {
  const { nuclei, screen } = cellvitPage().view;
  const { layer } = nuclei;
  const { signal } = new AbortController();
  const begin = performance.now();
  const load = (column) => nuclei.load({ key: "measured", kind: "outlines", tile: { z, x: column, y } }, signal);
  const tiles = await Promise.all([load(x), load(x + 1)]);
  const loaded = performance.now();
  const scale = screen.width / tiles[0].width / 2;
  const [left, top] = tiles[0].corner;
  layer.begin(screen);
  for (const tile of tiles) {
    const map = { a: scale, b: 0, c: 0, d: scale, e: -scale * left, f: -scale * top };
    layer.drawOutlines({ ...screen, map }, tile, 1);
  }
  layer.gl.readPixels(0, 0, 1, 1, layer.gl.RGBA, layer.gl.UNSIGNED_BYTE, new Uint8Array(4));
  const ms = performance.now() - begin;
  const sum = (name) => tiles.reduce((total, tile) => total + tile[name], 0);
  const found = { outlines: sum("count"), vertices: sum("vertices") / 2, loaded_ms: loaded - begin, ms };
  tiles.forEach((tile) => layer.release(tile));
  return found;
}"""


def measure(address, repeats):
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        first = [first_picture(browser, address) for _ in range(repeats + 1)][1:]  # the first one warms the server
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}#x=20000&y=20000&scale=0.094&off=")
        page.wait_for_function(SETTLED, timeout=60_000)
        pan = best([page.evaluate(FRAMES, [3, 0]) for _ in range(repeats)])
        zoomed = page.evaluate("cellvitPage().view.viewer.viewport.getZoom()")
        zoom = best([page.evaluate(FRAMES, [3, zoomed]) for _ in range(repeats)])
        outlines = [page.evaluate(OUTLINES, tile_of_outlines(page)) for _ in range(2 * repeats + 1)]
        memory = page_memory(page)
        browser.close()
    return {
        "first_picture_ms": {key: min(run[key] for run in first) for key in first[0]},
        "first_picture_ms_median": statistics.median(run["all"] for run in first),
        "pan": pan,
        "zoom": zoom,
        "outlines": min(outlines, key=lambda run: run["ms"]),
        "outlines_ms_median": statistics.median(run["ms"] for run in outlines),
        "page_memory_mb": memory,
    }


def first_picture(browser, address):
    """Milliseconds from the request of the page to the image and the nuclei of the whole slide on the screen."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address, wait_until="commit")
    page.wait_for_function(SETTLED, polling="raf", timeout=60_000)
    found = page.evaluate("""() => {
      const resources = performance.getEntriesByType("resource");
      const last = (name) => Math.max(...resources.filter((entry) => name.test(entry.name)).map((e) => e.responseEnd));
      const [scripts, nuclei, image] = [/[.]js/, /density|points/, /[/]image[/]/].map(last);
      return { all: performance.now(), scripts, nuclei, image };
    }""")
    page.close()
    return found


def tile_of_outlines(page):
    """The left one of two tiles in the middle of the slide that hold about 5,000 outlines, 39 pixels apart."""
    zoom = page.evaluate("Math.round(Math.log2(cellvitPage().slide.nuclei.tile_base / (39.4 * Math.sqrt(2500))))")
    across = 2**zoom
    base = page.evaluate("cellvitPage().slide.nuclei.tile_base")
    middle = int(20_000 / (base / across))
    return [zoom, middle, middle]


def page_memory(page):
    """Megabytes of the page: what scripts hold, and all of the processes of the browser that draw it."""
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable")
    metrics = {entry["name"]: entry["value"] for entry in client.send("Performance.getMetrics")["metrics"]}
    kinds = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found = [part for part in process.cmdline() if part.startswith("--type=")]
            if found:
                kind = found[0].removeprefix("--type=")
                kinds[kind] = kinds.get(kind, 0) + process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue
    return {"scripts": metrics["JSHeapUsedSize"] / 1e6, **{name: kinds[name] for name in sorted(kinds)}}


def best(runs):
    return max(runs, key=lambda run: run["per_second"])


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return round(value, 1) if isinstance(value, float) else value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="with the drawn slide, which is written there if it is not")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if shutil.which("chromium") is None:
        sys.exit("there is no chromium on PATH; install it, as by `apt install chromium`")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        results = folder / "results"
        if not results.is_dir():
            write_results(folder)
        with ViewServer() as server:
            found = measure(server.show([results]).address, options.repeats)
    found["server_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found["load"] = os.getloadavg()[0]
    print(json.dumps(rounded(found), indent=2))


if __name__ == "__main__":
    main()
