import gzip
import json
import pickle

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.regions import Region

SQUARE = [[10, 20], [40, 20], [40, 60], [10, 60], [10, 20]]
HOLE = [[20, 30], [20, 40], [30, 40], [30, 30], [20, 30]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, **properties):
    return {"type": "Feature", "id": "5d3a", "geometry": geometry, "properties": properties}


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.fixture
def read(tmp_path):
    return lambda data: Region.read(write(tmp_path / "regions.geojson", data))


FORMS = {
    "geometry": polygon(SQUARE),
    "feature": feature(polygon(SQUARE)),
    "collection": {"type": "FeatureCollection", "features": [feature(polygon(SQUARE), objectType="annotation")]},
    "list": [feature(polygon(SQUARE)), feature(None)],
    "multiple": {"type": "MultiPolygon", "coordinates": [[SQUARE], []]},
    "geometries": {"type": "GeometryCollection", "geometries": [polygon(SQUARE)]},
    "crs": {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
        "features": [feature(polygon(SQUARE))],
    },
    "reversed": polygon(SQUARE[::-1]),
    "open": polygon(SQUARE[:-1]),
    "heights": polygon([[x, y, 7] for x, y in SQUARE]),
    "overlapping halves": [
        polygon([[10, 20], [30, 20], [30, 60], [10, 60]]),
        polygon([[25, 20], [40, 20], *SQUARE[2:]]),
    ],
    "beside points": [polygon(SQUARE), {"type": "Point", "coordinates": [1, 2]}],
    "beside cells": [feature(polygon(SQUARE)), feature(polygon([[90, 90], [95, 90], [95, 95]]), objectType="cell")],
    "beside old cells": [polygon(SQUARE), {**feature(polygon([[90, 90], [95, 90], [95, 95]])), "id": "PathCellObject"}],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_gives_the_same_region(read, name):
    region = read(FORMS[name])
    assert region.area_px == pytest.approx(30 * 40)
    assert region.geometry.bounds == (10, 20, 40, 60)
    assert region.digest == read(polygon(SQUARE)).digest
    assert len(region.digest) == 64


def test_compressed_files_and_byte_order_marks_are_read(tmp_path):
    text = json.dumps(polygon(SQUARE))
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.geojson").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for name in ("a.geojson.gz", "b.geojson"):
        assert Region.read(tmp_path / name).area_px == 1200


def test_another_area_has_another_digest_and_pickled_ones_the_same(read):
    region = read(polygon(SQUARE, HOLE))
    assert region.digest != read(polygon(SQUARE)).digest
    assert pickle.loads(pickle.dumps(region)).digest == region.digest


def test_holes_are_outside(read):
    region = read(polygon(SQUARE, HOLE))
    assert region.area_px == 1100
    points = np.array([[15.0, 25], [25, 35], [5, 5], [35, 50]])
    assert region.contains(points).tolist() == [True, False, False, True]


def test_polygons_that_cross_themselves_are_repaired(read):
    region = read(polygon([[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]))
    assert region.area_px == pytest.approx(50)
    # the two lobes of a bow tie lie left and right
    assert region.contains(np.array([[0.5, 4.5], [8.5, 4.5], [4.5, 0.5]])).tolist() == [True, True, False]


def test_a_rectangle_contains_the_centres_of_exactly_its_pixels(read):
    region = read(polygon([[2, 1], [6, 1], [6, 4], [2, 4], [2, 1]]))
    x, y = np.meshgrid(np.arange(9.0), np.arange(7.0))
    inside = region.contains(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(7, 9)
    expected = np.zeros((7, 9), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(region.mask((7, 9), (0, 0, 9, 7)), expected)
    assert region.contains(np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("x,y\n1,2", "is not JSON"),
        ('{"type": "Polygon"', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no polygon but nothing"),
        ({"type": "FeatureCollection", "features": []}, "no polygon but nothing"),
        ({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}, "no polygon but 2 of type Point"),
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, "1 of type LineString"),
        ([feature(polygon(SQUARE), objectType="detection")] * 3, "3 of type detection"),
        ("5", "is not GeoJSON"),
        ('"text"', "is not GeoJSON"),
        ({"features": []}, "is not GeoJSON"),
        ({"type": "Circle", "coordinates": [1, 2]}, "'Circle' is unknown"),
        (polygon([["a", "b"], [1, 2], [3, 4]]), "is not GeoJSON"),
        (polygon([[1], [1, 2], [3, 4]]), "is not GeoJSON"),
        (polygon(5), "is not GeoJSON"),
        (polygon([[1, 2], [3, 4]]), "ring of 2 points"),
        (polygon([[1, 2], [3, 4], [5, 6], [1, 2]]), "enclose no area"),
        (polygon([[1, 2], [3, float("nan")], [5, 6]]), r"point 1 of a polygon .* \[3.0, nan\]"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [1e999, 3], [5, 6]]]}', "must be finite"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [1%s, 3], [5, 6]]]}' % ("0" * 400), "is not GeoJSON"),
    ],
)
def test_other_files_are_refused_with_a_reason(read, data, words):
    with pytest.raises(DataError, match=words) as caught:
        read(data)
    assert "regions.geojson" in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Region.read(tmp_path / "none.geojson")
    with pytest.raises(DataError, match="cannot be read"):
        Region.read(tmp_path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"[]")[:-4])
    with pytest.raises(DataError, match="is not JSON"):
        Region.read(tmp_path / "cut.gz")


def slow_mask(geometry, shape, bounds):
    """Every pixel on its own."""
    (x, y, width, height), (rows, columns) = bounds, shape
    mask = np.zeros(shape, bool)
    for row in range(rows):
        for col in range(columns):
            left, top = x + col * width / columns, y + row * height / rows
            pixel = shapely.box(left, top, left + width / columns, top + height / rows)
            mask[row, col] = geometry.intersects(pixel) and geometry.intersection(pixel).area > 0
    return mask


whole = st.integers(-4, 14).map(float)
loose = st.floats(-4, 14).map(lambda v: round(v, 3))


@given(
    st.lists(
        st.one_of(*[st.lists(st.tuples(c, c), min_size=3, max_size=7) for c in (whole, loose)]), min_size=1, max_size=3
    ),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.sampled_from([(0, 0, 8, 8), (2, 1, 8, 4), (-3, -3, 16, 16), (0.5, 2.25, 4, 2)]),
)
@settings(max_examples=200)
def test_the_raster_is_that_of_the_loop(rings, shape, bounds):
    geometry = shapely.union_all(shapely.make_valid([shapely.Polygon(ring) for ring in rings]))
    expected = slow_mask(geometry, shape, bounds)
    found = Region(geometry).mask(shape, bounds)
    for row, col in np.argwhere(found != expected):
        # the two may round a corner that just reaches into a pixel differently, and nothing else
        x, y, width, height = bounds
        left, top = x + col * width / shape[1], y + row * height / shape[0]
        pixel = shapely.box(left, top, left + width / shape[1], top + height / shape[0])
        assert geometry.distance(pixel) < 1e-9
        assert geometry.intersection(pixel).area < 1e-9


def test_a_thin_region_and_a_tiny_one_are_seen_on_a_coarse_raster():
    thin = Region(shapely.LineString([(0, 0), (100, 100)]).buffer(0.001))
    mask = thin.mask((10, 10), (0, 0, 100, 100))
    assert mask.diagonal().all()
    tiny = Region(shapely.box(55.1, 23.2, 55.3, 23.4)).mask((10, 10), (0, 0, 100, 100))
    assert np.argwhere(tiny).tolist() == [[2, 5]]


def test_what_lies_outside_the_raster_is_left_out_however_far():
    far = Region(shapely.box(-1e12, -1e12, 1e12, 5))
    assert far.mask((4, 4), (0, 0, 20, 20)).tolist() == [[True] * 4] + [[False] * 4] * 3
    assert not far.mask((4, 4), (0, 5, 20, 20)).any()
    hole = Region(shapely.box(-50, -50, 50, 50).difference(shapely.box(-10, -10, 30, 30)))
    assert not hole.mask((4, 4), (0, 0, 20, 20)).any()


def test_a_large_raster_is_exact_where_the_region_is_round():
    region = Region(shapely.Point(1000, 900).buffer(700, quad_segs=64))
    mask = region.mask((500, 640), (0, 0, 2560, 2000))
    assert mask.sum() * 16 == pytest.approx(region.area_px, rel=0.01)
    assert mask.sum() * 16 > region.area_px


@pytest.mark.parametrize(("shape", "bounds"), [((0, 4), (0, 0, 8, 8)), ((4, 4), (0, 0, 0, 8)), ((4, 4), (0, 0, 8, -1))])
def test_rasters_without_area_are_refused(shape, bounds):
    with pytest.raises(ConfigError, match="positive width and height"):
        Region(shapely.box(0, 0, 1, 1)).mask(shape, bounds)
