"""Types that survive other programs: the name of a class wins over every stored number."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from export_samples import assert_same, make_nuclei, square
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit import io
from cellvit.classes import NucleiClasses, standard_colors
from cellvit.io.geojson import found_in_geojson

NAMES = ("Background", "Other", "Inflammatory", "Epithelial", "Spindle-shaped")
CLASSES = NucleiClasses(NAMES, standard_colors(NAMES))


def typed(kinds, classes=CLASSES):
    return make_nuclei([square(20 * i, 0) for i in range(len(kinds))], type=kinds, classes=classes)


def written(nuclei):
    with TemporaryDirectory() as folder:
        io.write_geojson(nuclei, Path(folder, "a.geojson"))
        return json.loads(Path(folder, "a.geojson").read_text())


def names(nuclei):
    return [None if kind <= 0 else nuclei.classes.names[kind] for kind in nuclei.type.tolist()]


def stated(nuclei):
    return [None if kind <= 0 else NAMES[kind] for kind in nuclei.type.tolist()]


kinds = st.lists(st.integers(-1, 4), min_size=1, max_size=6)


@given(kinds, st.sampled_from(["member", "list", "one", "text"]), st.booleans())
@settings(max_examples=60)
def test_names_survive_the_loss_of_the_list(kinds, form, numbered):
    nuclei = typed(kinds)
    data = written(nuclei)
    features = data["features"]
    for feature in features:
        if form == "text":
            feature["properties"] = {
                k: v if isinstance(v, str) else json.dumps(v) for k, v in feature["properties"].items()
            }
        elif not numbered:
            del feature["properties"]["nucleus"]
    if form == "one":
        features, nuclei = features[-1:], nuclei[-1:]
    read = found_in_geojson(features if form == "list" else {"type": "FeatureCollection", "features": features}, "a")
    assert names(read.nuclei) == stated(nuclei)
    assert read.notes == ()


@given(kinds, st.data())
@settings(max_examples=60)
def test_a_corrected_class_is_a_corrected_class(kinds, data):
    nuclei = typed(kinds)
    content = written(nuclei)
    expected = stated(nuclei)
    for i, feature in enumerate(content["features"]):
        change = data.draw(st.sampled_from(["keep", "rename", "new", "none", "unnamed"]))
        if change in ("rename", "new"):
            expected[i] = data.draw(st.sampled_from(NAMES[1:] if change == "rename" else ("Plasma", "Mast: 2")))
            feature["properties"]["classification"] = {"name": expected[i]}
        elif change == "none":
            expected[i] = feature["properties"]["classification"] = None
        elif change == "unnamed":  # the number stays, and the list knows it
            feature["properties"].pop("classification", None)
    read = found_in_geojson(content, "a").nuclei
    assert names(read) == expected
    assert read.classes.names[: len(NAMES)] == NAMES
    assert len(read.classes.colors) == len(read.classes.names)


def test_corrected_types_of_a_file_without_names():
    content = written(typed([3, 1, 7], None))
    read = found_in_geojson(content, "a").nuclei
    assert (read.type.tolist(), read.classes) == ([3, 1, 7], None)
    content["features"][0]["properties"]["classification"]["name"] = "Type 2"
    content["features"][1]["properties"]["classification"]["name"] = "Plasma"
    read = found_in_geojson(content, "a").nuclei
    assert [read.classes.names[kind] for kind in read.type] == ["Type 2", "Plasma", "Type 7"]
    assert read.type.tolist() == [2, 8, 7]


def test_numbers_without_names_and_without_a_list_are_not_used():
    content = written(typed([3, 1, 0]))
    for feature in content["features"]:
        feature["properties"].pop("classification", None)
    assert found_in_geojson(content, "a").nuclei.type.tolist() == [3, 1, 0]
    for data in (content["features"], {**content, "cellvit": {"classes": None}}):
        read = found_in_geojson(data, "a")
        assert read.nuclei.type.tolist() == [0, 0, 0]
        assert read.notes[0].startswith("2 nuclei state the number of a type, such as 3, without the name of a class")
    del content["cellvit"]["classes"][2:]
    assert found_in_geojson(content, "a").nuclei.type.tolist() == [0, 1, 0]


def test_background_is_no_type():
    content = written(typed([3, 1]))
    content["features"][0]["properties"]["classification"]["name"] = "Background"
    assert found_in_geojson(content, "a").nuclei.type.tolist() == [0, 1]
    read = found_in_geojson(content["features"], "a").nuclei
    assert [read.classes.names[kind] for kind in read.type] == ["Background", "Other"]
    assert read.classes.names.count("Background") == 1


def test_colours_survive():
    classes = replace(CLASSES, colors=((0, 0, 0), (1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)))
    content = written(typed([4, 2], classes))
    read = found_in_geojson(content["features"], "a").nuclei
    assert dict(zip(read.classes.names, read.classes.colors, strict=True)) == {
        "Background": (0, 0, 0),
        "Spindle-shaped": (10, 11, 12),
        "Inflammatory": (4, 5, 6),
    }


@pytest.mark.parametrize("way", ["geojson", "to_json", "gpkg"])
def test_types_survive_geopandas(tmp_path, way):
    geopandas = pytest.importorskip("geopandas")
    pytest.importorskip("pyogrio")
    nuclei = typed([2, 4, 0, 1, 3])
    io.write_geojson(nuclei, tmp_path / "a.geojson")
    frame, path = geopandas.read_file(tmp_path / "a.geojson"), tmp_path / "b.geojson"
    if way == "to_json":
        path.write_text(frame.to_json())
    elif way == "gpkg":
        frame.to_file(tmp_path / "a.gpkg")
        geopandas.read_file(tmp_path / "a.gpkg").to_file(path)
    else:
        frame.to_file(path)
    read = io.read_geojson(path)
    assert names(read) == stated(nuclei)
    assert_same(replace(nuclei, classes=None), replace(read, classes=None), ("centroid", "label", "type_prob", "bbox"))
    np.testing.assert_array_equal(read.contour_points, nuclei.contour_points)
