import gzip
import json
import tracemalloc
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
import shapely
from export_samples import (
    PANNUKE,
    assert_same,
    grid_outlines,
    loose_outlines,
    make_nuclei,
    many,
    nuclei,
    square,
    star_outlines,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, shape

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import polygon_area
from cellvit.io import read_geojson, write_geojson
from cellvit.io.valid_polygons import _along_pixels, polygons_from_rings, valid_rings, wkb_of_rings
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import Nuclei

BOW_TIE = [(0, 0), (10, 10), (10, 0), (0, 10)]
LINE = [(3, 3), (5, 5), (9, 9)]


@given(nuclei(star_outlines(), embeddings=False), st.sampled_from(["a.geojson", "a.geojson.gz"]))
@settings(max_examples=40)
def test_reading_gives_back_what_was_written(given_nuclei, name):
    with TemporaryDirectory() as folder:
        write_geojson(given_nuclei, Path(folder, name))
        assert_same(given_nuclei, read_geojson(Path(folder, name)))


@given(nuclei(st.one_of(grid_outlines, loose_outlines, star_outlines()), embeddings=False))
@settings(max_examples=40)
def test_every_nucleus_becomes_one_valid_polygon(given_nuclei):
    with TemporaryDirectory() as folder:
        write_geojson(given_nuclei, Path(folder, "a.geojson"))
        data = json.loads(Path(folder, "a.geojson").read_text())
    assert data["type"] == "FeatureCollection"
    assert len(data["features"]) == len(given_nuclei)
    assert len({f["id"] for f in data["features"]}) == len(given_nuclei)
    for i, feature in enumerate(data["features"]):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
        polygon = shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.area > 0
        outline = given_nuclei.contour(i)
        outline = outline[:-1] if len(outline) > 1 and (outline[0] == outline[-1]).all() else outline
        if len(outline) >= 3 and Polygon(outline).is_valid and Polygon(outline).area > 0:
            assert ring[:-1] == outline.tolist()
        expected = pytest.approx(polygon.area, rel=1e-4, abs=1e-3)
        assert feature["properties"]["measurements"]["Area px^2"] == expected


def test_broken_outlines_keep_their_largest_part_or_their_box():
    spur = [(0, 0), (8, 0), (8, 8), (4, 8), (4, 12), (4, 8), (0, 8)]  # a line sticks out and comes back
    lopsided = [(0, 0), (10, 10), (10, 0), (4, 6), (0, 6)]
    table = make_nuclei([BOW_TIE, LINE, [(2, 7)], [], square(0, 0), spur, lopsided])
    points, offsets = valid_rings(table)
    polygons = [Polygon(points[a:b]) for a, b in pairwise(offsets)]
    assert all(p.is_valid for p in polygons)
    assert [p.area for p in polygons[:6]] == [25, 36, 1, 1, 64, 64]
    assert polygons[1].bounds == (3, 3, 9, 9)
    assert polygons[2].bounds == (1.5, 6.5, 2.5, 7.5)
    assert points[offsets[4] : offsets[5]].tolist() == np.array(square(0, 0)).tolist()
    # the edge from (0, 0) to (10, 10) crosses that from (4, 6) to (10, 0) at (5, 5): a triangle of 25 and a quad of 17
    assert polygons[6].area == 25
    assert polygons[6].bounds == (5, 0, 10, 10)


corners = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=7)


@given(st.lists(corners, min_size=1, max_size=8), st.sampled_from([0.0, 3.0, 0.5]))
def test_what_is_proven_valid_is_valid_and_other_outlines_prove_nothing(rings, shift):
    # from corner to corner along rows and columns, which mostly cross themselves
    outlines = [
        [(p[0], q[1]) for pair in zip(r, r[1:] + r[:1], strict=True) for p, q in [pair[:1] * 2, pair]] for r in rings
    ]
    table = make_nuclei([*outlines, square(2, 2)])
    points = table.contour_points + shift
    proven = _along_pixels(points, table.contour_offsets)
    shapes = polygons_from_rings(points, table.contour_offsets)
    assert not (proven & ~(shapely.is_valid(shapes) & (shapely.area(shapes) > 0))).any()
    assert proven[-1] == (shift != 0.5)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_outlines_of_pixels_are_proven_valid_and_written_as_shapely_does(seed):
    rng = np.random.default_rng(seed)
    table = nuclei_from_instances(rng.integers(0, 4, rng.integers(1, 12, 2)), min_contour_points=1).nuclei
    points, offsets = table.contour_points, table.contour_offsets
    assert _along_pixels(points, offsets).all()
    starts, wkb = wkb_of_rings(points, offsets)
    expected = shapely.to_wkb(polygons_from_rings(points, offsets), byte_order=1).tolist()
    assert [wkb[start:stop].tobytes() for start, stop in pairwise(starts)] == expected


def test_a_nucleus_without_any_extent_becomes_a_pixel_around_it():
    table = make_nuclei([[], LINE])
    flat = Nuclei(**{**table.__dict__, "bbox": np.zeros((2, 4))})
    points, offsets = valid_rings(flat)
    x, y = flat.centroid[0]
    assert Polygon(points[: offsets[1]]).bounds == (x - 0.5, y - 0.5, x + 0.5, y + 0.5)
    assert Polygon(points[offsets[1] :]).bounds == (2.5, 2.5, 9.5, 9.5)


def test_features_have_what_qupath_reads(tmp_path):
    table = make_nuclei([square(0, 0), square(20, 4), square(40, 0)], type=[3, 0, 9], type_prob=[0.25, np.nan, 1])
    for kind in ("annotation", "detection", "cell"):
        write_geojson(table, tmp_path / "a.geojson", object_type=kind)
        one, two, three = json.loads((tmp_path / "a.geojson").read_text())["features"]
        assert one["properties"]["objectType"] == kind
        assert one["properties"]["classification"] == {"name": "Connective", "color": [99, 117, 255]}
        assert one["properties"]["measurements"] == {"Nucleus: Label": 1, "Type probability": 0.25, "Area px^2": 64.0}
        assert one["bbox"] == [0, 0, 8, 8]
        assert "classification" not in two["properties"]
        assert two["properties"]["measurements"] == {"Nucleus: Label": 2, "Area px^2": 64.0}
        assert three["properties"]["classification"]["name"] == "Type 9"


def pixel_nuclei(seed, count=30):
    """Nuclei of ellipses, as post-processing outlines them."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((200, 240), np.int32)
    for label in range(1, count + 1):
        place, axes = (int(v) for v in rng.integers(15, 185, 2)), (int(v) for v in rng.integers(2, 15, 2))
        cv2.ellipse(instances, tuple(place), tuple(axes), float(rng.uniform(0, 180)), 0, 360, label, -1)
    return nuclei_from_instances(instances, min_contour_points=1).nuclei


@pytest.mark.parametrize("simplify", [0.5, 1.0, 2.0, 50.0])
def test_simplified_outlines_keep_their_area_and_are_valid(tmp_path, simplify):
    table = pixel_nuclei(0)
    write_geojson(table, tmp_path / "a.geojson", simplify=simplify)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    polygons = [shape(feature["geometry"]) for feature in features]
    areas = polygon_area(table.contour_points, table.contour_offsets)
    assert all(polygon.is_valid for polygon in polygons)
    np.testing.assert_allclose([polygon.area for polygon in polygons], areas, rtol=0.01)
    assert [feature["properties"]["measurements"]["Area px^2"] for feature in features] == areas.tolist()
    read = read_geojson(tmp_path / "a.geojson")
    assert_same(table, read, ("centroid", "bbox", "type", "label"))
    points = len(read.contour_points) / len(table.contour_points)
    assert points < {0.5: 1, 1.0: 0.5, 2.0: 0.6, 50.0: 1.01}[simplify]


def test_simplifying_is_off_by_default_and_takes_distances_only(tmp_path):
    table = pixel_nuclei(1, 5)
    write_geojson(table, tmp_path / "a.geojson")
    assert_same(table, read_geojson(tmp_path / "a.geojson"))
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="simplify"):
            write_geojson(table, tmp_path / "b.geojson", simplify=value)
    assert not (tmp_path / "b.geojson").exists()
    write_geojson(make_nuclei([]), tmp_path / "b.geojson", simplify=1.0)
    assert len(read_geojson(tmp_path / "b.geojson")) == 0


def test_points_are_the_light_variant(tmp_path):
    table = many(50)
    write_geojson(table, tmp_path / "p.geojson", points=True)
    write_geojson(table, tmp_path / "a.geojson")
    assert (tmp_path / "p.geojson").stat().st_size < (tmp_path / "a.geojson").stat().st_size / 2
    data = json.loads((tmp_path / "p.geojson").read_text())
    assert [f["geometry"]["coordinates"] for f in data["features"]] == table.centroid.tolist()
    assert {f["geometry"]["type"] for f in data["features"]} == {"Point"}
    read = read_geojson(tmp_path / "p.geojson")
    assert_same(table, read, ("centroid", "type", "type_prob", "label"))
    assert len(read.contour_points) == 0
    assert (read.bbox[:, 2:] - read.bbox[:, :2] == 1).all()


@pytest.mark.parametrize("count", [0, 1, 4096, 4097])
def test_chunks_join_into_one_document(tmp_path, count):
    table = many(count, points=4)
    write_geojson(table, tmp_path / "a.geojson")
    assert_same(table, read_geojson(tmp_path / "a.geojson"))


def test_two_runs_give_the_same_bytes(tmp_path):
    table = make_nuclei([square(0, 0), square(0, 0), BOW_TIE, LINE])
    for suffix in (".geojson", ".geojson.gz"):
        write_geojson(table, tmp_path / f"a{suffix}")
        write_geojson(table, tmp_path / f"b{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()) == (tmp_path / "a.geojson").read_bytes()


def test_the_released_list_of_multipolygons_is_read(tmp_path):
    def feature(name, color, *rings):
        classification = {"name": name, "color": color}
        properties = {"objectType": "annotation", "classification": classification}
        geometry = {"type": "MultiPolygon", "coordinates": [[[*ring, ring[0]]] for ring in rings]}
        return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}

    content = [
        feature("Epithelial", [255, 159, 68], square(0, 0), square(20, 0)),
        feature("Neoplastic", [255, 0, 0], square(40, 8)),
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    read = read_geojson(tmp_path / "a.geojson")
    assert read.classes.names == PANNUKE.names
    # what the file states, and ours of types that it does not hold
    assert read.classes.colors == ((0, 0, 0), (255, 0, 0), *PANNUKE.colors[2:5], (255, 159, 68))
    assert read.type.tolist() == [5, 5, 1]
    assert read.contour(2).tolist() == [[40, 8], [48, 8], [48, 16], [40, 16]]
    assert read.centroid.tolist() == [[4, 4], [24, 4], [44, 12]]
    assert read.bbox.tolist() == [[0, 0, 8, 8], [20, 0, 28, 8], [40, 8, 48, 16]]
    assert np.isnan(read.type_prob).all()
    write_geojson(read, tmp_path / "b.geojson")
    assert_same(read, read_geojson(tmp_path / "b.geojson"))


def test_multipoints_bare_rings_and_other_names_are_read(tmp_path):
    def feature(kind, coordinates, name, measurements):
        properties = {"classification": {"name": name}, "measurements": measurements}
        return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}

    old_style = [{"name": "Type probability", "value": 0.5}]
    content = [
        feature("MultiPoint", [[3.5, 4.5], [9, 9]], "Plasma", []),
        feature("MultiPolygon", [square(0, 0)], "Tumor", old_style),
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": None},
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    read = read_geojson(tmp_path / "a.geojson")
    assert read.classes.names == ("Background", "Plasma", "Tumor")
    assert read.type.tolist() == [1, 1, 2, 0]
    assert read.centroid.tolist() == [[3.5, 4.5], [9, 9], [4, 4], [1, 2]]
    assert read.bbox[0].tolist() == [3, 4, 4, 5]
    assert read.type_prob[2] == 0.5


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "3",
        "[3]",
        '{"type": "Topology"}',
        '[{"type": "Feature", "geometry": null, "properties": {}}]',
        '[{"geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": []}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[1], [2], [3]]]}}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[["a", "b"], [2, 3], [3, 4]]]}}]',
        '{"type": "FeatureCollection", "cellvit": {"classes": [{"name": "x"}]}, "features": []}',
        '{"type": "FeatureCollection", "cellvit": {}, "features": []}',
    ],
)
def test_what_is_not_ours_is_an_error_with_the_name_of_the_file(tmp_path, content):
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(DataError, match=r"a\.geojson"):
        read_geojson(tmp_path / "a.geojson")


def test_missing_and_truncated_files_are_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_geojson(tmp_path / "a.geojson")
    write_geojson(many(50), tmp_path / "a.geojson.gz")
    data = (tmp_path / "a.geojson.gz").read_bytes()
    for broken in (data[:-20], data[:200], data[:100] + b"xxxx" + data[104:]):
        (tmp_path / "b.geojson.gz").write_bytes(broken)
        with pytest.raises(DataError, match="is not JSON"):
            read_geojson(tmp_path / "b.geojson.gz")


def test_what_geojson_cannot_hold_is_refused_before_a_file_appears(tmp_path):
    table = make_nuclei([square(0, 0), [], square(5, 5)])
    table.contour_points[6] = np.nan
    with pytest.raises(DataError, match="contour_points of nucleus 2"):
        write_geojson(table, tmp_path / "a.geojson")
    with pytest.raises(DataError, match="type_prob of nucleus 0"):
        write_geojson(make_nuclei([square(0, 0)], type_prob=[np.inf]), tmp_path / "a.geojson")
    with pytest.raises(ConfigError, match="'tile'"):
        write_geojson(make_nuclei([]), tmp_path / "a.geojson", object_type="tile")
    assert list(tmp_path.iterdir()) == []


def test_many_nuclei_are_written_without_all_of_them_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("cellvit.io.text.CHUNK", 64)
    table = many(4000, points=8)
    tracemalloc.start()
    try:
        write_geojson(table, tmp_path / "a.geojson")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # as Python objects the features take several times the size of their text
    assert peak < 1.5 * (tmp_path / "a.geojson").stat().st_size
    assert (tmp_path / "a.geojson").read_text().count("\n") == 4000 + 2


def test_twenty_thousand_nuclei_come_back(tmp_path):
    table = many(20_000, points=6)
    write_geojson(table, tmp_path / "a.geojson")
    assert_same(table, read_geojson(tmp_path / "a.geojson"))
