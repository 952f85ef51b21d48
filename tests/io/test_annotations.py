"""Annotations of every layout: where they lie, what they are called, and what of a file is not used."""

import gzip
import json
import zipfile

import numpy as np
import pytest
import roifile
import shapely
from export_samples import make_nuclei, square

from cellvit.errors import DataError
from cellvit.io.annotations.base import ANNOTATIONS, AnnotationReader, Annotations, read_annotations
from cellvit.io.formats.base import FORMATS, ImageFacts
from cellvit.plugins.registry import RegistryEntry

SQUARE = [[0, 0], [4, 0], [4, 2], [0, 2]]


def coordinates(found):
    return [shapely.get_coordinates(one).tolist() for one in found.geometry]


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("x,y,class\n1.5,2,A\n3,4,B\n", "px"),
        ("\ufeffClass\tCentroid X px\tCentroid Y px\nA\t1.5\t2\nB\t3\t4\n", "px"),
        ("y;x;label\n2;1,5;A\n4;3;B\n", "px"),
        ("id,x_um,y_um,cell_type\n9,1.5,2,A\n8,3,4,B\n", "um"),
        ("X [\u03bcm],Y [\u03bcm],Classification\r\n1.5,2,A\r\n3,4,B\r\n", "um"),
        ("x_um,y_um,x,y,type\n0,0,1.5,2,A\n0,0,3,4,B\n", "px"),
    ],
)
def test_tables_by_the_names_of_their_columns(tmp_path, text, unit):
    found = read_annotations(written(tmp_path / "a.csv", text))
    assert coordinates(found) == [[[1.5, 2]], [[3, 4]]]
    assert found.class_name.tolist() == ["A", "B"]
    assert (found.unit, found.is_point.all(), found.found.any()) == (unit, True, False)


def test_a_table_of_mixed_units_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="different units"):
        read_annotations(written(tmp_path / "a.csv", "x_um,y,class\n1,2,A\n"))
    with pytest.raises(DataError, match="of no kind that is read"):
        read_annotations(written(tmp_path / "b.csv", "a,b,class\n1,2,A\n"))
    with pytest.raises(DataError, match="no readable table"):
        read_annotations(written(tmp_path / "c.csv", "x,y,class\n1,2\n"))


def test_layers_of_napari_have_y_first_and_count_from_the_centres_of_pixels(tmp_path):
    points = written(tmp_path / "Tumor.csv", "index,axis-0,axis-1\n0,10,20\n1,11,21\n")
    found = read_annotations(points)
    assert coordinates(found) == [[[20.5, 10.5]], [[21.5, 11.5]]]
    assert found.class_name.tolist() == ["Tumor", "Tumor"]
    assert "the name of the file" in found.notes[0]
    deep = written(tmp_path / "b.csv", "index,axis-0,axis-1,axis-2,class\n0,5,10,20,A\n")
    assert coordinates(read_annotations(deep)) == [[[20.5, 10.5]]]
    rows = [
        *(f"0,rectangle,{i},{y},{x}" for i, (x, y) in enumerate(SQUARE)),
        *(f"1,ellipse,{i},{y},{x}" for i, (x, y) in enumerate(SQUARE)),
        *(f"10,path,{i},{y},{x}" for i, (x, y) in enumerate(SQUARE)),
    ]
    shapes = written(tmp_path / "c.csv", "\n".join(["index,shape-type,vertex-index,axis-0,axis-1", *rows]) + "\n")
    found = read_annotations(shapes, class_name="B")
    assert found.geometry[0].equals(shapely.box(0.5, 0.5, 4.5, 2.5))
    assert found.geometry[1].area == pytest.approx(np.pi * 2 * 1, rel=0.01)
    assert found.class_name.tolist() == ["B", "B"]
    assert "1 shapes are paths or lines" in found.notes[0]


def test_shapes_of_labelme(tmp_path):
    shapes = [
        {"label": "A", "shape_type": "point", "points": [[3, 4]]},
        {"label": "B ", "shape_type": "polygon", "points": SQUARE},
        {"label": "C", "shape_type": "circle", "points": [[10, 10], [12, 10]]},
        {"label": "D", "shape_type": "line", "points": [[0, 0], [1, 1]]},
        {"label": None, "points": SQUARE},
    ]
    found = read_annotations(written(tmp_path / "a.json", {"shapes": shapes}))
    assert found.class_name.tolist() == ["A", "B", "C", ""]
    assert [round(one.area) for one in found.geometry] == [0, 8, 13, 8]
    assert "'line' are no points or areas" in found.notes[0]


def test_polygons_masks_and_boxes_of_coco(tmp_path):
    flat = [value for corner in SQUARE for value in corner]
    data = {
        "images": [{"id": 1, "file_name": "one.png", "height": 8, "width": 8}, {"id": 2, "file_name": "two.png"}],
        "categories": [{"id": 7, "name": "A"}, {"id": 8, "name": "B"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "segmentation": [flat]},
            {"image_id": 1, "category_id": 8, "bbox": [4, 4, 2, 2]},
            {"image_id": 2, "category_id": 8, "segmentation": [flat]},
            {"image_id": 2, "category_id": 8, "segmentation": [flat], "iscrowd": 1},
        ],
    }
    path = written(tmp_path / "a.json", data)
    found = read_annotations(path, image="one")
    assert found.class_name.tolist() == ["A", "B"]
    assert found.geometry[0].area == 8
    assert coordinates(found)[1] == [[5, 5]]
    assert read_annotations(path, image="two").class_name.tolist() == ["B"]
    with pytest.raises(DataError, match="name the other file like one of them"):
        read_annotations(path)
    data["annotations"][0]["segmentation"] = {"size": [8, 8], "counts": [9, 2, 53]}
    found = read_annotations(written(path, data), image="one")
    assert (found.geometry[0].area, found.geometry[0].bounds) == (2, (1, 1, 2, 3))


def test_regions_of_imagej_by_name_and_group(tmp_path):
    def region(name, points, kind=None, group=0):
        one = roifile.ImagejRoi.frompoints(np.array(points, np.float32), name=name)
        one.roitype, one.group = kind or roifile.ROI_TYPE.POLYGON, group
        return one

    regions = [
        region("Tumor", SQUARE),
        region("Tumor-1", SQUARE),
        region("0012-0034", SQUARE, group=3),
        region("0012-0034-1", SQUARE),
        region("Stroma", [[1, 1], [5, 5]], roifile.ROI_TYPE.POINT),
        region("Edge", SQUARE, roifile.ROI_TYPE.POLYLINE),
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for row, one in enumerate(regions):
            archive.writestr(f"{row}.roi", one.tobytes())
    found = read_annotations(tmp_path / "a.zip")
    assert found.class_name.tolist() == ["Tumor", "Tumor", "Group 3", "", "Stroma", "Stroma"]
    half = 0 if regions[4].subpixelresolution else 0.5
    assert coordinates(found)[4] == [[1 + half, 1 + half]]
    assert "'polyline'" in found.notes[0]


@pytest.mark.parametrize("name", ["parquet", "imagej", "coco", "geojson", "json"])
def test_nuclei_that_we_write_are_annotations_with_their_types(tmp_path, name):
    nuclei = make_nuclei([square(10, 10), square(30, 10), square(10, 40)], type=[1, 5, 0])
    path = tmp_path / ("a" + FORMATS.get(name).suffixes[0])
    FORMATS.get(name)().write(nuclei, path, ImageFacts(size=(60, 60)))
    found = read_annotations(path)
    expected = [nucleus.type_name for nucleus in nuclei]
    assert [one or "No type" for one in found.class_name] == expected
    assert found.found.all() == (name in ("parquet", "geojson", "json"))
    assert [one.area for one in found.geometry] == pytest.approx([64, 64, 64], rel=0.3)


def test_geojson_keeps_holes_pieces_and_what_each_object_is(tmp_path):
    hole = [[1, 0.5], [2, 0.5], [2, 1], [1, 1], [1, 0.5]]
    ring = [*SQUARE, SQUARE[0]]
    whole, holed = ({"type": "Polygon", "coordinates": rings} for rings in ([ring], [ring, hole]))
    positive = {"objectType": "annotation", "classification": {"names": ["T", "P"]}}
    nucleus = {"type": "Point", "coordinates": [2, 1]}
    features = [
        {"properties": positive, "geometry": holed},
        {"properties": {"objectType": "cell"}, "geometry": whole, "nucleusGeometry": nucleus},
        {"properties": {}, "geometry": {"type": "MultiPolygon", "coordinates": [[ring], [ring]]}},
        {"properties": {"objectType": "tile"}, "geometry": whole},
        {"properties": {}, "geometry": {"type": "LineString", "coordinates": SQUARE}},
        {"properties": {}, "geometry": None},
    ]
    packed = tmp_path / "a.geojson.gz"
    packed.write_bytes(gzip.compress(json.dumps([{"type": "Feature", **one} for one in features]).encode()))
    found = read_annotations(packed)
    assert [one.area for one in found.geometry] == [7.5, 0, 8]  # pieces that overlap are one area
    assert found.class_name.tolist() == ["T: P", "", ""]
    assert found.found.tolist() == [False, True, False]
    assert len(found.notes) == 3
    bad = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}
    with pytest.raises(DataError, match="at least three"):
        read_annotations(written(tmp_path / "b.geojson", bad))
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(written(tmp_path / "c.geojson", {"type": "Feature", "geometry": {"type": "Circle"}}))


def test_a_layout_of_another_package_is_asked_first(tmp_path, monkeypatch):
    class Mine(AnnotationReader):
        @classmethod
        def accepts(cls, file):
            return file.start.startswith(b"mine")

        def read(self, file):
            return Annotations.of([shapely.Point(1, 2), shapely.Point(np.nan, 0)], ["A", None])

    entry = RegistryEntry("mine", "x.Mine", "x", "1", Mine)
    monkeypatch.setattr(ANNOTATIONS, "entries", lambda: [entry])
    found = read_annotations(written(tmp_path / "a.txt", "mine"))
    assert (coordinates(found), found.class_name.tolist()) == ([[[1, 2]]], ["A"])
    assert "1 places that are no numbers" in found.notes[0]
    with pytest.raises(DataError, match="check the path"):
        read_annotations(tmp_path / "gone.txt")
