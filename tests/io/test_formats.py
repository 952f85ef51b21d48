"""Every format of nuclei: written, read back by us, and opened by the program that it is for."""

import json
import warnings
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import highdicom
import numpy as np
import ome_types
import pandas as pd
import pydicom
import pytest
import roifile
import skimage.draw
import tifffile
from export_samples import PANNUKE, make_nuclei, many, square
from pycocotools.coco import COCO
from pydicom.uid import VLWholeSlideMicroscopyImageStorage, generate_uid

from cellvit import read_nuclei
from cellvit.errors import ConfigError, DataError
from cellvit.io import detections
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.plugins.registry import RegistryEntry
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import Nuclei, NucleiClasses

OWN_PROCESS = {"spatialdata"}  # see test_export_spatialdata
OF_DICOM_SLIDES = {"dicom-3d"}
NAMES = sorted(set(FORMATS.own) - OWN_PROCESS - OF_DICOM_SLIDES)
WITHOUT_TYPES = {"ome-tiff"}
WITHOUT_MEASUREMENTS = {"ome-tiff", "ome-zarr", "json", "points"}
ROUNDED = {"csv", "ome-tiff", "ome-zarr"}  # probabilities to six digits, or none
of_pycocotools = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE = (90, 120)
FACTS = ImageFacts(mpp=0.25, size=SHAPE[::-1], metadata={"image": "slide <1>.svs"})


def drawn_map():
    """Ellipses of whole pixels, a single pixel, and a line."""
    canvas = np.zeros(SHAPE, np.int32)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for label, (row, column, a, b) in enumerate([(20, 20, 9, 14), (25, 60, 7.5, 7.5), (60, 30, 12, 6)], start=1):
        canvas[((y - row) / a) ** 2 + ((x - column) / b) ** 2 < 1] = label
    canvas[70, 80] = 4
    canvas[80, 90:99] = 5
    return canvas


MAP = drawn_map()
LABELS = np.array([7, 3, 900, 12, 1], np.int32)
NUCLEI = replace(
    nuclei_from_instances(MAP, min_contour_points=1).nuclei,
    label=LABELS,
    type=np.array([1, 5, 0, 2, 5], np.int32),
    type_prob=np.array([0.25, 1 / 3, np.nan, 0.5, 0.75], np.float32),
    classes=PANNUKE,
    measurements={
        "solidity": np.array([0.5, 1, 0.25, np.nan, 0], np.float32),
        "feret_um": np.array([9, 8, 1 / 3, 6, 5], np.float32),
    },
    mpp=0.25,
)
LABEL_MAP = np.concatenate([[0], LABELS])[MAP]


def by_label(nuclei):
    return nuclei.select(np.argsort(nuclei.label))


def filled(ring):
    """The pixels whose centres lie in a ring."""
    rows, columns = skimage.draw.polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[rows, columns] = True
    return mask


def write(name, folder, nuclei=NUCLEI, facts=FACTS):
    chosen = FORMATS.get(name)()
    chosen.write(nuclei, folder / chosen.file, facts)
    return folder / chosen.file


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_is_read_whatever_it_is_called(tmp_path, name):
    path = write(name, tmp_path)
    found = by_label(read_nuclei(path if name == "csv" else path.rename(tmp_path / "other")))
    expected = by_label(NUCLEI)
    assert found.label.tolist() == expected.label.tolist()
    np.testing.assert_allclose(found.centroid, expected.centroid, atol=1e-6)
    if FORMATS.get(name).outlines:
        np.testing.assert_array_equal(found.area, expected.area)
        np.testing.assert_array_equal(found.bbox, expected.bbox)
        for i in range(len(found)):
            np.testing.assert_array_equal(filled(found.contour(i)), found.label[i] == LABEL_MAP)
    if name not in WITHOUT_TYPES:
        assert found.type.tolist() == expected.type.tolist()
        assert found.classes.names == PANNUKE.names
    if name not in WITHOUT_MEASUREMENTS:
        for measure, values in expected.measurements.items():
            np.testing.assert_allclose(found.measurements[measure], values, atol=1e-6 if name in ROUNDED else 0)
    if name not in ROUNDED:
        np.testing.assert_array_equal(found.type_prob, expected.type_prob)


@pytest.mark.parametrize("name", NAMES)
def test_no_nuclei_are_a_whole_file(tmp_path, name):
    assert len(read_nuclei(write(name, tmp_path, Nuclei.empty(classes=PANNUKE)))) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if "dicom" not in name and name != "ome-zarr"])
def test_the_same_nuclei_give_the_same_bytes(tmp_path, name):
    first = write(name, tmp_path).read_bytes()
    assert write(name, tmp_path).read_bytes() == first


@pytest.mark.parametrize("name", ["coco", "imagej", "ome-xml", "csv", "dicom"])
def test_names_of_other_types_are_kept(tmp_path, name):
    classes = NucleiClasses(("Background", "<a> & b", "t: 2"), ((0, 0, 0), (1, 2, 3), (4, 5, 6)))
    found = by_label(read_nuclei(write(name, tmp_path, replace(NUCLEI, type=NUCLEI.type % 3, classes=classes))))
    expected = [nucleus.type_name for nucleus in by_label(replace(NUCLEI, type=NUCLEI.type % 3, classes=classes))]
    assert [nucleus.type_name for nucleus in found] == expected


@of_pycocotools
@pytest.mark.parametrize("name", ["coco", "coco-rle"])
def test_coco_opens_in_pycocotools(tmp_path, name):
    data = COCO(write(name, tmp_path))
    entries = data.loadAnns(data.getAnnIds())
    assert [entry["label"] for entry in entries] == LABELS.tolist()
    assert [data.cats[entry["category_id"]]["name"] for entry in entries][:3] == ["Neoplastic", "Epithelial", "No type"]
    for entry, nucleus in zip(entries, NUCLEI, strict=True):
        np.testing.assert_array_equal(data.annToMask(entry), nucleus.label == LABEL_MAP)
        assert entry["area"] == (nucleus.label == LABEL_MAP).sum()
        left, top, right, bottom = nucleus.bbox.tolist()
        assert entry["bbox"] == [left, top, right - left, bottom - top]


@of_pycocotools
def test_two_points_do_not_become_a_box_of_coco(tmp_path):
    # pycocotools takes a list of four numbers for x, y, width, height
    nuclei = make_nuclei([[(40, 30), (44, 30)], square(3, 3)])
    data = COCO(write("coco", tmp_path, nuclei))
    entries = data.loadAnns(data.getAnnIds())
    assert min(len(ring) for entry in entries for ring in entry["segmentation"]) >= 6
    assert data.annToMask(entries[0]).sum() < 10


def test_coco_of_others_is_read(tmp_path):
    shape = [[5, 5, 9, 5, 9, 9, 5, 9]]
    content = {
        "images": [{"id": 4, "file_name": "a.png", "width": 20, "height": 20}],
        "categories": [{"id": 9, "name": "lymphocyte"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9, "segmentation": shape},
            {"id": 2, "image_id": 4, "category_id": 9, "segmentation": {"size": [20, 20], "counts": [21, 3, 376]}},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert [nucleus.type_name for nucleus in read_nuclei(tmp_path / "a.json")] == ["lymphocyte"] * 2


def test_coco_of_ours_is_scored_with_its_types(tmp_path):
    found = detections.read_nuclei(write("coco", tmp_path))
    names = [found.names[kind] for kind in found.types[[1, 2, 4, 5]]]
    assert names == ["Neoplastic", "Epithelial", "Inflammatory", "Epithelial"]
    assert found.types[3] == 0


def test_masks_of_more_nuclei_than_one_byte_counts(tmp_path):
    nuclei = many(300)
    found = read_nuclei(write("coco-rle", tmp_path, nuclei, ImageFacts(size=(50_020, 50_020))))
    np.testing.assert_array_equal(found.bbox, nuclei.bbox)


def test_masks_of_an_image_beyond_32_bits_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"70000 x 70000 px is too large.*choose 'coco'"):
        write("coco-rle", tmp_path, facts=ImageFacts(size=(70_000, 70_000)))
    assert list(tmp_path.iterdir()) == []


def test_imagej_opens_in_roifile(tmp_path):
    regions = roifile.roiread(write("imagej", tmp_path))
    assert [region.group for region in regions] == [1, 5, 0, 2, 5]
    assert {region.roitype for region in regions} == {roifile.ROI_TYPE.POLYGON}
    for region, label in zip(regions, LABELS, strict=True):
        np.testing.assert_array_equal(filled(region.coordinates()), label == LABEL_MAP)


@pytest.mark.parametrize("shift", [0.25, 60_400.5])
def test_coordinates_of_imagej_are_exact_up_to_its_largest(tmp_path, shift):
    moved = NUCLEI.transform(shift=(shift, shift))
    for region, nucleus in zip(roifile.roiread(write("imagej", tmp_path, moved)), moved, strict=True):
        np.testing.assert_array_equal(region.coordinates(), nucleus.contour)


@pytest.mark.parametrize("shift", [(70_000, 0), (0, 60_500), (-30, 0)])
def test_coordinates_that_imagej_would_wrap_are_refused(tmp_path, shift):
    with pytest.raises(DataError, match=r"nucleus \d reaches x=.*choose 'geojson'"):
        write("imagej", tmp_path, NUCLEI.transform(shift=shift))
    assert list(tmp_path.iterdir()) == []


def test_regions_of_others_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.roi", roifile.ImagejRoi.frompoints(np.array(square(3, 4))).tobytes())
    assert read_nuclei(tmp_path / "a.zip").area.tolist() == [64]


def test_too_many_nuclei_are_refused_with_the_way_out(tmp_path):
    nuclei = many(65_536, points=3)
    with pytest.raises(DataError, match=r"65,536 nuclei are too many.*at most 65,535; choose 'parquet'"):
        write("imagej", tmp_path, nuclei)
    assert list(tmp_path.iterdir()) == []


def test_ome_xml_opens_in_ome_types(tmp_path):
    data = ome_types.from_xml(write("ome-xml", tmp_path).read_text())
    pixels = data.images[0].pixels
    assert (data.images[0].name, pixels.size_x, pixels.physical_size_x) == ("slide <1>.svs", SHAPE[1], 0.25)
    assert [reference.id for reference in data.images[0].roi_refs] == [region.id for region in data.rois]
    types = {note.id: dict(note.value)["type"] for note in data.structured_annotations.map_annotations}
    for region, nucleus in zip(data.rois, NUCLEI, strict=True):
        assert region.name == str(nucleus.label)
        assert [types[reference.id] for reference in region.annotation_refs] == [nucleus.type_name] * (nucleus.type > 0)
        ring = np.array([pair.split(",") for pair in region.union[0].points.split()], float)
        np.testing.assert_array_equal(filled(ring), nucleus.label == LABEL_MAP)
    assert data.rois[0].union[0].stroke_color.as_rgb_tuple() == PANNUKE.colors[1]


def test_ome_xml_that_is_none_is_told(tmp_path):
    text = write("ome-xml", tmp_path).read_text()
    for name, changed, words in (
        ("type.xml", text.replace("<OME ", "<!DOCTYPE OME>\n<OME ", 1), "document type"),
        ("half.xml", text[:-200], "cannot be read as OME-XML"),
        ("points.xml", text.replace('Points="', 'Points="a,b ', 1), "no OME-XML of nuclei"),
    ):
        (tmp_path / name).write_text(changed)
        with pytest.raises(DataError, match=words):
            read_nuclei(tmp_path / name)
    (tmp_path / "label.xml").write_text(text.replace("<Polygon", "<Polyline", 1))
    with pytest.warns(UserWarning, match="1 of 5 regions are no polygons"):
        assert len(read_nuclei(tmp_path / "label.xml")) == 4


def test_dicom_opens_in_highdicom(tmp_path):
    data = highdicom.ann.annread(write("dicom", tmp_path))
    assert data.ContentDescription == "Nuclei; the identifiers of the slide were made from its name"
    groups = data.get_annotation_groups()
    assert [group.label for group in groups] == ["No type", "Neoplastic", "Inflammatory", "Epithelial"]
    for group in groups:
        names, values, _ = group.get_measurements()
        found = dict(zip([name.meaning for name in names], values.T, strict=True))
        for label, area, ring in zip(
            found["label"], found["Area"], group.get_graphic_data(coordinate_type="2D"), strict=True
        ):
            np.testing.assert_array_equal(filled(np.asarray(ring)), label == LABEL_MAP)
            assert area == (label == LABEL_MAP).sum() * 0.25**2


def dicom_slide(folder):
    """The heads of two levels of a slide in DICOM and of its label, as scanners write them."""
    series, frame = generate_uid(), generate_uid()
    for name, flavor, columns in (("a", "VOLUME", 60), ("b", "VOLUME", 120), ("c", "LABEL", 500)):
        head = pydicom.Dataset()
        head.SOPClassUID, head.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
        head.StudyInstanceUID, head.SeriesInstanceUID, head.FrameOfReferenceUID = generate_uid(), series, frame
        head.PatientID = head.PatientName = head.PatientBirthDate = head.PatientSex = ""
        head.StudyID = head.StudyDate = head.StudyTime = head.AccessionNumber = head.ReferringPhysicianName = ""
        head.Modality, head.ImageType = "SM", ["ORIGINAL", "PRIMARY", flavor, "NONE"]
        head.TotalPixelMatrixColumns, head.TotalPixelMatrixRows = columns, 90
        head.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        origin, measures, shared = (pydicom.Dataset() for _ in range(3))
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 20.0, 40.0
        head.TotalPixelMatrixOriginSequence = [origin]
        measures.PixelSpacing, measures.SliceThickness = [0.00025, 0.00025], 0.001
        shared.PixelMeasuresSequence = [measures]
        head.SharedFunctionalGroupsSequence = [shared]
        head.file_meta = pydicom.dataset.FileMetaDataset()
        head.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        head.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return pydicom.dcmread(folder / "b.dcm")


def test_annotations_of_a_slide_in_dicom_have_its_identifiers_and_its_frame_of_reference(tmp_path):
    head = dicom_slide(tmp_path)
    facts = replace(FACTS, path=tmp_path / "a.dcm")
    (tmp_path / "out").mkdir()
    flat, deep = (highdicom.ann.annread(write(name, tmp_path / "out", facts=facts)) for name in ("dicom", "dicom-3d"))
    for data in (flat, deep):
        assert data.ContentDescription == "Nuclei"
        assert data.StudyInstanceUID == head.StudyInstanceUID
        assert data.ReferencedImageSequence[0].ReferencedSOPInstanceUID == head.SOPInstanceUID
    assert deep.FrameOfReferenceUID == head.FrameOfReferenceUID
    pixels = flat.get_annotation_groups()[0].get_graphic_data(coordinate_type="2D")[0]
    millimetres = deep.get_annotation_groups()[0].get_graphic_data(coordinate_type="3D")[0]
    # rows run along -y and columns along -x; a stated position is the centre of the first pixel
    expected = np.stack([20.0 - (pixels[:, 1] - 0.5) * 0.00025, 40.0 - (pixels[:, 0] - 0.5) * 0.00025], axis=1)
    np.testing.assert_allclose(millimetres[:, :2], expected, atol=1e-9)
    with pytest.raises(DataError, match=r"millimetres on the glass.*format 'dicom'"):
        read_nuclei(tmp_path / "out" / "nuclei-3d.dcm")


def test_millimetres_need_a_slide_in_dicom(tmp_path):
    with pytest.raises(DataError, match=r"only a slide in DICOM.*choose 'dicom'"):
        write("dicom-3d", tmp_path)
    assert list(tmp_path.iterdir()) == []


def large(nuclei):
    """Nuclei in the corners of an image of several tiles and levels."""
    return Nuclei.concatenate([nuclei, nuclei.transform(shift=(900, 1000)), nuclei.transform(shift=(460, 480))])


LARGE = replace(large(NUCLEI), label=np.arange(1, 16, dtype=np.int32)[::-1].copy())
LARGE_FACTS = ImageFacts(mpp=0.25, size=(1030, 1100))


def large_map():
    expected = np.zeros((1100, 1030), np.uint32)
    for i, (y, x) in enumerate([(0, 0), (1000, 900), (480, 460)]):
        place = expected[y : y + SHAPE[0], x : x + SHAPE[1]]
        place[MAP > 0] = (16 - MAP - 5 * i)[MAP > 0]
    return expected


def test_ome_tiff_opens_in_tifffile_as_a_pyramid(tmp_path):
    with tifffile.TiffFile(write("ome-tiff", tmp_path, LARGE, LARGE_FACTS)) as file:
        assert file.is_ome
        levels = [level.asarray() for level in file.series[0].levels]
        pixels = ome_types.from_xml(file.ome_metadata).images[0].pixels
    np.testing.assert_array_equal(levels[0], large_map())
    assert [level.shape for level in levels] == [(1100, 1030), (550, 515), (275, 258), (138, 129)]
    assert set(np.unique(levels[1])) <= set(range(16))
    assert (levels[1] > 0).mean() == pytest.approx((levels[0] > 0).mean(), rel=0.2)
    assert (pixels.type.value, pixels.physical_size_x) == ("uint32", 0.25)


def test_ome_zarr_opens_in_its_reader_as_labels(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
        reader, io = import_module("ome_zarr.reader"), import_module("ome_zarr.io")
    picture = np.full((11, 10, 3), 200, np.uint8)
    facts = replace(LARGE_FACTS, picture=picture, bounds=(0, 0, 1030, 1100))
    path = write("ome-zarr", tmp_path, LARGE, facts)
    nodes = list(reader.Reader(io.parse_url(path))())
    image, labels = (
        nodes[0],
        next(node for node in nodes if node.metadata.get("name") == "nuclei" and node.data[0].ndim == 2),
    )
    assert np.asarray(image.data[0]).shape == (3, 11, 10)
    assert image.metadata["coordinateTransformations"][0][0]["scale"] == [1.0, 25.0, 25.75]
    np.testing.assert_array_equal(np.asarray(labels.data[0]), large_map())
    assert [level.shape for level in labels.data] == [(1100, 1030), (550, 515), (275, 258), (138, 129)]
    assert labels.metadata["coordinateTransformations"][1][0]["scale"] == [0.5, 0.5]
    assert labels.metadata["properties"][15]["type"] == "Neoplastic"
    assert labels.metadata["color"][15] == pytest.approx([*np.array(PANNUKE.colors[1]) / 255, 1])


def test_labels_that_repeat_become_numbers_of_rows(tmp_path):
    path = write("ome-tiff", tmp_path, replace(NUCLEI, label=np.full(5, 3, np.int32)))
    np.testing.assert_array_equal(tifffile.imread(path), MAP)


def test_csv_opens_in_pandas(tmp_path):
    frame = pd.read_csv(write("csv", tmp_path))
    assert frame.columns.tolist()[:4] == ["label", "type", "type_id", "type_prob"]
    assert frame["label"].tolist() == LABELS.tolist()
    assert frame["type"].tolist()[:2] == ["Neoplastic", "Epithelial"]
    assert frame["type"].isna().tolist() == [False, False, True, False, False]
    assert frame["area_um2"].tolist() == [(label == LABEL_MAP).sum() * 0.0625 for label in LABELS]


def test_csv_says_what_types_were_learnt_on(tmp_path):
    learnt = replace(NUCLEI, classes=replace(PANNUKE, learnt_on="colon, =rectum (CoNSeP)"))
    path = write("csv", tmp_path, learnt)
    assert set(pd.read_csv(path)["types_learnt_on"]) == {"colon, =rectum (CoNSeP)"}
    assert read_nuclei(path).classes.learnt_on == "colon, =rectum (CoNSeP)"
    assert set(read_nuclei(path).measurements) == set(read_nuclei(write("csv", tmp_path)).measurements)
    assert Nuclei.from_polars(learnt.to_polars()).classes == learnt.classes
    assert learnt[:0].to_polars().schema == learnt.to_polars().schema
    assert "types_learnt_on" not in pd.read_csv(write("csv", tmp_path))


def test_the_size_of_the_image_is_not_guessed_in_silence(tmp_path):
    with pytest.warns(UserWarning, match=r"says 99 x 81 px, as far as the nuclei reach; state it with image_size="):
        path = write("coco", tmp_path, facts=ImageFacts())
    assert json.loads(path.read_text())["images"][0]["width"] == 99


def test_what_is_not_finite_leaves_no_file(tmp_path):
    broken = replace(NUCLEI, centroid=np.where(np.arange(10).reshape(5, 2) == 4, np.nan, NUCLEI.centroid))
    for name in NAMES:
        if name == "parquet":
            continue
        with pytest.raises(DataError, match="centroid of nucleus 2"):
            write(name, tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


class Lines(NucleiFormat):
    """A format of another package: centroids, one per line."""

    file = "nuclei.xy"
    suffixes = (".xy",)
    outlines = False
    packages = ("not_there",)

    def _read(self, path: Path) -> Nuclei:
        return make_nuclei([square(*map(float, line.split())) for line in path.read_text().splitlines()])

    def _write(self, stream, path, image):
        path.write_text("".join(f"{x} {y}\n" for chunk in stream for x, y in chunk.centroid.tolist()))


def test_another_package_brings_a_format(tmp_path, monkeypatch):
    entry = RegistryEntry("xy", "lines.Lines", "lines", "1.0", Lines)
    FORMATS.load()
    monkeypatch.setitem(FORMATS._entries, "xy", entry)
    assert "xy" in FORMATS.names()
    (tmp_path / "a.xy").write_text("[1 2")
    with pytest.raises(ConfigError, match=r"needs not_there; from a checkout"):
        read_nuclei(tmp_path / "a.xy")
    monkeypatch.setattr(Lines, "packages", ())
    path = write("xy", tmp_path, NUCLEI)
    assert len(read_nuclei(path)) == len(NUCLEI)
