"""``evaluate``: one call that scores files, folders and nuclei in memory as the command line does."""

import json
import math

import numpy as np
import pytest

from cellvit.cli import main
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.evaluation.scoring import evaluate
from cellvit.io.parquet import write_parquet
from cellvit.types import Nuclei, NucleiClasses

CLASSES = NucleiClasses(("Background", "Small", "Large"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def nuclei_at(*corners, types=(1, 2)):
    instances = np.zeros((64, 64), np.int32)
    for label, (row, col) in enumerate(corners, start=1):
        instances[row : row + 8, col : col + 8] = label
    found = nuclei_from_labels(instances, np.array([0, *types]))
    return Nuclei(**{**vars(found.nuclei), "classes": CLASSES})


@pytest.fixture
def folders(tmp_path):
    truth, found = nuclei_at((4, 4), (30, 30)), nuclei_at((4, 4), (50, 10))
    for folder, tables in (("truth", [truth, truth]), ("found", [truth, found])):
        (tmp_path / folder).mkdir()
        for name, nuclei in zip("ab", tables, strict=True):
            write_parquet(nuclei, tmp_path / folder / f"{name}.parquet")
    return tmp_path


def test_folders_files_and_nuclei_give_the_same_scores(folders):
    found, truth = folders / "found", folders / "truth"
    whole = evaluate(found, truth)
    assert whole.settings.class_names == CLASSES.names
    assert whole["F1_d"] == pytest.approx(0.75)
    files = [[folder / f"{name}.parquet" for name in "ab"] for folder in (found, truth)]
    listed = evaluate(*files)
    memory = evaluate(
        [nuclei_at((4, 4), (30, 30)), nuclei_at((4, 4), (50, 10))], [nuclei_at((4, 4), (30, 30)) for _ in range(2)]
    )
    for other in (listed, memory):
        np.testing.assert_equal(other.scores, whole.scores)
    single = evaluate(nuclei_at((4, 4), (30, 30)), truth / "a.parquet")
    assert single["bPQ"] == pytest.approx(1, abs=1e-5)
    assert [row["image"] for row in whole.table()] == ["a", "b"]
    assert {row["type or tissue"] for row in whole.groups()} == {"Small", "Large"}
    assert repr(whole).startswith("Evaluation(2 images: bPQ 0.")
    assert json.dumps(whole.to_dict()["settings"])


def test_the_command_line_writes_the_same_numbers(folders):
    out = folders / "out"
    assert main(["evaluate", str(folders / "found"), "--truth", str(folders / "truth"), "--out", str(out)]) == 0
    stored = json.loads((out / "scores.json").read_text())["scores"]
    for name, value in evaluate(folders / "found", folders / "truth").scores.items():
        assert stored[name] is None if math.isnan(value) else stored[name] == pytest.approx(value, abs=1e-6)


def test_notes_say_what_a_reader_must_know(folders):
    (folders / "truth" / "c.parquet").write_bytes((folders / "truth" / "a.parquet").read_bytes())
    with pytest.raises(DataError, match="1 of 3 images have no prediction"):
        evaluate(folders / "found", folders / "truth")
    assert (
        "1 of 3 images have no prediction" in evaluate(folders / "found", folders / "truth", skip_missing=True).notes[0]
    )
    assert "the same path" in evaluate(folders / "truth", folders / "truth").notes[0]


PLACES = [(x, y) for y in range(4, 60, 20) for x in range(4, 60, 20)]


def ring(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def objects(kind, geometry, **more):
    return [
        {"type": "Feature", "geometry": geometry(x, y), "properties": {"objectType": kind}}
        | {name: value(x, y) for name, value in more.items()}
        for x, y in PLACES
    ]


def square_at(x, y):
    return {"type": "Polygon", "coordinates": [ring(x, y, 8)]}


def scored(tmp_path, features, *, name="a.geojson", **settings):
    """Score a file against squares of 8 x 8 pixels with a hole of 2 x 2, as both QuPath and the map have them."""
    labels = np.zeros((64, 64), np.uint16)
    for label, (x, y) in enumerate(PLACES, start=1):
        labels[y : y + 8, x : x + 8] = label
        labels[y : y + 2, x : x + 2] = 0 if settings.get("holes") else label
    np.savez(tmp_path / "truth.npz", inst_map=labels, inst_type=np.arange(len(PLACES) + 1) % 2 + 1)
    settings.pop("holes", None)
    (tmp_path / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return evaluate(tmp_path / name, tmp_path / "truth.npz", pixel_corners=True, **({"binary": True} | settings))


REGION = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring(0, 0, 64)]}}
RULER = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, "properties": {}}
QUPATH = {
    "detections": objects("detection", square_at),
    "cells": objects(
        "cell", lambda x, y: {"type": "Polygon", "coordinates": [ring(x - 3, y - 3, 14)]}, nucleusGeometry=square_at
    ),
    "beside a region": [*objects("detection", square_at), REGION | {"properties": {"objectType": "annotation"}}],
    "beside an old region": [REGION | {"id": "PathAnnotationObject"}, *objects("detection", square_at)],
    "in a region": [
        REGION | {"properties": {"objectType": "annotation"}, "childObjects": objects("annotation", square_at)}
    ],
    "beside a ruler": [RULER, *objects("annotation", square_at), RULER | {"geometry": None}],
    "beside points": [RULER | {"geometry": {"type": "Point", "coordinates": [3, 3]}}, *objects(None, square_at)],
    "of two pieces": objects(
        "detection",
        lambda x, y: {
            "type": "MultiPolygon",
            "coordinates": [
                [[[x, y], [x + 3, y], [x + 3, y + 8], [x, y + 8]]],
                [[[x + 3, y], [x + 8, y], [x + 8, y + 8], [x + 3, y + 8]]],
            ],
        },
    ),
}


@pytest.mark.parametrize("name", QUPATH)
@pytest.mark.parametrize("file", ["a.geojson", "a.json"])
def test_objects_of_qupath_are_scored_for_what_they_are(tmp_path, name, file):
    found = scored(tmp_path, QUPATH[name], name=file)
    assert found["bPQ"] == pytest.approx(1)
    assert found.images[0].predicted == len(PLACES)
    assert any("left out" in note for note in found.notes) == (" a r" in name or " an " in name or "points" in name)
    assert all(file in note for note in found.notes)


def test_holes_are_scored_as_holes(tmp_path):
    holed = objects("detection", lambda x, y: {"type": "Polygon", "coordinates": [ring(x, y, 8), ring(x, y, 2)]})
    assert scored(tmp_path, holed, holes=True)["bPQ"] == pytest.approx(1)
    assert scored(tmp_path, holed)["bPQ"] == pytest.approx(60 / 64)


def test_derived_classes_are_translated_by_their_path(tmp_path):
    features = objects("detection", square_at)
    for i, feature in enumerate(features, start=1):
        names = {"names": ["Tumor", ("Negative", "Positive")[i % 2]]}
        feature["properties"]["classification"] = names
    names = {"Tumor: Negative": "Negative", "Tumor: Positive": "Positive"}
    classes = ("Background", "Negative", "Positive")
    found = scored(tmp_path, features, binary=False, class_names=classes, class_map=names)
    assert found["mPQ"] == pytest.approx(1)


def test_notes_of_many_files_are_cut(tmp_path):
    features = [*objects("detection", square_at), REGION | {"properties": {"objectType": "tile"}}]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    nuclei = [nuclei_at((4, 4), types=(1,))] * 30
    notes = evaluate([tmp_path / "a.geojson"] * 30, nuclei, binary=True).notes
    assert sum("1 x tile" in note for note in notes) == 20
    assert "... and 10 more notes of files." in notes


def test_what_cannot_be_compared_is_refused(folders):
    nuclei, path = nuclei_at((4, 4), types=(1,)), folders / "truth"
    with pytest.raises(ConfigError, match="2 predictions for 1 truths"):
        evaluate([nuclei, nuclei], [nuclei])
    with pytest.raises(ConfigError, match="is a folder among single images"):
        evaluate(nuclei, path)
    with pytest.raises(ConfigError, match="choose images of a data folder"):
        evaluate(nuclei, nuclei, split="val")
    with pytest.raises(ConfigError, match="binary=True leaves types out"):
        evaluate(nuclei, nuclei, binary=True, class_names=CLASSES.names)
    with pytest.raises(ConfigError, match="magnification 10 has no published radius"):
        evaluate(nuclei, nuclei, magnification=10)
