"""What QuPath writes, in all its versions, and what others make of it: which objects are nuclei, which are regions."""

import gzip
import json
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from export_samples import make_nuclei, square

from cellvit import io, read_nuclei
from cellvit.errors import DataError
from cellvit.io.geojson import found_in_geojson
from cellvit.io.qupath import class_of, objects_of
from cellvit.io.regions import read_region

CORNERS = [(10, 10), (50, 10), (90, 10)]
AROUND = [[0, 0], [200, 0], [200, 200], [0, 200], [0, 0]]


def polygon(x, y, side=8.0):
    return {"type": "Polygon", "coordinates": [[*map(list, square(x, y, side)), [x, y]]]}


def feature(geometry, kind=None, **more):
    properties = {"objectType": kind} if kind else {}
    return {"type": "Feature", "geometry": geometry, "properties": properties | more.pop("properties", {}), **more}


def three(kind=None, **more):
    return [feature(polygon(x, y), kind, **more) for x, y in CORNERS]


def found(data):
    return found_in_geojson(data, "a.geojson")


def corners(nuclei):
    return [tuple(nuclei.contour(i).min(axis=0)) for i in range(len(nuclei))]


@contextmanager
def nothing_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


FORMS = {
    "collection": lambda features: {"type": "FeatureCollection", "features": features},
    "list": lambda features: features,
    "children of a region": lambda features: [feature(polygon(0, 0, 200), "annotation", childObjects=features)],
    "children in the properties": lambda features: feature(
        polygon(0, 0, 200), "annotation", properties={"childObjects": features}
    ),
    "children of the root": lambda features: feature(None, "root", childObjects=features),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["annotation", "detection", "cell"])
def test_nuclei_are_found_in_every_form_of_file(form, kind):
    nuclei = found(FORMS[form](three(kind))).nuclei
    assert corners(nuclei) == CORNERS


@pytest.mark.parametrize("geometry", [polygon(3, 4), {"type": "GeometryCollection", "geometries": [polygon(3, 4)]}])
@pytest.mark.parametrize("wrap", [lambda g: g, feature, lambda g: [feature(g)], lambda g: [g]])
@pytest.mark.parametrize("encoding", [str.encode, lambda t: t.encode("utf-8-sig"), lambda t: gzip.compress(t.encode())])
def test_one_feature_and_one_geometry_are_read(tmp_path, geometry, wrap, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(encoding(json.dumps(wrap(geometry))))
    with nothing_said():
        assert corners(io.read_geojson(path)) == corners(read_nuclei(path)) == [(3, 4)]
    assert read_region(path)[0].geometry.bounds == (3, 4, 11, 12)


SPELLINGS = {
    "annotation": ["annotation", "Annotation", "PathAnnotationObject"],
    "detection": ["detection", "DETECTION", "PathDetectionObject"],
    "cell": ["cell", "Cell", "PathCellObject"],
    "tile": ["tile", "PathTileObject"],
    "TMA core": ["tma_core", "TMA core", "tmaCore", "TMACoreObject"],
    "root": ["root", "PathRootObject"],
    None: ["unknown", "5d3a", None],
}


@pytest.mark.parametrize(("kind", "spelling"), [(k, s) for k, spellings in SPELLINGS.items() for s in spellings])
def test_kinds_are_known_by_every_name_and_in_every_place(kind, spelling):
    place = polygon(0, 0)
    for entry in (
        {"type": "Feature", "geometry": place, "properties": {"objectType": spelling}},
        {"type": "Feature", "geometry": place, "properties": {"object_type": spelling}},
        {"geometry": place, "properties": json.dumps({"objectType": spelling})},
        {"type": "Feature", "geometry": place, "id": spelling},
        {"type": "Feature", "geometry": place, "properties": {"id": spelling}},
    ):
        (item,) = objects_of(entry)
        by_id = "id" in entry or "id" in entry["properties"]
        assert item.kind == (None if by_id and "Object" not in str(spelling) else kind)


def test_a_kind_that_is_stated_wins_over_an_old_id():
    (item,) = objects_of({**feature(polygon(0, 0), "cell"), "id": "PathAnnotationObject"})
    assert item.kind == "cell"


@pytest.mark.parametrize("kind", ["detection", "cell"])
@pytest.mark.parametrize("region", ["annotation", None])
def test_beside_detections_annotations_are_regions(tmp_path, kind, region):
    path = tmp_path / "a.geojson"
    path.write_text(
        json.dumps([*three(kind, nucleusGeometry=None), feature({"type": "Polygon", "coordinates": [AROUND]}, region)])
    )
    said = found(json.loads(path.read_text()))
    assert corners(said.nuclei) == CORNERS
    name = region or "object"
    assert said.notes[-1] == f"1 of 4 objects are no nuclei and left out: 1 x {name} beside detections or cells"
    # the same file as regions: the other way round
    drawn, notes = read_region(path)
    assert drawn.area_px == 200 * 200
    assert notes == [f"beside the regions, {str(path)!r} holds 3 of type {kind}: left out"]


@pytest.mark.parametrize("kind", ["tile", "TMA core", "root"])
def test_what_is_never_a_nucleus_is_left_out_and_said(kind):
    said = found([*three("annotation"), feature(polygon(0, 0, 200), kind)])
    assert corners(said.nuclei) == CORNERS
    assert said.notes == (f"1 of 4 objects are no nuclei and left out: 1 x {kind}",)
    with pytest.raises(DataError, match=rf"a\.geojson' holds no nuclei but 1 x {kind}; export detections"):
        found([feature(polygon(0, 0, 200), kind)])


OTHERS = {
    "annotation without a place": [
        None,
        {"type": "GeometryCollection", "geometries": []},
        {"type": "Polygon", "coordinates": []},
    ],
    "annotation (LineString)": [
        {"type": "LineString", "coordinates": [[0, 0], [5, 5]]},
        {"type": "MultiLineString", "coordinates": [[[0, 0], [5, 5]]]},
    ],
}


@pytest.mark.parametrize(("reason", "geometry"), [(r, g) for r, some in OTHERS.items() for g in some])
def test_rulers_and_objects_without_a_place_cost_nobody_else(reason, geometry):
    said = found([*three("annotation"), feature(geometry, "annotation")])
    assert corners(said.nuclei) == CORNERS
    assert said.notes[-1].endswith(f"left out: 1 x {reason}")
    assert corners(found([*three("detection"), feature(geometry, "annotation")]).nuclei) == CORNERS


def test_a_warning_says_what_is_left_out(tmp_path):
    (tmp_path / "a.geojson").write_text(json.dumps([*three("detection"), *[feature(polygon(0, 0), "tile")] * 1200]))
    for read in (io.read_geojson, read_nuclei):
        with pytest.warns(
            UserWarning, match=r"a\.geojson': 1,200 of 1,203 objects are no nuclei .*: 1,200 x tile$"
        ) as caught:
            read(tmp_path / "a.geojson")
        assert caught[0].filename == __file__


def test_of_a_cell_the_nucleus_is_read():
    cells = [feature(polygon(x - 5, y - 5, 18), "cell", nucleusGeometry=polygon(x, y)) for x, y in CORNERS]
    said = found(cells)
    assert corners(said.nuclei) == CORNERS
    assert said.notes == ()
    cells[1]["nucleusGeometry"] = None
    said = found(cells)
    assert corners(said.nuclei) == [CORNERS[0], CORNERS[2]]
    assert said.notes == ("1 of 3 objects are no nuclei and left out: 1 x cell without a nucleus",)
    cells = [feature(item["geometry"], "cell") for item in cells]
    said = found(cells)
    assert len(said.nuclei) == 3
    assert said.notes[0].startswith("of cells that state no nucleus (nucleusGeometry) the outline of the cell is taken")


def test_the_parts_of_a_cell_are_no_nuclei():
    spot = feature(polygon(11, 11, 1), "detection")
    cell = feature(polygon(5, 5, 18), "cell", nucleusGeometry=polygon(10, 10), childObjects=[spot, spot])
    said = found([cell])
    assert corners(said.nuclei) == [(10, 10)]
    assert said.notes == ("2 of 3 objects are no nuclei and left out: 2 x detection inside a cell",)


def test_cells_that_this_package_writes_are_nuclei(tmp_path):
    io.write_geojson(make_nuclei([square(0, 0)]), tmp_path / "a.geojson", object_type="cell")
    with nothing_said():
        assert len(io.read_geojson(tmp_path / "a.geojson")) == 1


def test_a_multipolygon_is_one_nucleus():
    """QuPath writes one where smoothing or a brush left a crumb beside an object."""
    crumbs = [polygon(x + 20, y, 1)["coordinates"] for x, y in CORNERS]
    shapes = [
        {"type": "MultiPolygon", "coordinates": [crumb, polygon(x, y)["coordinates"]]}
        for crumb, (x, y) in zip(crumbs, CORNERS, strict=True)
    ]
    collection = {"type": "GeometryCollection", "geometries": [polygon(70, 10, 1), polygon(50, 10)]}
    for kind in ("detection", "annotation", None):
        shapes[1] = collection if kind == "annotation" else shapes[1]
        said = found([feature(shape, kind, properties={"classification": {"name": "Tumor"}}) for shape in shapes])
        assert corners(said.nuclei) == CORNERS
        assert said.further.owner.tolist() == [0, 1, 2]
        assert said.further.piece.tolist() == [1, 1, 1]
        assert said.further.points[said.further.offsets[:-1]].tolist() == [[30, 10], [70, 10], [110, 10]]


def test_where_each_feature_is_a_class_its_polygons_are_nuclei():
    shape = {"type": "MultiPolygon", "coordinates": [polygon(x, y)["coordinates"] for x, y in CORNERS]}
    kinds = [{"classification": {"name": name}} for name in ("Tumor", "Stroma")]
    assert len(found([feature(shape, "annotation", properties=kind) for kind in kinds]).nuclei) == 6
    assert len(found([feature(shape, "detection", properties=kind) for kind in kinds]).nuclei) == 2
    assert len(found([feature(shape, "annotation", properties=kinds[0])] * 2).nuclei) == 2


def test_lost_pieces_and_holes_are_said(tmp_path):
    outer, hole = polygon(0, 0, 20)["coordinates"][0], polygon(5, 5, 4)["coordinates"][0]
    pieces = {"type": "MultiPolygon", "coordinates": [[outer, hole], polygon(50, 0, 3)["coordinates"]]}
    (tmp_path / "a.geojson").write_text(
        json.dumps([feature(pieces, "detection"), feature(polygon(90, 0), "detection")])
    )
    with pytest.warns(UserWarning, match="nuclei") as caught:
        nuclei = io.read_geojson(tmp_path / "a.geojson")
    assert corners(nuclei) == [(0, 0), (90, 0)]
    first, second = (str(warning.message).partition(": ")[2] for warning in caught)
    assert first == "of nuclei of several pieces the largest is kept (1 of 2 nuclei)"
    assert second == "holes in nuclei are filled (1 of 2 nuclei)"


def test_points_are_nuclei_each():
    points = {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}
    said = found([feature(points, "annotation"), feature({"type": "Point", "coordinates": [5, 6]}, "annotation")])
    assert said.nuclei.centroid.tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(DataError, match="no nuclei but 1 x object without a place"):
        found({"type": "MultiPoint", "coordinates": []})


def test_points_may_have_a_height():
    ring = [[0, 0, 1], [9, 0], [9, 9, 1], [0, 0, 1]]
    assert found({"type": "Polygon", "coordinates": [ring]}).nuclei.contour_points.tolist() == [[0, 0], [9, 0], [9, 9]]


CLASSES = [
    ("Tumor: Positive", "Tumor: Positive"),
    ({"name": "Tumor: Positive"}, "Tumor: Positive"),
    ({"names": ["Tumor", "Positive"]}, "Tumor: Positive"),
    ({"name": "Positive", "names": ["Tumor", "Positive"]}, "Tumor: Positive"),
    ({"name": "Positive", "parentClass": {"name": "Tumor"}}, "Tumor: Positive"),
    ({"name": "Tumor: Positive", "parentClass": {"name": "Tumor"}}, "Tumor: Positive"),
    ({"name": "3+", "parentClass": {"name": "Positive", "parentClass": {"name": "Tumor"}}}, "Tumor: Positive: 3+"),
    ({"name": "Positive", "parentClass": None}, "Positive"),
    ({"name": "Positive", "parentClass": {}}, "Positive"),
    ({"names": []}, None),
    (["Tumor", "Positive"], "Tumor: Positive"),
    ('{"name": "Tumor: Positive", "color": [1, 2, 3]}', "Tumor: Positive"),
    ("{'names': ['Tumor', 'Positive']}", "Tumor: Positive"),
    (None, None),
    ({}, None),
    ("", None),
    (float("nan"), None),
]


@pytest.mark.parametrize(("stated", "name"), CLASSES)
def test_classes_have_one_path_however_they_are_written(stated, name):
    assert class_of({"classification": stated}).name == name
    assert class_of({"classification": stated}).given


def test_classes_that_were_made_flat_or_are_not_there():
    assert class_of({"classification.name": "Tumor"}).name == class_of({"classification_name": "Tumor"}).name == "Tumor"
    assert class_of({}) == (None, False, None)


@pytest.mark.parametrize(
    "color", [{"color": [200, 0, 9]}, {"color": [200, 0, 9, 255]}, {"colorRGB": -3669943 - 56}, {"colorRGB": 0xC80009}]
)
def test_colours_of_all_versions_are_kept(color):
    nuclei = found(three("detection", properties={"classification": {"name": "x", **color}})).nuclei
    packed = color.get("colorRGB", 0xC80009)
    assert nuclei.classes.colors[1] == (packed >> 16 & 255, packed >> 8 & 255, packed & 255)


def test_regions_are_annotations_first_and_cores_where_there_are_none(tmp_path):
    path = tmp_path / "a.geojson"
    cores = [
        feature(polygon(0, 0, 100), "TMA core"),
        feature(polygon(300, 0, 100), "tma_core", properties={"isMissing": True}),
    ]
    path.write_text(json.dumps(cores))
    region, notes = read_region(path)
    assert region.geometry.bounds == (0, 0, 100, 100)
    assert notes == [f"beside the regions, {str(path)!r} holds 1 of type missing TMA core: left out"]
    path.write_text(json.dumps([*cores, feature(polygon(5, 5, 10), "annotation"), feature(None, "annotation")]))
    region, notes = read_region(path)
    assert region.geometry.bounds == (5, 5, 15, 15)
    assert notes[0].endswith("holds 1 of type TMA core, 1 of type missing TMA core, 1 without a place: left out")


@pytest.mark.parametrize("kind", ["detection", "cell", "tile", "root"])
def test_results_are_no_regions(tmp_path, kind):
    path = tmp_path / "a.geojson"
    results = [
        feature(polygon(800, 800, 100), kind),
        {**feature(polygon(800, 800)), "properties": {"object_type": kind}},
    ]
    path.write_text(json.dumps([feature(polygon(0, 0, 200), "annotation", childObjects=results)]))
    region, notes = read_region(path)
    assert region.area_px == 200 * 200
    assert notes == [f"beside the regions, {str(path)!r} holds 2 of type {kind}: left out"]
    path.write_text(json.dumps(results))
    with pytest.raises(DataError, match=f"holds no polygon but 2 of type {kind}; draw areas"):
        read_region(path)


def test_a_moved_outline_takes_its_centre_along(tmp_path):
    """Another program may move outlines, and knows nothing of centroids and boxes that are stored beside them."""
    io.write_geojson(make_nuclei([square(x, y) for x, y in CORNERS]), tmp_path / "a.geojson")
    data = json.loads((tmp_path / "a.geojson").read_text())
    del data["cellvit"]
    assert found(data).nuclei.centroid.tolist() == [[x + 4, y + 4] for x, y in CORNERS]
    data["features"][1]["geometry"] = polygon(500, 600)
    nuclei = found(data).nuclei
    assert nuclei.centroid.tolist() == [[14, 14], [504, 604], [94, 14]]
    np.testing.assert_array_equal(nuclei.bbox[1], [500, 600, 508, 608])
