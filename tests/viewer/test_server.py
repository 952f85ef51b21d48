"""The server of the viewer, asked as the page asks it, on a drawn slide with three hundred nuclei."""

import json
import os
import shutil
from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.view_slide import write_results
from numpy.lib import format as npy
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from cellvit.classes import NucleiClasses
from cellvit.errors import DataError
from cellvit.io.geojson import write_geojson
from cellvit.io.parquet import read_parquet, write_parquet
from cellvit.slide.damage import Undamaged
from cellvit.slide.open import open_slide
from cellvit.types import Nuclei
from cellvit.viewer import api as api_module
from cellvit.viewer import app as app_module
from cellvit.viewer import gallery as gallery_module
from cellvit.viewer import image as image_module
from cellvit.viewer.app import create_app
from cellvit.viewer.gallery import Gallery
from cellvit.viewer.image import DeepZoom
from cellvit.viewer.outlines import StoppedError, open_outlines
from cellvit.viewer.sources import find_sources

SIDE = 1024
BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("drawn"), side=SIDE, nuclei=300, block=512)


@pytest.fixture(scope="module")
def nuclei(results):
    return read_parquet(results / "nuclei.parquet")


@pytest.fixture(scope="module")
def site(results):
    """A server whose outlines are made: until then it answers without them."""
    found = Site([results])
    for _ in range(30):  # each asks for a second
        if found.get(f"{found.one}/outlines/0/0_0").status_code != 503:
            break
    return found


@pytest.fixture
def copied(results, tmp_path):
    """Results that a test may change."""
    shutil.copytree(results.parent, tmp_path, dirs_exist_ok=True)
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    summary["slide"]["path"] = str(tmp_path / "slide.tif")
    (tmp_path / "results" / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "results"


def pixels_of(content):
    with Image.open(BytesIO(content)) as picture:
        return np.asarray(picture).astype(int)


class Site:
    """A server with one slide first in its list."""

    def __init__(self, sources, **options):
        self.client = TestClient(create_app(sources, token="demo", **options), base_url=BASE)
        self.slides = self.get("api/slides").json()["slides"]
        self.one = f"api/slides/{self.slides[0]['id']}"

    def get(self, path, **options):
        return self.client.get(f"/t/demo/{path}", **options)

    def of(self, path):
        answer = self.get(f"{self.one}/{path}")
        assert answer.status_code == 200, answer.text
        return answer

    @property
    def facts(self):
        return self.get(self.one).json()

    def points(self, place, query="", *, column=False):
        content = self.of(f"points/{place}?{query}").content
        count = int(np.frombuffer(content, "<u4", 1)[0])
        row = np.frombuffer(content, "<u4", count, 4)
        x, y, *value = (np.frombuffer(content, "<f4", count, 4 + 4 * count * i) for i in range(1, 4 if column else 3))
        kind = np.frombuffer(content, "u1", count, 4 + 4 * count * (4 if column else 3))
        assert len(content) == 4 + count * (17 if column else 13)
        return row, x, y, kind, value[0] if value else None

    def outlines(self, place, query=""):
        content = self.of(f"outlines/{place}?{query}").content
        count, points = np.frombuffer(content, "<u4", 2).tolist()
        row = np.frombuffer(content, "<u4", count, 8)
        start = np.frombuffer(content, "<u4", count + 1, 8 + 4 * count)
        xy = np.frombuffer(content, "<f4", 2 * points, 12 + 8 * count).reshape(-1, 2)
        kind = np.frombuffer(content, "u1", count, 12 + 8 * count + 8 * points)
        assert len(content) == 12 + 9 * count + 8 * points
        return row, start, xy, kind


# What is shown


def test_the_list_of_slides(site):
    (slide,) = site.slides
    assert (slide["name"], slide["kind"], slide["nuclei"], slide["error"]) == ("slide.tif", "slide", 300, None)
    assert sum(entry["count"] for entry in slide["classes"]) == 300
    assert slide["classes"][0]["color"] == "#b80721"


def test_the_facts_of_a_slide(site):
    facts = site.facts
    assert (facts["width"], facts["height"], facts["mpp"]) == (SIDE, SIDE, [0.25, 0.25])
    assert facts["image"] == {"tile_size": 512, "max_level": 10, "note": None}
    nuclei = facts["nuclei"]
    assert (nuclei["count"], nuclei["tile_base"], nuclei["max_zoom"], nuclei["outlines"]) == (300, 1024, 2, True)
    assert [entry["id"] for entry in nuclei["classes"]] == [1, 2, 3, 4, 5]
    area = next(column for column in nuclei["columns"] if column["name"] == "area_um2")
    assert (area["label"], area["unit"], area["kind"]) == ("Area", "µm²", "number")
    assert area["min"] <= area["low"] <= area["high"] <= area["max"]
    (tissue,) = facts["layers"]
    assert np.min(tissue["polygons"][0]) < 0.02 * SIDE
    assert np.max(tissue["polygons"][0]) > 0.98 * SIDE


def test_points_of_all_squares_are_the_nuclei(site, nuclei):
    found = []
    for column in range(4):
        for row in range(4):
            rows, x, y, kind, value = site.points(f"2/{column}_{row}", "column=area_um2", column=True)
            assert ((x >= 0) & (x < 256) & (y >= 0) & (y < 256)).all()
            found += zip(rows, x + 256 * column, y + 256 * row, kind, value, strict=True)
    found = np.array(sorted(found))
    assert found[:, 0].tolist() == list(range(300))
    np.testing.assert_allclose(found[:, 1:3], nuclei.centroid, atol=1e-3)
    assert found[:, 3].tolist() == nuclei.type.tolist()
    np.testing.assert_allclose(found[:, 4], nuclei.measurements["area_um2"], rtol=1e-6)


def test_outlines_are_those_of_the_table_to_a_sixteenth_of_a_pixel(site, nuclei):
    rows, start, xy, kind = site.outlines("0/0_0")
    assert sorted(rows.tolist()) == list(range(300))
    assert kind.tolist() == nuclei.type[rows].tolist()
    expected = nuclei.select(rows.astype(np.int64))
    assert start.tolist() == expected.contour_offsets.tolist()
    np.testing.assert_allclose(xy, expected.contour_points, atol=1 / 32 + 1e-3)
    rows, _, xy, _ = site.outlines("2/1_2")
    assert sorted(rows.tolist()) == np.flatnonzero((nuclei.centroid // 256 == (1, 2)).all(axis=1)).tolist()
    assert np.abs(xy).max() < 300


FILTERS = {
    "classes=1,3": lambda n: np.isin(n.type, [1, 3]),
    "classes=": lambda n: np.zeros(len(n), bool),
    "min_prob=0.8": lambda n: n.type_prob >= np.float32(0.8),
    "area_um2.min=20&area_um2.max=50&nearest_um.max=40": lambda n: (
        (n.measurements["area_um2"] >= 20) & (n.measurements["area_um2"] <= 50) & (n.measurements["nearest_um"] <= 40)
    ),
    "region=100,200,600,500": lambda n: ((n.centroid >= (100, 200)) & (n.centroid <= (600, 500))).all(axis=1),
    "polygon=0,0,1000,0,0,1000": lambda n: n.centroid.sum(axis=1) < 1000,
}


@pytest.mark.parametrize("query", FILTERS)
def test_a_filter_chooses_the_same_everywhere(site, nuclei, query):
    expected = np.flatnonzero(FILTERS[query](nuclei))
    assert sorted(site.points("0/0_0", query)[0].tolist()) == expected.tolist()
    assert sorted(site.outlines("0/0_0", query)[0].tolist()) == expected.tolist()
    content = site.of(f"density/0/0_0?{query}").content
    classes, side = np.frombuffer(content, "<u4", 2).tolist()
    density = np.frombuffer(content, "<u4", offset=8).reshape(classes, side, side)
    by_class = np.bincount(nuclei.type[expected], minlength=classes)
    assert density.sum(axis=(1, 2)).tolist() == by_class.tolist()
    counts = site.of(f"counts?{query}").json()
    assert counts == {"total": len(expected), "classes": {str(i): n for i, n in enumerate(by_class.tolist())}}


def test_counts_of_what_is_in_view(site, nuclei):
    inside = ((nuclei.centroid >= (0, 0)) & (nuclei.centroid < (512, 256))).all(axis=1)
    assert site.of("counts?box=0,0,512,256").json()["total"] == inside.sum()


def test_of_many_points_some_are_sent_that_are_spread_over_the_square(site):
    rows, x, y, _, _ = site.points("0/0_0", "limit=40")
    assert len(rows) == len(set(rows.tolist())) == 40
    assert len({(a // 512, b // 512) for a, b in zip(x, y, strict=True)}) == 4


def test_a_nucleus_and_its_neighbours(site, nuclei):
    facts = site.of("nuclei/17").json()
    assert (facts["row"], facts["id"], facts["class"]) == (17, 18, nuclei.type[17])
    assert facts["class_name"] == nuclei[17].type_name
    assert facts["probability"] == pytest.approx(nuclei.type_prob[17])
    assert facts["probabilities"] is None
    assert facts["area_um2"] == pytest.approx(nuclei.measurements["area_um2"][17])
    np.testing.assert_allclose(facts["outline"], nuclei.contour(17), atol=0.04)
    assert {"name": "eosin_mean", "label": "Eosin mean", "unit": ""}.items() <= facts["measurements"][9].items()
    away = np.hypot(*(nuclei.centroid - nuclei.centroid[17]).T)
    assert [entry["row"] for entry in facts["neighbors"]] == np.argsort(away)[1:7].tolist()
    assert facts["neighbors"][0]["distance_um"] == pytest.approx(0.25 * np.sort(away)[1], abs=0.01)


def test_the_nucleus_at_a_place(site, nuclei):
    x, y = nuclei.contour(5).mean(axis=0)
    assert site.of(f"at?x={x}&y={y}").json()["row"] == 5
    x, y = nuclei.centroid[8]
    assert site.of(f"at?x={x + 0.4}&y={y}&radius=1").json()["row"] == 8
    missed = site.get(f"{site.one}/at?x=-500&y=-500&radius=9")
    assert (missed.status_code, missed.json()["error"]) == (404, "no nucleus is there")


def test_tiles_are_the_pixels_of_the_slide(site, results):
    shown = pixels_of(site.of("image/10/1_1.jpg").content)
    with open_slide(results.parent / "slide.tif") as slide:
        pixels = slide.read_region(0, 0, SIDE, SIDE)
    assert shown.shape == (512, 512, 3)
    assert np.abs(shown - pixels[512:, 512:]).mean() < 6  # JPEG of JPEG
    half = cv2.resize(pixels, (512, 512), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels_of(site.of("image/9/0_0.jpg").content) - half).mean() < 8
    assert pixels_of(site.of("image/0/0_0.jpg").content).shape == (1, 1, 3)
    assert pixels_of(site.of("thumbnail.jpg").content).shape == (512, 512, 3)
    for outside in ("image/10/2_0.jpg", "image/11/0_0.jpg", "image/10/-1_0.jpg"):
        assert site.get(f"{site.one}/{outside}").status_code == 404


def test_a_picture_of_odd_size_is_shown_to_its_edge(tmp_path):
    pixels = np.full((300, 1001, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    image = DeepZoom(open_slide(tmp_path / "odd.png"))
    assert (image.max_level, image.size(10), image.size(9)) == (10, (1001, 300), (501, 150))
    assert pixels_of(image.jpeg(10, 1, 0)).shape == (300, 489, 3)
    small = pixels_of(image.jpeg(9, 0, 0))
    assert small.shape == (150, 501, 3)
    assert np.abs(small - 90).max() <= 1


def test_a_slide_without_small_levels_is_put_together_from_its_tiles(results, tmp_path, monkeypatch):
    with open_slide(results.parent / "slide.tif") as slide:
        Image.fromarray(slide.read_region(0, 0, 1000, 901)).save(tmp_path / "plain.png")
    direct = DeepZoom(open_slide(tmp_path / "plain.png"))
    expected = {level: pixels_of(direct.jpeg(level, 0, 0)) for level in (7, 8, 9)}
    monkeypatch.setattr(image_module, "_MOST_SOURCE", 2**16)
    read, joined = [], DeepZoom(open_slide(tmp_path / "plain.png"))
    monkeypatch.setattr(image_module, "Undamaged", lambda *args, **kwargs: read.append(1) or Undamaged(*args, **kwargs))
    for level, direct_pixels in expected.items():
        found = pixels_of(joined.jpeg(level, 0, 0))
        assert found.shape == direct_pixels.shape
        assert np.abs(found[:-1, :-1] - direct_pixels[:-1, :-1]).mean() < 8
    assert sum(read) == 4  # the tiles of full resolution, once


# What is not there, or broken


def test_a_slide_that_moved_leaves_its_nuclei(copied):
    (copied.parent / "slide.tif").rename(copied.parent / "moved.tif")
    site = Site([copied])
    facts = site.facts
    assert facts["image"] is None
    assert "is not there" in facts["image_note"]
    assert (facts["width"], facts["nuclei"]["count"], facts["nuclei"]["outlines"]) == (SIDE, 300, True)
    assert len(site.points("0/0_0")[0]) == 300
    assert site.get(f"{site.one}/thumbnail.jpg").status_code == 404
    elsewhere = copied.parent / "elsewhere"
    elsewhere.mkdir()
    (copied.parent / "moved.tif").rename(elsewhere / "slide.tif")
    assert Site([copied], slides=elsewhere).facts["image"] is not None


def test_another_slide_under_the_same_name_is_not_shown(copied):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(copied.parent / "slide.tif")
    assert "another file" in Site([copied]).facts["image_note"]
    summary = json.loads((copied / "summary.json").read_text())
    summary["slide"]["size_bytes"] = (copied.parent / "slide.tif").stat().st_size
    (copied / "summary.json").write_text(json.dumps(summary))
    assert "64 x 64 px" in Site([copied]).facts["image_note"]


def test_broken_files_are_told_apart_from_the_others(copied, results):
    (copied / "nuclei.parquet").write_bytes(b"PAR1 not at all")
    cohort = copied.parent / "cohort"
    shutil.copytree(results, cohort / "good")
    shutil.copytree(copied, cohort / "table")
    (cohort / "torn").mkdir()
    (cohort / "torn" / "summary.json").write_text("{")
    site = Site([cohort])
    assert [bool(slide["error"]) for slide in site.slides] == [False, False, True]  # the second one's when it is opened
    broken = site.get(f"api/slides/{site.slides[1]['id']}").json()
    assert "not a readable Parquet file" in broken["error"]
    assert broken["nuclei"] is None
    assert broken["image"] is not None
    answer = site.get(f"api/slides/{site.slides[1]['id']}/points/0/0_0")
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "hint"}
    assert site.get(f"api/slides/{site.slides[2]['id']}").json()["error"]


DAMAGES = {
    "width": lambda summary: summary["slide"].update(width="wide"),
    "no slide": lambda summary: summary.pop("slide"),
    "counts": lambda summary: summary["nuclei"].update(by_type=[1, 2]),
    "tissue": lambda summary: summary.update(tissue=[1]),
    "colours": lambda summary: summary["model"].update(colors=[[1, 2]]),
    "mpp": lambda summary: summary["resolution"].update(mpp=["x"]),
    "settings": lambda summary: summary.update(settings=7),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_summary_of_another_form_is_told(copied, damage):
    summary = json.loads((copied / "summary.json").read_text())
    DAMAGES[damage](summary)
    (copied / "summary.json").write_text(json.dumps(summary))
    site = Site([copied])
    assert site.slides[0]["error"].startswith("summary.json: ")
    assert site.facts["error"].endswith("; run `cellvit segment` again")


def test_the_list_shows_types_that_were_given_since_it_was_opened(copied, monkeypatch):
    site = Site([copied])
    before = {one["name"]: one["count"] for one in site.slides[0]["classes"]}
    summary = json.loads((copied / "summary.json").read_text())
    counts = {"Mine": sum(before.values())}
    summary |= {"classification": {"classes": ["Background", "Mine"], "colors": [[0, 0, 0], [200, 30, 30]]}}
    summary["nuclei"]["by_type"] = counts
    (copied / "summary.json").write_text(json.dumps(summary))
    answer = site.get("api/slides").json()["slides"][0]
    assert answer["classes"] == [{"name": "Mine", "color": "#c81e1e", "count": counts["Mine"]}]
    monkeypatch.setattr(gallery_module, "shown_summary", None)  # it is read once only
    assert site.get("api/slides").json()["slides"][0] == answer


def test_a_table_damaged_inside_is_told(copied):
    content = bytearray((copied / "nuclei.parquet").read_bytes())
    with pq.ParquetFile(copied / "nuclei.parquet") as file:
        columns = {file.schema.column(i).path: file.metadata.row_group(0).column(i) for i in range(len(file.schema))}
    for name in ("area_um2", "contour.list.element.list.element"):
        start = columns[name].data_page_offset
        content[start + 20 : start + 60] = bytes(40)
    (copied / "nuclei.parquet").write_bytes(content)
    (copied / "nuclei.outlines.npy").unlink(missing_ok=True)
    site = Site([copied])
    assert "is damaged" in site.facts["error"]  # the measurements
    assert len(site.points("0/0_0")[0]) == 300
    for path in ("points/0/0_0?column=area_um2", "outlines/0/0_0"):
        answer = site.get(f"{site.one}/{path}")
        assert (answer.status_code, answer.json()["hint"]) == (422, "put a copy back")


def test_numbers_that_no_slide_has(copied, nuclei):
    far = replace(nuclei, centroid=nuclei.centroid * np.where(np.arange(300) < 10, 1e200, 1)[:, None])
    for facts in ({"width": 10**30, "height": 3}, {"width": -1, "height": 5}, {"width": "a"}):
        write_parquet(far, copied / "nuclei.parquet", metadata=facts, geometry=False)
        site = Site([copied / "nuclei.parquet"])
        facts = site.facts
        assert (facts["nuclei"]["count"], facts["nuclei"]["tile_base"]) == (290, 1024)
        assert len(site.points("0/0_0")[0]) == 290
    write_parquet(far, copied / "nuclei.parquet", metadata={"origin": "bounds"}, geometry=False)
    assert "does not say where it is" in Site([copied / "nuclei.parquet"]).facts["error"]


def test_what_is_no_picture_says_so(tmp_path):
    (tmp_path / "slide.svs").write_bytes(b"nothing")
    facts = Site([tmp_path / "slide.svs"]).facts
    assert facts["image"] is None
    assert facts["nuclei"] is None
    assert "slide.svs" in facts["error"]
    with pytest.raises(DataError, match="does not exist"):
        find_sources([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no results"):
        find_sources([tmp_path / "empty"])


def test_a_table_without_outlines_is_shown_as_points(copied, nuclei):
    plain = replace(nuclei, contour_offsets=np.zeros(301, np.int64), contour_points=np.zeros((0, 2)))
    write_parquet(plain, copied / "nuclei.parquet", geometry=False)
    site = Site([copied])
    facts = site.facts["nuclei"]
    assert (facts["outlines"], facts["outlines_note"].split(";")[0]) == (False, "the table holds no outlines")
    assert len(site.points("0/0_0")[0]) == 300
    assert site.get(f"{site.one}/outlines/0/0_0").status_code == 404
    assert site.of("nuclei/3").json()["outline"] is None


def test_no_nuclei_and_odd_ones(copied):
    write_parquet(Nuclei.empty(), copied / "nuclei.parquet", geometry=False)
    site = Site([copied])
    assert site.facts["nuclei"]["count"] == 0
    assert len(site.points("0/0_0")[0]) == 0
    odd = replace(
        Nuclei.empty(),
        centroid=np.array([[5.0, 5], [np.nan, 1], [-40, 3000], [9000, 9000]]),
        bbox=np.zeros((4, 4)),
        type=np.array([0, 3, 400, -1], np.int32),
        type_prob=np.array([np.nan, 1, 1, 1], np.float32),
        label=np.arange(4, dtype=np.int32),
        contour_offsets=np.array([0, 3, 3, 7, 7]),
        contour_points=np.array([[4.0, 4], [6, 4], [5, 7], [-9000, 0], [9000, 0], [9000, 6000], [-9000, 6000]]),
    )
    write_parquet(odd, copied / "nuclei.parquet", geometry=False)
    os.utime(copied / "nuclei.parquet", ns=(1, 1))
    facts = site.facts["nuclei"]
    assert (facts["count"], facts["tile_base"]) == (3, 16384)
    assert [(entry["id"], entry["count"]) for entry in facts["classes"]] == [(0, 2), (255, 1)]
    rows, start, xy, kind = site.outlines("0/0_0")
    assert (rows.tolist(), start.tolist(), kind.tolist()) == ([0, 2, 3], [0, 3, 7, 7], [0, 255, 0])
    np.testing.assert_allclose(xy, odd.contour_points, atol=1 / 32)  # farther from the centroid than 16 bits reach
    assert site.of("nuclei/0").json()["probability"] is None
    assert site.get(f"{site.one}/nuclei/1").status_code == 404


# Where nuclei come from


def test_the_area_can_be_filtered_where_nothing_was_measured(copied, nuclei):
    write_parquet(replace(nuclei, measurements={}, mpp=0.25), copied / "nuclei.parquet", geometry=False)
    site = Site([copied])
    assert [column["name"] for column in site.facts["nuclei"]["columns"]] == ["type_prob", "area_um2"]
    expected = np.flatnonzero(nuclei.area * 0.25**2 >= 18)
    assert 0 < len(expected) < 300
    assert sorted(site.points("0/0_0", "area_um2.min=18")[0].tolist()) == expected.tolist()


def test_categories_and_probabilities_of_types(copied):
    table = pq.read_table(copied / "nuclei.parquet")
    cluster = pa.array([None, *(i % 3 for i in range(299))], pa.int32())
    flat = pa.array(np.tile(np.float32([0.5, 0.2, 0.1, 0.1, 0.1]), 300))
    table = table.append_column("cluster", cluster)
    table = table.append_column("classification_before", pa.array(["<b>x</b>", "y"] * 150).dictionary_encode())
    table = table.append_column("type_probabilities", pa.FixedSizeListArray.from_arrays(flat, 5))
    pq.write_table(table, copied / "nuclei.parquet")
    site = Site([copied])
    columns = {column["name"]: column for column in site.facts["nuclei"]["columns"]}
    assert columns["cluster"]["kind"] == columns["classification_before"]["kind"] == "category"
    assert columns["cluster"]["values"] == ["0", "1", "2"]
    assert columns["classification_before"]["values"] == ["<b>x</b>", "y"]
    rows, _, _, _, value = site.points("0/0_0", "column=cluster", column=True)
    assert np.isnan(value[rows == 0]).all()
    assert value[rows > 0].tolist() == ((rows[rows > 0] - 1) % 3).tolist()
    facts = site.of("nuclei/2").json()
    assert facts["probabilities"] == pytest.approx(
        {"Neoplastic": 0.5, "Inflammatory": 0.2, "Connective": 0.1, "Dead": 0.1, "Epithelial": 0.1}
    )
    shown = {entry["name"]: entry["value"] for entry in facts["measurements"]}
    assert (shown["cluster"], shown["classification_before"]) == ("1", "<b>x</b>")


def test_coordinates_that_count_from_the_scanned_part(copied, nuclei):
    facts = {"width": SIDE, "height": SIDE, "origin": "bounds", "bounds": [100, 50, 900, 900]}
    moved = nuclei.select(np.flatnonzero((nuclei.centroid < 800).all(axis=1)))
    write_parquet(moved, copied / "nuclei.parquet", metadata=facts, geometry=False)
    site = Site([copied])
    rows, x, y, _, _ = site.points("0/0_0")
    np.testing.assert_allclose(np.stack([x, y], axis=1), moved.centroid[rows] + (100, 50), atol=1e-3)
    rows, _, xy, _ = site.outlines("0/0_0")
    np.testing.assert_allclose(xy, moved.select(rows.astype(int)).contour_points + np.array([100, 50]), atol=0.04)


def test_an_image_with_nuclei_beside_it_in_any_format(tmp_path, nuclei):
    pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    write_parquet(nuclei, tmp_path / "a.parquet", metadata={"image": "a.png", "width": SIDE, "height": SIDE})
    write_geojson(nuclei, tmp_path / "a.geojson")  # of several formats of one image the one that keeps most counts
    write_geojson(nuclei, tmp_path / "c.geojson.gz")
    site = Site([tmp_path])
    assert [(s["name"], s["kind"], s["nuclei"]) for s in site.slides] == [
        ("a.png", "image", 300),
        ("c", "image", None),
        ("b.png", "image", None),
    ]
    assert site.facts["image"] is not None
    site.one = f"api/slides/{site.slides[1]['id']}"
    facts = site.facts
    assert (facts["image"], facts["nuclei"]["count"]) == (None, 300)
    assert sorted(site.outlines("0/0_0")[0].tolist()) == list(range(300))
    site.one = f"api/slides/{site.slides[2]['id']}"
    assert site.facts["nuclei"] is None
    assert site.get(f"{site.one}/points/0/0_0").status_code == 422


def test_the_picture_of_results_is_not_taken_for_the_image(tmp_path, nuclei):
    Image.fromarray(np.zeros((SIDE + 90, SIDE, 3), np.uint8)).save(tmp_path / "a.png")  # with a legend
    write_parquet(nuclei, tmp_path / "a.parquet", metadata={"image": "a.png", "width": SIDE, "height": SIDE})
    site = Site([tmp_path])
    assert len(site.slides) == 1
    assert f"{SIDE} x {SIDE + 90} px" in site.facts["image_note"]


# The file of outlines


def test_the_file_of_outlines_is_made_once_and_never_stale(copied, nuclei):
    beside = copied / "nuclei.outlines.npy"
    Site([copied]).outlines("0/0_0")
    made = beside.read_bytes()
    os.utime(beside, ns=(1, 1))
    site = Site([copied])
    site.outlines("0/0_0")
    assert beside.stat().st_mtime_ns == 1  # used as it is
    first = site.facts["revision"]

    types = np.where(nuclei.type == 1, 2, nuclei.type).astype(np.int32)
    write_parquet(replace(nuclei, type=types), copied / "nuclei.parquet", geometry=False)
    assert site.facts["revision"] > first
    assert sorted(set(site.points("0/0_0")[3].tolist())) == [2, 3, 4, 5]
    assert site.outlines("0/0_0")[3].tolist() == types[site.outlines("0/0_0")[0]].tolist()

    wider = replace(nuclei, contour_points=nuclei.contour_points * 1.01)
    write_parquet(wider, copied / "nuclei.parquet", geometry=False)
    rows, _, xy, _ = site.outlines("0/0_0")
    np.testing.assert_allclose(xy, wider.select(rows.astype(int)).contour_points, atol=0.04)
    assert beside.read_bytes() != made
    for torn in (made[:-100], beside.read_bytes()[:-100], made[:50], b""):
        beside.write_bytes(torn)
        assert len(Site([copied]).outlines("0/0_0")[0]) == 300
    assert sorted(path.name for path in copied.iterdir()) == [
        *("nuclei.outlines.npy", "nuclei.parquet", "summary.json", "tissue.png")
    ]


def test_a_file_of_outlines_with_wrong_numbers_is_an_error(copied):
    Site([copied]).outlines("0/0_0")
    beside = copied / "nuclei.outlines.npy"
    with beside.open("rb+") as file:
        npy.read_array(file)
        npy.read_magic(file)
        npy.read_array_header_1_0(file)
        file.seek(8, os.SEEK_CUR)
        file.write(np.array([2**40, -1], "<i8").tobytes())
    site = Site([copied])
    answer = site.get(f"{site.one}/outlines/0/0_0")
    assert (answer.status_code, answer.json()["hint"]) == (422, "remove it and open the viewer again")


def test_too_many_outlines_are_not_sent_at_once(site, monkeypatch):
    monkeypatch.setattr(api_module, "_MOST_OUTLINES", 299)
    assert "too many" in site.get(f"{site.one}/outlines/0/0_0").json()["error"]
    assert len(site.outlines("0/0_0", "limit=299")[0]) == 299


def test_results_that_cannot_be_written_to_have_their_outlines_in_the_cache(copied, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside = copied / "nuclei.outlines.npy"
    beside.unlink(missing_ok=True)
    beside.mkdir()  # root may write everywhere, but not a file in place of a folder
    for _ in range(2):
        assert len(Site([copied]).outlines("0/0_0")[0]) == 300
    (made,) = (tmp_path / "cache" / "cellvit").iterdir()
    assert made.name.endswith(".outlines.npy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copied / "summary.json"))
    site = Site([copied])
    answer = site.get(f"{site.one}/outlines/0/0_0")
    assert answer.status_code == 422
    assert "XDG_CACHE_HOME" in answer.json()["hint"]
    assert "cannot be shown" in site.facts["nuclei"]["outlines_note"]
    assert len(site.points("0/0_0")[0]) == 300


# Who is answered


def test_only_those_with_the_token_are_answered(site):
    for path in ("/", "/t/", "/t/wrong/", "/t/demo2/api/slides", "/t/dem/api/slides", "/api/slides", "/static/a.js"):
        answer = site.client.get(path)
        assert (answer.status_code, set(answer.json())) == (404, {"error", "hint"})
    assert site.client.get("/t/demo", follow_redirects=False).headers["location"] == "/t/demo/"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST:8000", 200),
        ("localhost", 403),
        ("localhost:80", 403),
        ("example.org:8000", 403),
        ("127.0.0.1.example.org:8000", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_answered(site, host, status):
    assert site.get("api/slides", headers={"host": host}).status_code == status


def test_answers_say_what_a_browser_may_do_with_them(site):
    for path in ("api/slides", f"{site.one}/thumbnail.jpg", "api/none"):
        headers = site.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; ")
        assert policy.endswith("frame-ancestors 'self' http://127.0.0.1:* http://localhost:*")
        assert "unsafe-eval" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_what_has_a_version_may_be_kept(site):
    assert "immutable" in site.of("image/10/0_0.jpg?v=1").headers["cache-control"]
    assert site.of("points/0/0_0").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("api/slides/none", 404),
        ("api/slides/..%2F..%2Fsummary.json", 404),
        ("{one}/points/9/0_0", 404),
        ("{one}/points/0/1_0", 404),
        ("{one}/points/0/a_b", 422),
        ("{one}/points/0/0_0?column=secret", 422),
        ("{one}/points/0/0_0?embedding.min=1", 422),
        ("{one}/points/0/0_0?area_um2.min=nan", 422),
        ("{one}/points/0/0_0?what=1", 422),
        ("{one}/points/0/0_0?polygon=1,2,3,4", 422),
        ("{one}/counts?box=1,2,3", 422),
        ("{one}/counts?classes=a", 422),
        ("{one}/nuclei/300", 404),
        ("{one}/at", 422),
        ("static/..%2Fapp.py", 404),
        ("static/../app.py", 404),
        ("vendor/%2e%2e/%2e%2e/%2e%2e/pyproject.toml", 404),
        ("nothing", 404),
    ],
)
def test_what_is_not_there_or_not_understood(site, path, status):
    answer = site.get(path.format(one=site.one))
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "hint"}


def test_static_files_come_from_their_folders_alone(results, tmp_path, monkeypatch):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>x</title>")
    (page / "viewer.js").write_text("export {};")
    (tmp_path / "outside.txt").write_text("not served")
    (page / "link.txt").symlink_to(tmp_path / "outside.txt")
    monkeypatch.setattr(app_module, "PAGE", page)
    site = Site([results])
    assert site.get("").headers["content-type"].startswith("text/html")
    assert site.get("static/viewer.js").text == "export {};"
    for path in ("static/link.txt", "static/../outside.txt", "static/%2e%2e/outside.txt", "static/"):
        assert site.get(path).status_code == 404


class Notes:
    """An extension, as labels are one."""

    def __init__(self, gallery):
        self.routes = [Route("/api/note", self.note, methods=["POST"])]

    async def note(self, request):
        return PlainTextResponse(f"{(await request.json())['text']}")

    def listed(self, slide):
        return {"labels": 7}

    def about(self, slide):
        return {"classifier": True}

    def nucleus(self, slide, row):
        return {"label": f"row {row}"}


def test_changes_come_as_json_from_the_page_itself(results):
    site = Site([results], extensions=[Notes])
    assert site.slides[0]["labels"] == 7
    assert site.facts["classifier"] is True
    assert site.of("nuclei/4").json()["label"] == "row 4"
    address = "/t/demo/api/note"
    assert site.client.post(address, json={"text": "a"}).text == "a"
    assert site.client.post(address, json={"text": "a"}, headers={"origin": BASE}).text == "a"
    assert site.client.post(address, json={}, headers={"origin": "http://example.org"}).status_code == 403
    assert site.client.post(address, content=b"{}").status_code == 415
    assert site.client.post(address, data={"text": "a"}).status_code == 415
    assert site.client.put(address, json={}).status_code == 405
    assert site.client.post("/t/demo/api/slides", json={}).status_code == 405
    assert site.client.post("/t/wrong/api/note", json={}).status_code == 404


def test_names_of_classes_stay_text(copied, nuclei):
    names = ("Background", "<img src=x>", "\x1b[2J", "c", "d", "e")
    named = replace(nuclei, classes=NucleiClasses(names, ((0, 0, 0),) * 6))
    write_parquet(named, copied / "nuclei.parquet", geometry=False)
    answer = Site([copied]).client.get("/t/demo/" + Site([copied]).one)
    assert answer.headers["content-type"] == "application/json"
    shown = [entry["name"] for entry in answer.json()["nuclei"]["classes"]]
    assert shown[:2] == ["<img src=x>", "\\u001b[2J"]


def test_memory_of_a_gallery_is_bounded(results):
    gallery = Gallery([results])
    slide = next(iter(gallery.slides.values()))
    table = slide.table()
    assert table is slide.table()
    assert table.nbytes == 17 * 300
    assert slide.image() is slide.image()


def test_what_is_prepared_ends_with_the_server(copied):
    (copied / "nuclei.outlines.npy").unlink(missing_ok=True)
    gallery = Gallery([copied])
    slide = next(iter(gallery.slides.values()))
    gallery.close()
    table = slide.table()
    with pytest.raises(StoppedError):
        open_outlines(table, stop=gallery._closing)
    assert not [path for path in copied.iterdir() if path.suffix == ".npy"]
    with TestClient(create_app([copied], token="demo"), base_url=BASE) as client:
        assert client.get("/t/demo/api/slides").status_code == 200
