"""Whole slides in DICOM: every way of coding and tiling them, what else lies in a series, and what is refused."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_drawings import (
    PATIENT,
    TURNED,
    UPRIGHT,
    USUAL,
    boxes,
    codecs,
    found_boxes,
    halved,
    picture,
    write_dicom,
)
from pydicom.encaps import generate_frames
from pydicom.uid import MicroscopyBulkSimpleAnnotationsStorage, generate_uid

from cellvit.classes import PANNUKE
from cellvit.cli.info import main as info_main
from cellvit.errors import ConfigError, ImageError
from cellvit.io.formats.base import FORMATS, ImageFacts
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.slide import naming
from cellvit.slide.info import slide_info
from cellvit.slide.naming import expand_inputs
from cellvit.slide.open import is_slide, open_slide
from cellvit.slide.readers import dicom as dicom_reader
from cellvit.slide.readers.openslide import OpenSlideReader

IMAGE = picture(256, 192)
LEVELS = [IMAGE, halved(IMAGE), halved(IMAGE, 2)]
REFUSED = [name for name in codecs() if name.endswith("-ybr")]
READ = sorted(set(codecs()).difference(REFUSED))
TILTED = tuple(np.round([np.cos(0.5), np.sin(0.5), 0, -np.sin(0.5), np.cos(0.5), 0], 12))
FLUORESCENCE = {"illumination": ("111743", "Epifluorescence illumination")}


def whole(slide, level=0):
    return slide.read_region(0, 0, *slide.level_sizes[level], level=level)


def same_series():
    return generate_uid(), generate_uid()


def add(folder, levels, **options):
    """Write more of a slide into its folder, under other names; returns the first file."""
    written = write_dicom(folder / "more", levels, beside=(), **options)
    moved = [shutil.move(path, folder / f"more-{path.name}") for path in written]
    (folder / "more").rmdir()
    return moved[0]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("codec", READ)
def test_every_coding_gives_the_picture_at_every_stored_level(tmp_path, codec, sparse):
    files = write_dicom(tmp_path, LEVELS, codec=codec, sparse=sparse, mpp=(0.25, 0.3))
    with open_slide(files[1]) as slide:
        assert (slide.reader, slide.stated_magnification) == ("wsidicom", 40)
        assert slide.stated_mpp == pytest.approx((0.25, 0.3))
        assert slide.level_sizes == ((256, 192), (128, 96), (64, 48))
        for number, level in enumerate(LEVELS):
            pixels = whole(slide, number)
            assert found_boxes(pixels) == found_boxes(level)
            difference = np.abs(pixels.astype(int) - level)
            assert difference.max() == 0 if codecs()[codec][3] else difference.mean() < 2
        assert found_boxes(whole(slide)) == boxes(256, 192)
        np.testing.assert_array_equal(slide.read_region(100, 50, 90, 70), whole(slide)[50:120, 100:190])
        assert slide.read_region(250, 190, 10, 10)[:2, :6].max() < slide.read_region(250, 190, 10, 10)[2:].min() == 255


@pytest.mark.parametrize("codec", ["jpeg", "jpeg-rgb", "jpeg2000", "native"])
@pytest.mark.parametrize("form", [{}, {"sparse": True, "missing": [(0, 0), (2, 1)]}, {"parts": 3}])
def test_openslide_sees_the_same(tmp_path, codec, form):
    files = write_dicom(tmp_path, LEVELS, codec=codec, mpp=(0.25, 0.5), **form)
    with open_slide(files[-1]) as ours, OpenSlideReader(files[-1]) as theirs:
        assert ours.reader == "wsidicom"
        assert ours.level_sizes == theirs.level_sizes
        assert ours.stated_mpp == pytest.approx(theirs.stated_mpp) == (0.25, 0.5)
        for level in range(3):
            np.testing.assert_array_equal(whole(ours, level), whole(theirs, level))
        if "missing" in form:
            assert (whole(ours)[:64, :64] == 255).all()
            assert (whole(ours)[64:128, 128:192] == 255).all()
            assert (whole(ours)[:64, 64:128] < 255).any()


def test_any_file_or_the_folder_means_the_slide(tmp_path, monkeypatch):
    files = write_dicom(tmp_path / "a", LEVELS, suffix="")
    monkeypatch.chdir(tmp_path)
    for path in (*files, tmp_path / "a" / "label", tmp_path / "a", "a", os.path.join("a", "level1")):  # noqa: PTH118
        assert is_slide(path)
        with open_slide(path) as slide:
            assert slide.level_sizes[0] == (256, 192)
    assert expand_inputs(["a"])[0] == expand_inputs(["a/*"])[0] == [files[0].relative_to(tmp_path)]
    assert expand_inputs(["[a]"])[0] == [files[0].relative_to(tmp_path)]  # a pattern of folders
    assert expand_inputs(["a/label"])[0] == [files[0].with_name("label").relative_to(tmp_path)]


def test_a_folder_holds_a_slide_for_each_series_beside_what_else_is_in_it(tmp_path):
    first = write_dicom(tmp_path, LEVELS)[0]
    second = add(tmp_path, [IMAGE[:, ::-1]])
    (tmp_path / "a.png").write_bytes(b"no matter")
    note = pydicom.dcmread(first, stop_before_pixels=True)
    note.SOPClassUID = note.file_meta.MediaStorageSOPClassUID = MicroscopyBulkSimpleAnnotationsStorage
    note.save_as(tmp_path / "nuclei.dcm")
    assert expand_inputs([str(tmp_path)]) == ([tmp_path / "a.png", first, second], [])
    assert expand_inputs([str(tmp_path / "*.dcm")])[0] == [first, second, tmp_path / "nuclei.dcm"]
    for path, expected in ((first, IMAGE), (second, IMAGE[:, ::-1])):
        with open_slide(path) as slide:
            assert found_boxes(whole(slide)) == found_boxes(expected)
    with pytest.raises(ImageError, match=r"holds 2 slides in DICOM.*level0\.dcm, more-level0\.dcm"):
        open_slide(tmp_path)
    with pytest.raises(ImageError, match=r"no whole-slide image \(Microscopy Bulk Simple Annotations Storage\); give"):
        open_slide(tmp_path / "nuclei.dcm")


def test_levels_of_any_size_and_tiling_are_used_and_none_is_made_up(tmp_path):
    series = same_series()
    first = write_dicom(tmp_path, [IMAGE, halved(IMAGE)[:95, :127]], codec="jpegls", series=series)[0]
    add(tmp_path, [IMAGE, halved(IMAGE, 3)], codec="htj2k-lossless", series=series, tile=(32, 16))
    (tmp_path / "more-level0.dcm").unlink()
    with open_slide(first) as slide:
        assert slide.level_sizes == ((256, 192), (127, 95), (32, 24))
        np.testing.assert_array_equal(whole(slide, 2), halved(IMAGE, 3))
        assert slide.warnings == ()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("form", "named"), [({"planes": 3}, "z=2"), ({"paths": ("a", "b")}, "b")])
def test_one_of_several_planes_or_paths_is_chosen_by_the_user(tmp_path, form, named, sparse):
    file = write_dicom(tmp_path, LEVELS[:2], sparse=sparse, **form)[0]
    with pytest.raises(ImageError, match=rf"several images of full size: 0 .*'{named}'.*such as scene=0"):
        open_slide(file)
    for scene in (named, 1):
        with open_slide(file, scene=scene) as slide:
            assert slide.level_sizes == ((256, 192), (128, 96))
            assert found_boxes(whole(slide)) == boxes(256, 192)


def test_scans_at_two_places_of_a_glass_are_not_mixed(tmp_path):
    series = same_series()
    file = write_dicom(tmp_path, LEVELS, series=series)[0]
    add(tmp_path, [IMAGE[:, ::-1][:160]], series=series, origin=(10.0, 40.0))
    with pytest.raises(ImageError, match=r"0 'at 20, 40 mm' \(256 x 192 px\), 1 'at 10, 40 mm' \(256 x 160 px\)"):
        open_slide(file)
    with open_slide(file, scene=1) as slide:
        assert slide.level_sizes == ((256, 160),)


def test_fluorescence_beside_the_slide_is_left_out_and_told(tmp_path):
    series = same_series()
    file = write_dicom(tmp_path, LEVELS, series=series)[0]
    add(tmp_path, [IMAGE[..., 0]], codec="native", series=series, paths=("dapi",), **FLUORESCENCE)
    with open_slide(file) as slide:
        assert slide.level_sizes[0] == (256, 192)
        (said,) = slide.warnings
    assert said == (
        "the series also holds optical path 'dapi' (Epifluorescence illumination), which is not brightfield: that is "
        "left out"
    )


def short(path, share=0.7):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


BAD = {
    "half of a concatenation": (
        lambda d: write_dicom(d, LEVELS, parts=3)[1].unlink(),
        r"part 2 of 3 is missing; copy the whole series",
    ),
    "end of a concatenation": (
        lambda d: write_dicom(d, LEVELS, parts=3)[2].unlink(),
        r"part 3 of 3 is missing; copy the whole series",
    ),
    "no slide, only its label": (
        lambda d: [path.unlink() for path in write_dicom(d, LEVELS)],
        r"only the label.*copy the whole series",
    ),
    "fluorescence": (
        lambda d: write_dicom(d, LEVELS, **FLUORESCENCE),
        r"holds only optical path '0' \(Epifluorescence illumination\), which is not brightfield; export",
    ),
    "grey": (
        lambda d: write_dicom(d, [IMAGE[..., 0]], codec="native"),
        r"MONOCHROME2 \(1 sample of 8 bits\).*export the slide as RGB of 8 bits",
    ),
    "palette": (
        lambda d: write_dicom(d, [IMAGE[..., 0]], codec="native", PhotometricInterpretation="PALETTE COLOR"),
        r"PALETTE COLOR.*export the slide as RGB of 8 bits",
    ),
    "16 bits": (
        lambda d: write_dicom(d, [IMAGE.astype(np.uint16) * 200], codec="native", bits=16),
        r"RGB \(3 samples of 16 bits\), which is not RGB of 8 bits; export",
    ),
    "cut short": (lambda d: short(write_dicom(d, LEVELS)[0]), r"'level0\.dcm' is damaged or cut short.*copy it again"),
    "cut short, native": (
        lambda d: short(write_dicom(d, LEVELS, codec="native")[0]),
        r"'level0\.dcm' is cut short: its last tile ends at byte [\d,]+ and the file at [\d,]+; copy it again",
    ),
    "a head only": (lambda d: short(write_dicom(d, LEVELS[:1], beside=())[0], 0.03), r"cut short.*copy it again"),
    "fewer tiles than it says": (
        lambda d: write_dicom(d, LEVELS, sparse=True, missing=[(3, 2)], DimensionOrganizationType="TILED_FULL"),
        r"its files contradict themselves \(.*frames.*copy or export it again",
    ),
    "tiles that overlap": (
        lambda d: move_a_tile(write_dicom(d, LEVELS, sparse=True)[0]),
        r"overlap, or do not lie in rows and columns; export it as TILED_FULL",
    ),
    **{
        name: (
            lambda d, name=name: write_dicom(d, LEVELS, codec=name),
            rf"wsidicom: it does not read YBR_FULL in {name.split('-')[0].replace('native', 'Explicit')}".replace(
                "jpegls", "JPEG-LS"
            ).replace("rle", "RLE"),
        )
        for name in REFUSED
    },
}


def move_a_tile(path):
    data = pydicom.dcmread(path)
    data.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix = 33
    data.save_as(path)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path, name):
    spoil, words = BAD[name]
    spoil(tmp_path)
    named = [path for path in sorted(tmp_path.iterdir()) if "level0" in path.name]
    with pytest.raises(ImageError, match=words):
        open_slide(named[0] if named else tmp_path / "label.dcm")


def test_a_series_without_its_full_resolution_says_so(tmp_path):
    first, second, _ = write_dicom(tmp_path, LEVELS)
    first.unlink()
    with open_slide(second) as slide:
        assert slide.level_sizes == ((128, 96), (64, 48))
        assert slide.stated_mpp == (0.5, 0.5)
        assert "the file of full resolution is not here: the largest image, 128 x 96 px" in slide.warnings[0]


def test_a_copy_of_a_file_counts_once(tmp_path):
    files = write_dicom(tmp_path, LEVELS)
    shutil.copy(files[0], tmp_path / "copy of level0.dcm")
    with open_slide(files[1]) as slide:
        assert slide.level_sizes == ((256, 192), (128, 96), (64, 48))
        assert found_boxes(whole(slide)) == boxes(256, 192)


def test_a_damaged_file_beside_the_slide_is_told(tmp_path):
    first, second, _ = write_dicom(tmp_path, LEVELS)
    short(second, 0.02)
    with open_slide(first) as slide:
        assert slide.level_sizes == ((256, 192), (64, 48))
        assert "level1.dcm' is damaged or cut short" in slide.warnings[0]
        assert slide.warnings[0].endswith("if that is a part of this slide, it is missing")


def test_a_damaged_tile_is_named_and_the_others_are_read(tmp_path):
    path = write_dicom(tmp_path, LEVELS)[0]
    data = path.read_bytes()
    frame = list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=12))[5]
    path.write_bytes(data.replace(frame[:-2], b"\7" * len(frame[:-2])))
    with open_slide(path) as slide:
        with pytest.raises(
            ImageError, match=r"damaged within the 64 x 64 px at x=64, y=64 of level 0 .*copy or export"
        ):
            whole(slide)
        assert slide.read_region(0, 0, 256, 64).std() > 10
    with pytest.raises(ImageError, match="is closed; open it again"):
        whole(slide)


def test_threads_read_at_the_same_time(tmp_path):
    path = write_dicom(tmp_path, LEVELS, tile=(16, 16), parts=2)[0]
    places = [(x, y) for x in range(0, 250, 40) for y in range(0, 190, 30)]
    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        expected = whole(slide)
        slide._cache.clear()
        for (x, y), part in zip(places, pool.map(lambda place: slide.read_region(*place, 6, 2), places), strict=True):
            np.testing.assert_array_equal(part, expected[y : y + 2, x : x + 6])


def test_the_record_names_the_colour_profile_and_nobody(tmp_path):
    path = write_dicom(tmp_path, LEVELS, codec="htj2k")[0]
    profile = pydicom.dcmread(path).OpticalPathSequence[0].ICCProfile
    with open_slide(path) as slide:
        kept = slide.properties
    assert kept["icc-profile"] == f"sRGB built-in (SHA-256 {hashlib.sha256(profile).hexdigest()[:16]})"
    assert kept["dicom.manufacturer"] == "Drawn"
    text = repr((kept, slide_info(path)))
    for secret in (PATIENT, "Muster", "4711", "1960", "2020", "A-17", "S-1", "Doctor", "1.2.826"):
        assert secret not in text.replace(str(tmp_path), "")


def test_what_the_spacing_and_the_size_on_the_glass_say_must_agree(tmp_path):
    path = write_dicom(tmp_path, LEVELS, mpp=(0.25, 0.5), ImagedVolumeWidth=0.128, ImagedVolumeHeight=0.048)[0]
    with open_slide(path) as slide:
        assert slide.stated_mpp == (0.25, 0.5)
        assert (
            "contradicts itself: it states 0.25 x 0.5 µm/px in its PixelSpacing and 0.5 x 0.25"
            in (slide.resolution_notes[0])
        )


def test_without_the_extra_openslide_reads_what_it_knows(tmp_path, monkeypatch):
    def missing(package, *, extra):
        raise ConfigError(f"this needs the package {package!r}; from a checkout: pip install '.[{extra}]'")

    monkeypatch.setattr(dicom_reader, "require", missing)
    known, other = write_dicom(tmp_path / "a", LEVELS)[0], write_dicom(tmp_path / "b", LEVELS, codec="htj2k")[0]
    with open_slide(known) as slide:
        assert slide.reader == "openslide"
    with pytest.raises(
        ImageError, match=r"wsidicom: this needs the package 'pydicom'.*\[formats\].*openslide: .*Unsupp"
    ):
        open_slide(other)
    monkeypatch.setattr(naming, "find_spec", lambda name: None)
    ((folder, reason),) = expand_inputs([str(tmp_path / "a")])[1]
    assert folder == str(tmp_path / "a")
    assert "holds no images or slides" in reason
    assert "slides in DICOM are found with the extra 'formats'" in reason


def test_info_tells_what_a_series_is(tmp_path, capsys):
    write_dicom(tmp_path, LEVELS, codec="jpeg2000", sparse=True)
    assert info_main([str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "256 x 192 px, read by wsidicom (dicom)",
        "levels 3: 256 x 192, 128 x 96, 64 x 48",
        "0.25 µm/px, stated by the file (PixelSpacing)",
        "objective x40",
        "3 channels of 8 bits; no alpha; compression JPEG 2000 Image Compression",
        "associated label (40 x 24), overview (40 x 24), thumbnail (40 x 24)",
    ):
        assert words in printed


def outlined():
    """Return the shapes of the picture as nuclei of two types."""
    labels = np.zeros((192, 256), np.int32)
    for number, (x, y, width, height) in enumerate(boxes(256, 192).values(), start=1):
        labels[y : y + height, x : x + width] = number
    nuclei = nuclei_from_instances(labels).nuclei
    return replace(nuclei, type=np.array([1, 2, 1, 2], np.int32), classes=PANNUKE, mpp=0.25)


def polygons(path, space):
    groups = highdicom.ann.annread(path).get_annotation_groups()
    return [np.asarray(ring) for group in groups for ring in group.get_graphic_data(coordinate_type=space)]


@pytest.mark.parametrize("orientation", [UPRIGHT, USUAL, TURNED, TILTED])
def test_annotations_come_back_where_the_nuclei_lie_on_the_glass(tmp_path, orientation):
    form = {"orientation": orientation, "mpp": (0.25, 0.4), "origin": (17.5, 31.25), "sparse": True, "parts": 2}
    files = write_dicom(tmp_path / "slide", LEVELS, codec="htj2k", **form)
    for name, path in (("dicom", files[-1]), ("dicom-3d", tmp_path / "slide")):
        FORMATS.get(name)().check_image(path)
        FORMATS.get(name)().write(outlined(), tmp_path / name, ImageFacts(path=path, mpp=0.25, size=(256, 192)))
    head, deep = pydicom.dcmread(files[0]), highdicom.ann.annread(tmp_path / "dicom-3d")
    assert deep.FrameOfReferenceUID == head.FrameOfReferenceUID
    assert deep.ReferencedImageSequence[0].ReferencedSOPInstanceUID == head.SOPInstanceUID
    # PS3.3 C.7.6.2.1.1: pixels of a row follow each other along the first three numbers, rows along the others; the
    # stated place is the centre of the first pixel, and our coordinates count from its corner
    measures = head.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    along_x, along_y = np.array(orientation[:3], float), np.array(orientation[3:], float)
    flat, placed = polygons(tmp_path / "dicom", "2D"), polygons(tmp_path / "dicom-3d", "3D")
    assert len(flat) == len(placed) == 4
    centres = []
    for ring, points in zip(flat, placed, strict=True):
        x, y = ring.mean(axis=0)
        right, down = (x - 0.5) * measures.PixelSpacing[1], (y - 0.5) * measures.PixelSpacing[0]
        expected = np.array([17.5, 31.25, 0.0]) + right * along_x + down * along_y
        assert np.abs(points.mean(axis=0) - expected).max() < 0.1 * 0.00025
        centres.append(tuple((ring.min(axis=0) + ring.max(axis=0)) / 2))
    expected = [(x + w / 2, y + h / 2) for x, y, w, h in boxes(256, 192).values()]
    assert sorted(centres) == sorted(expected)


def test_a_file_that_says_nothing_of_its_light_is_taken_for_what_its_pixels_are(tmp_path):
    (path,) = write_dicom(tmp_path, LEVELS[:1])
    head = pydicom.dcmread(path)
    del head.OpticalPathSequence
    head.save_as(path)
    with open_slide(path) as slide:
        assert (slide.reader, slide.level_sizes) == ("wsidicom", ((256, 192),))
