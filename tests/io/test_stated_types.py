"""Types that survive other programs: the name of a class wins over every stored number."""

import json
import warnings
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


def through_geopandas(nuclei, folder, way, order):
    """Return the file that geopandas makes of nuclei, with its rows in another order."""
    geopandas = pytest.importorskip("geopandas")
    pytest.importorskip("pyogrio")
    last = folder / "last.geojson"
    if way.startswith("parquet"):
        io.write_parquet(nuclei, folder / "a.parquet")
        frame = geopandas.read_parquet(folder / "a.parquet").iloc[order]
        if way == "parquet":
            frame.to_parquet(folder / "last.parquet")
            return folder / "last.parquet"
    else:
        io.write_geojson(nuclei, folder / "a.geojson")
        frame = geopandas.read_file(folder / "a.geojson").iloc[order]
        if way == "to_json":
            last.write_text(frame.to_json())
            return last
        if way != "geojson":
            frame.to_file(folder / f"b.{way}")
            frame = geopandas.read_file(folder / f"b.{way}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)  # pixels have no place on Earth
        frame.to_file(last)
    return last


def by_label(nuclei):
    """Return what has to survive, whatever the order: names of types, probabilities, places."""
    rows = zip(nuclei.label.tolist(), names(nuclei), nuclei.type_prob.tolist(), nuclei.bbox.tolist(), strict=True)
    return {
        label: (name, prob, box, nuclei.centroid[i].tolist(), nuclei.contour(i).tolist())
        for i, (label, name, prob, box) in enumerate(rows)
    }


@pytest.mark.parametrize("way", ["geojson", "to_json", "gpkg", "fgb", "parquet", "parquet to geojson"])
@pytest.mark.parametrize("seed", range(3))
def test_types_and_ids_survive_geopandas(tmp_path, way, seed):
    rng = np.random.default_rng(seed)
    nuclei = replace(typed(rng.integers(0, 5, 7)), label=rng.permutation(900)[:7].astype(np.int32) + 1)
    path = through_geopandas(nuclei, tmp_path, way, rng.permutation(7))
    read = io.read_parquet(path) if path.suffix == ".parquet" else io.read_geojson(path)
    assert by_label(read) == by_label(nuclei)


@given(kinds, st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_types_and_ids_survive_qupath(kinds, random):
    """QuPath keeps ids, classes and measurements, as floats, and drops what it does not know."""
    nuclei = replace(typed(kinds), label=np.array(random.sample(range(1, 999), len(kinds)), np.int32))
    data = written(nuclei)
    features = []
    for feature in random.sample(data["features"], len(kinds)):
        stated = feature["properties"]
        properties = {"objectType": stated["objectType"], "isLocked": False}
        if "classification" in stated:
            properties["classification"] = stated["classification"]
        properties["measurements"] = {name: float(value) for name, value in stated["measurements"].items()}
        features.append(
            {"type": "Feature", "id": feature["id"], "geometry": feature["geometry"], "properties": properties}
        )
    found = found_in_geojson({"type": "FeatureCollection", "features": features}, "a")
    assert by_label(found.nuclei) == by_label(nuclei)
    assert found.framed


def test_a_corrected_name_in_a_table_is_a_corrected_class():
    nuclei = typed([3, 1, 0, 2])
    table = io.to_arrow(nuclei)
    assert table["classification"].to_pylist() == ["Epithelial", "Other", None, "Inflammatory"]
    assert_same(nuclei, io.from_arrow(table))
    place = table.column_names.index("classification")
    changed = io.from_arrow(table.set_column(place, "classification", [["Plasma", "Epithelial", None, None]]))
    assert names(changed) == ["Plasma", "Epithelial", None, None]
    assert changed.classes.names[: len(NAMES)] == NAMES


@pytest.mark.parametrize("suffix", [".geojson", ".parquet", ".h5ad", ".json"])
def test_labels_are_written_in_every_format_and_read_back(tmp_path, suffix):
    nuclei = replace(typed([3, 1, 2]), label=np.array([7, 900_000_001, 3], np.int32))
    writers = {".geojson": io.write_geojson, ".parquet": io.write_parquet, ".h5ad": io.write_anndata}
    writers.get(suffix, io.write_json)(nuclei, tmp_path / f"a{suffix}")
    read = io.read_nuclei(tmp_path / f"a{suffix}")
    assert (read.label.tolist(), names(read)) == (nuclei.label.tolist(), stated(nuclei))
