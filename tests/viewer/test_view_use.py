"""Starting and ending the viewer: the verb, the server, the page that opens from the disk, the notebook."""

import json
import re
import shutil
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from view_samples import SIZE, drawn_nuclei, write_table

import cellvit
from cellvit.cli import main
from cellvit.cli import view as verb
from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.inference.slide import SlideResult
from cellvit.io.loaded import LoadedNuclei, from_outlines
from cellvit.labels import read_labels
from cellvit.types import NucleiPrediction
from cellvit.viewer import notebook, serve, share, vendor
from cellvit.viewer.serve import ViewServer
from cellvit.viewer.share import write_share


@pytest.fixture(autouse=True)
def vendored(monkeypatch):
    """Scripts of others, which a checkout without node lacks."""
    monkeypatch.setattr(vendor, "missing", list)
    for name in notebook._ELSEWHERE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def table(tmp_path):
    """A table with its image beside it."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "results"
    table = write_table(folder, image="tissue.png")
    Image.fromarray(rng.integers(150, 255, (SIZE, SIZE, 3), np.uint8)).save(folder / "tissue.png")
    return table


class Session:
    """What a user does while the viewer runs; then Ctrl+C."""

    def __init__(self, monkeypatch, *steps, stop=KeyboardInterrupt):
        self.answers, self.steps, self.stop = [], steps, stop
        self.printed = None
        show = ViewServer.show

        def keep(server, *given, **settings):
            self.shown = show(server, *given, **settings)
            return self.shown

        monkeypatch.setattr(ViewServer, "wait", lambda server: self.wait())
        monkeypatch.setattr(ViewServer, "show", keep)

    def wait(self):
        base = self.shown.address + "api/slides/" + next(iter(self.shown.gallery.slides))
        for method, path, data in self.steps:
            self.answers.append(httpx.request(method, base + path, json=data).json())
        raise self.stop


def run(*arguments):
    return main(["view", *map(str, arguments), "--no-browser"])


def test_the_verb_serves_until_ctrl_c_and_says_where_labels_are(table, monkeypatch, capsys):
    session = Session(monkeypatch, ("GET", "", None), ("POST", "/labels", {"class": "A", "rows": [3, 4]}))
    assert run(table.parent) == 0
    out = capsys.readouterr().out
    assert re.search(r"1 slide at http://127\.0\.0\.1:\d+/t/[\w-]{32}/\n", out)
    assert f"the viewer has ended; 2 labels are in {table.with_name('labels.parquet')}" in out
    assert session.answers[0]["nuclei"]["count"] == 256
    assert session.answers[1]["changed"] == 2
    assert len(read_labels(table.parent)) == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(session.shown.address)
    monkeypatch.undo()
    monkeypatch.setattr(vendor, "missing", list)
    second = Session(monkeypatch, ("GET", "", None))  # the labels are free again
    assert main(["view", str(table), "--no-browser", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"address": second.shown.address, "slides": 1}
    assert second.answers[0]["labels"]["editable"]


def test_the_verb_waits_for_what_is_under_way_unless_it_is_interrupted_again(table, monkeypatch, capsys):
    session = Session(monkeypatch)

    def wait(server):
        jobs = session.shown.labeling.jobs
        jobs.start("train", lambda say: "never")
        jobs.wait()
        (job,) = jobs._jobs.values()
        job.state = "running"
        monkeypatch.setattr(jobs, "wait", raising(KeyboardInterrupt))
        raise KeyboardInterrupt

    monkeypatch.setattr(ViewServer, "wait", wait)
    assert run(table) == 0
    printed = capsys.readouterr()
    assert "waiting for 'train'" in printed.out
    assert "'train' was stopped" in printed.err
    session = Session(monkeypatch, stop=verb.Terminated(15))
    assert run(table) == 143
    assert "the viewer has ended" in capsys.readouterr().out


def raising(error):
    def fail(*given, **settings):
        raise error

    return fail


def test_what_cannot_be_shown_is_told_in_a_line(table, tmp_path, monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run(table, "--port", port) == 1
        told = capsys.readouterr().err
        assert f"--port {port} is in use; pass --port" in told
        assert f"{port}," not in told  # another one is offered
    (tmp_path / "empty").mkdir()
    for given, words in (("none", "does not exist; check the path"), ("empty", "holds no results, slides or images")):
        assert run(tmp_path / given) == 1
        assert words in capsys.readouterr().err
    assert run(table, "--port", 70000) == 1
    assert "--port 70000 is no port" in capsys.readouterr().err
    assert run(table, "--region", 0, 0, 1, 1) == 2
    monkeypatch.setattr(vendor, "missing", lambda: ["some.js"])
    assert run(table) == 1
    assert f"lacks some.js, which a wheel holds; from a checkout run: {vendor.FETCH_COMMAND}" in capsys.readouterr().err
    monkeypatch.setattr(serve, "require", raising(ConfigError("this needs the package 'uvicorn'")))
    monkeypatch.setattr(vendor, "missing", list)
    assert run(table) == 1
    assert "needs the package 'uvicorn'" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["moved", "points", "broken", "typeless"])
def test_what_is_not_whole_is_shown_as_far_as_it_goes(table, damage, monkeypatch, capsys):
    nuclei = drawn_nuclei()
    if damage == "moved":
        (table.parent / "tissue.png").unlink()
    elif damage == "points":
        bare = np.zeros(len(nuclei) + 1, np.int64)
        write_table(table.parent, nuclei, image="tissue.png", contour_offsets=bare, contour_points=np.zeros((0, 2)))
    elif damage == "broken":
        table.write_bytes(table.read_bytes()[:-100])
    else:
        write_table(table.parent, nuclei, image="tissue.png", type=np.zeros(len(nuclei), np.int32), classes=None)
    session = Session(monkeypatch, ("GET", "", None), ("POST", "/labels", {"class": "A", "rows": [3]}))
    assert run(table) == 0
    about, labelled = session.answers
    assert (about.get("image") is None) == (damage in ("moved", "broken"))
    if damage == "moved":
        assert "tissue.png" in about["image_note"]
    if damage == "broken":
        assert "not a readable Parquet file" in (about.get("error") or "")
        assert "changed" not in labelled
    else:
        assert about["nuclei"]["count"] == 256
        assert labelled["changed"] == 1


def test_the_page_of_the_documentation_says_what_the_verb_takes():
    text = (Path(cellvit.__file__).parents[1] / "docs/pages/how-to/view.md").read_text(encoding="utf-8")
    commands = re.findall(r"cellvit view ([^`\n]+)", text)
    assert len(commands) >= 3
    parser = verb.build_parser()
    for command in commands:
        parser.parse_args(command.split())
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[\w-]+)", text)) - {"--undo"} <= known


def test_browsers_are_opened_only_where_they_have_windows(table, monkeypatch, capsys):
    Session(monkeypatch)
    opened = []
    monkeypatch.setattr(verb.webbrowser, "open", lambda address: opened.append(address) or True)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(verb.sys, "platform", "linux")
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4")
    assert main(["view", str(table)]) == 0
    printed = capsys.readouterr()
    assert "no browser was found" in printed.err
    assert re.search(r"ssh -L (\d+):127.0.0.1:\1 ", printed.out)
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(["view", str(table)]) == 0
    assert len(opened) == 1


class TestShare:
    @pytest.fixture
    def page(self, table, tmp_path, capsys):
        out = tmp_path / "to send" / "share"
        region = ("--region", "60", "90", "120", "300")
        assert main(["view", str(table), "--export", str(out), *region, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["nuclei"] == 4 * 10
        assert facts["bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        assert facts["out"] == str(out / "index.html")
        return out

    def test_it_holds_the_region_and_nothing_of_this_machine(self, page, table):
        for file in page.rglob("*.*"):
            if file.suffix in (".html", ".js", ".css") and file.parent.name != "vendor":
                assert str(table.parent.parent) not in file.read_text()
        facts = json.loads((page / "data/facts.js").read_text().partition(" = ")[2].rstrip(";\n"))
        slide = next(value for name, value in facts["json"].items() if name != "api/slides")
        assert slide["nuclei"]["count"] == sum(one["count"] for one in slide["nuclei"]["classes"]) == 40
        assert slide["labels"]["editable"] is False
        assert slide["layers"][-1]["polygons"] == [[[60, 90], [180, 90], [180, 390], [60, 390]]]
        assert (page / f"api/slides/{slide['id']}/image/9/0_0.jpg").read_bytes()[:2] == b"\xff\xd8"
        html = (page / "index.html").read_text()
        assert 'type="module"' not in html
        needed = re.findall(r'(?:src|href)="(?!data:|vendor/)([^"#]+)"', html)
        assert needed == ["static/view.css", "data/facts.js", "data/share.js", "data/page.js"]
        assert all((page / name).is_file() for name in needed)

    def test_it_opens_from_the_disk_in_a_browser(self, page):
        playwright = pytest.importorskip("playwright.sync_api")
        browser = shutil.which("chromium") or pytest.skip("chromium is not installed")
        if not (vendor.FOLDER / "openseadragon.min.js").is_file():
            pytest.skip(f"scripts of others are not fetched: {vendor.FETCH_COMMAND}")
        with playwright.sync_playwright() as driver:
            options = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
            window = driver.chromium.launch(executable_path=browser, args=options).new_page()
            told = []
            window.on("pageerror", lambda error: told.append(str(error)))
            window.goto((page / "index.html").as_uri())
            window.get_by_text("40 of 40").wait_for(timeout=20_000)
            assert re.search(r"#slide=\w{16}&x=120(\.0)?&y=240(\.0)?&scale=", window.url)  # the region is seen first
            load = "p => CELLVIT_STATIC.load(p).then(b => Array.from(new Uint32Array(b.slice(0, 8))))"
            outlines = "async p => { const b = await CELLVIT_STATIC.load(p); return [...new Float32Array(b, 140, 8)] }"
            assert window.evaluate(load, "api/slides/x/points/0/0_0")[0] == 40
            assert window.evaluate(load, "api/slides/x/points/1/0_0")[0] == 4 * 6  # above and left of 256 px
            assert window.evaluate(load, "api/slides/x/outlines/1/0_1") == [4 * 4, 4 * 4 * 4]
            first = window.evaluate(outlines, "api/slides/x/outlines/1/0_1")  # of the tile's corner at (0, 256)
            assert sorted(first) == sorted([69, 23, 69, 35, 81, 35, 81, 23])
            assert not told

    def test_what_cannot_be_shared_leaves_nothing_behind(self, table, tmp_path, monkeypatch, capsys):
        out, parent = tmp_path / "out" / "share", tmp_path / "out"
        with pytest.raises(ConfigError, match="lies outside of the 480 x 480 px"):
            write_share([table], out, region=(500, 0, 10, 10))
        assert main(["view", str(table), "--export", str(out), "--max-mb", "0.4"]) == 1
        assert "more than 0.4 MB; choose a smaller --region" in capsys.readouterr().err
        monkeypatch.setattr(share, "MAX_TILES", 5)
        with pytest.raises(ConfigError, match="10 tiles of pixels, and a share has at most 5"):
            write_share([table], out)
        assert list(parent.iterdir()) == []
        out.mkdir()
        with pytest.raises(OutputError, match="exists; choose another folder"):
            write_share([table], out, region=(0, 0, 9, 9))
        write_table(tmp_path / "other")
        with pytest.raises(ConfigError, match="2 slides; a share holds one"):
            write_share([table, tmp_path / "other"], parent / "two")
        table.write_bytes(b"PAR1")
        with pytest.raises(DataError, match="not a readable Parquet file"):
            write_share([table], parent / "damaged")
        assert list(parent.iterdir()) == [out]


class TestNotebook:
    @pytest.fixture(autouse=True)
    def closed(self):
        yield
        for shown in list(notebook._SHOWN.values()):
            shown.close()
        if notebook._PROCESS.server is not None:
            notebook._PROCESS.server.stop()

    def test_results_are_shown_in_a_frame_of_one_server(self, table):
        shown = cellvit.view(table.parent, height=300)
        assert list(shown._repr_mimebundle_()) == ["text/plain", "text/html"]
        assert f'<iframe src="{shown.address}"' in shown._repr_html_()
        assert "height:300px" in shown._repr_html_()
        assert cellvit.view(str(table.parent)) is shown  # a cell that runs again
        other = cellvit.view(drawn_nuclei())
        assert other.address.partition("/t/")[0] == shown.address.partition("/t/")[0]
        assert other.address != shown.address
        answer = httpx.get(shown.address + "api/slides")
        assert "frame-ancestors 'self' http://127.0.0.1:*" in answer.headers["content-security-policy"]
        slide = answer.json()["slides"][0]["id"]
        httpx.post(f"{shown.address}api/slides/{slide}/labels", json={"class": "A", "rows": [7]})
        assert shown.labels.nucleus.tolist() == [7]
        address = shown.address
        shown.close()
        assert httpx.get(address + "api/slides").status_code == 404
        assert "A picture, as the viewer was closed" in shown._repr_html_()
        with pytest.raises(ConfigError, match="there are no labels: the viewer was closed"):
            _ = shown.labels

    def test_maps_of_labels_and_results_of_slides_are_shown(self, table):
        instances = np.kron([[1, 0], [0, 2]], np.ones((9, 9), int))
        loaded = LoadedNuclei(table, instances, None, np.array([0, 1, -1]), ("Background", "Round"))
        nuclei = next(iter(cellvit.view(loaded).gallery.slides.values())).table()
        assert [(one["name"], one["count"]) for one in nuclei.classes] == [("No type", 1), ("Round", 1)]
        assert cellvit.view(SlideResult(table, table.parent, {})) is cellvit.view(table.parent)

    def test_nuclei_in_memory_are_shown_on_their_image(self, table):
        image = np.asarray(Image.open(table.parent / "tissue.png"))
        nuclei = drawn_nuclei()
        prediction = NucleiPrediction(np.zeros((2, 2), np.int32), nuclei)
        loaded = from_outlines(nuclei, table)
        for given, where in ((prediction, image), (loaded, table.parent / "tissue.png"), (nuclei, None)):
            shown = cellvit.view(given, image=where)
            about = httpx.get(f"{shown.address}api/slides/{next(iter(shown.gallery.slides))}").json()
            assert about["nuclei"]["count"] == 256
            assert (about["image"] is None) == (where is None)
            colors = set(map(tuple, np.asarray(shown.picture).reshape(-1, 3).tolist()))
            assert {(200, 30, 30), (30, 80, 200)} <= colors
            shown.close()
            assert shown.picture.size[0] >= 400

    def test_a_picture_stands_in_where_no_frame_can_be(self, table, monkeypatch):
        monkeypatch.setenv("JUPYTERHUB_USER", "ann")
        shown = cellvit.view(table)
        bundle = shown._repr_mimebundle_()
        assert list(bundle) == ["text/plain", "text/html", "image/png"]
        assert "A picture, as the notebook runs on a JupyterHub." in bundle["text/html"]
        assert shown.address in bundle["text/html"]
        assert "<iframe" in cellvit.view(table, inline=True)._repr_html_()
        shown.close()
        monkeypatch.setattr(serve, "require", raising(ConfigError("this needs the package 'starlette'")))
        shown = cellvit.view(replace(drawn_nuclei(), classes=None))
        if shown.address is None:  # else the server of this process runs already
            assert "A picture, as this needs the package &#x27;starlette&#x27;." in shown._repr_html_()

    def test_what_cannot_be_shown_is_refused(self, table, tmp_path):
        for given in (3, [], {"a": 1}):
            with pytest.raises(ConfigError, match="cannot be shown; give results, a path, or nuclei"):
                cellvit.view(given)
        with pytest.raises(ConfigError, match="image= is for nuclei in memory"):
            cellvit.view(table, image=table)
        with pytest.raises(DataError, match="does not exist"), warnings.catch_warnings():
            cellvit.view(tmp_path / "none")
