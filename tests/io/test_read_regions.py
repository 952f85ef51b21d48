import gzip
import json
import pickle

import numpy as np
import pytest

from cellvit.errors import DataError
from cellvit.io.regions import read_region

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
    return lambda data: read_region(write(tmp_path / "regions.geojson", data))[0]


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
        assert read_region(tmp_path / name)[0].area_px == 1200


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
    inside = region.contains(np.stack([x.ravel(), y.ravel()], axis=1) + 0.5).reshape(7, 9)
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
        read_region(tmp_path / "none.geojson")
    with pytest.raises(DataError, match="cannot be read"):
        read_region(tmp_path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"[]")[:-4])
    with pytest.raises(DataError, match="is not JSON"):
        read_region(tmp_path / "cut.gz")
