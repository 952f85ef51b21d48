import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from export_samples import PANNUKE, assert_same, make_nuclei, many, masks, nuclei, pixel_outlines, square
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon
from support.reference_postprocess import filled_piece, literal_contour

from cellvit.errors import DataError
from cellvit.io import read_json, write_json
from cellvit.postprocess.measure import nuclei_from_instances

CELL = {
    "bbox": [[10, 20], [15, 28]],
    "centroid": [24, 12],
    "contour": [[20, 10], [27, 10], [27, 14], [20, 14]],
    "type_prob": 0.93,
    "type": 5,
    "patch_coordinates": [0, 3],
    "cell_status": 2,
    "offset_global": [0, 2880],
    "edge_position": True,
    "edge_information": {"position": [1, 0, 0, 0], "edge_patches": [[0, 2]]},
}


EDGES = [[20, 10], [20, 15], [28, 15], [28, 10]]  # of the pixels whose border is the contour above
OTHERS = ("bbox", "type", "type_prob", "label")  # centres are moved by half a pixel and back


@given(nuclei(pixel_outlines(), embeddings=False), st.sampled_from(["a.json", "a.json.gz"]))
@settings(max_examples=40)
def test_reading_gives_back_what_was_written(given_nuclei, name):
    with TemporaryDirectory() as folder:
        write_json(given_nuclei, Path(folder, name))
        read = read_json(Path(folder, name))
    assert_same(given_nuclei, read, OTHERS)
    np.testing.assert_allclose(read.centroid, given_nuclei.centroid, rtol=0, atol=1e-9)
    for i in range(len(read)):  # an outline that was cut at a corner may start at another one
        assert set(map(tuple, read.contour(i).tolist())) == set(map(tuple, given_nuclei.contour(i).tolist()))


@given(st.lists(masks, min_size=1, max_size=4))
@settings(max_examples=60)
def test_contours_are_those_of_opencv(given_masks):
    wide = np.zeros((9, 9 * len(given_masks)), np.int32)
    for i, mask in enumerate(given_masks):
        wide[1 : 1 + mask.shape[0], 9 * i + 1 : 9 * i + 1 + mask.shape[1]][mask > 0] = i + 1
    found = nuclei_from_instances(wide, min_contour_points=1).nuclei
    with TemporaryDirectory() as folder:
        write_json(found, Path(folder, "a.json"))
        cells = json.loads(Path(folder, "a.json").read_text())["cells"]
    for i, cell in enumerate(cells):
        area, cut = filled_piece(wide == i + 1)
        if not cut:
            assert cell["contour"] == literal_contour(wide == i + 1).tolist()
        assert all(isinstance(number, int) for point in cell["contour"] for number in point)
        assert Polygon(found.contour(i)).area == area


@given(nuclei(embeddings=False))
@settings(max_examples=20)
def test_of_an_outline_along_no_pixels_those_inside_are_written(given_nuclei):
    with TemporaryDirectory() as folder:
        write_json(given_nuclei, Path(folder, "a.json"))
        assert_same(given_nuclei, read_json(Path(folder, "a.json")), OTHERS)
    with TemporaryDirectory() as folder:
        write_json(make_nuclei([[(0.4, 0.4), (0.4, 3.6), (6.6, 3.6), (6.6, 0.4)]]), Path(folder, "a.json"))
        cell = json.loads(Path(folder, "a.json").read_text())["cells"][0]
        assert cell["contour"] == [[0, 0], [0, 3], [6, 3], [6, 0]]


def test_the_layout_is_the_released_one(tmp_path):
    table = make_nuclei([EDGES], type=[5], type_prob=[0.93])
    write_json(table, tmp_path / "cells.json", metadata={"base_mpp": 0.25, "name": "Schnitt é"})
    data = json.loads((tmp_path / "cells.json").read_text())
    assert list(data) == ["wsi_metadata", "type_map", "cells"]
    names = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"]
    assert data["type_map"] == {str(i): name for i, name in enumerate(names, start=1)}
    assert data["wsi_metadata"]["base_mpp"] == 0.25
    assert data["wsi_metadata"]["name"] == "Schnitt é"
    assert data["cells"] == [
        {
            "bbox": [[10, 20], [15, 28]],
            "centroid": [23.5, 12.0],
            "contour": [[20, 10], [20, 14], [27, 14], [27, 10]],
            "type_prob": 0.93,
            "type": 5,
            "patch_coordinates": [0, 0],
            "cell_status": 0,
            "offset_global": [0, 0],
        }
    ]


@pytest.mark.parametrize(
    "type_map",
    [
        {str(i): name for i, name in enumerate(PANNUKE.names) if i},
        {name: i for i, name in enumerate(PANNUKE.names)},
    ],
)
def test_released_files_of_both_ages_are_read(tmp_path, type_map):
    content = {
        "wsi_metadata": {"patch_size": 1024},
        "processed_patches": ["0_3"],
        "type_map": type_map,
        "cells": [CELL],
    }
    (tmp_path / "cells.json").write_text(json.dumps(content))
    read = read_json(tmp_path / "cells.json")
    expected = make_nuclei([EDGES], type=[5], type_prob=[0.93])
    expected.centroid[:] = (24.5, 12.5)
    assert_same(expected, read)


def test_detections_without_outline_are_read(tmp_path):
    cells = [{"bbox": CELL["bbox"], "centroid": [24.5, 12.25], "type": 1}]
    (tmp_path / "a.json").write_text(json.dumps({"type_map": {"1": "Tumor"}, "cells": cells}))
    read = read_json(tmp_path / "a.json")
    assert read.centroid.tolist() == [[25, 12.75]]
    assert read.bbox.tolist() == [[20, 10, 28, 15]]
    assert len(read.contour_points) == 0
    assert np.isnan(read.type_prob[0])
    assert read.classes.names == ("Background", "Tumor")


def test_unnamed_types_get_names_in_the_file_only(tmp_path):
    table = make_nuclei([square(0, 0), square(9, 9)], type=[2, 0], classes=None)
    write_json(table, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["type_map"] == {"2": "Type 2"}
    assert read_json(tmp_path / "a.json").classes is None


@pytest.mark.parametrize("count", [0, 1, 4096, 4097])
def test_chunks_join_into_one_document_and_runs_agree(tmp_path, count):
    table = many(count, points=4)
    write_json(table, tmp_path / "a.json")
    write_json(table, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert_same(table, read_json(tmp_path / "a.json"), OTHERS)


def test_file_names_that_are_not_unicode_survive_as_metadata(tmp_path):
    write_json(make_nuclei([]), tmp_path / "a.json", metadata={"name": "a\udcff.png"})
    assert json.loads((tmp_path / "a.json").read_text())["wsi_metadata"]["name"] == "a\udcff.png"


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        '{"cells": 3}',
        '{"cells": [3]}',
        '{"cells": [{"bbox": [[0, 0], [1, 1]], "type": 1}]}',
        '{"cells": [{"centroid": [0, 0], "type": 1}]}',
        '{"cells": [{"bbox": [[0], [1]], "centroid": [0, 0], "type": 1}]}',
        '{"type_map": {"a": "b"}, "cells": []}',
        '{"type_map": [1], "cells": []}',
        '{"wsi_metadata": {"classes": [1]}, "cells": []}',
    ],
)
def test_other_layouts_are_errors_with_the_name_of_the_file(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_metadata_and_coordinates_that_json_cannot_hold_are_refused(tmp_path):
    table = make_nuclei([square(0, 0)])
    for metadata in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(DataError, match="plain data"):
            write_json(table, tmp_path / "a.json", metadata=metadata)
    table.centroid[0, 0] = np.inf
    with pytest.raises(DataError, match="centroid of nucleus 0"):
        write_json(table, tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
