import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import drawn_pyramids as drawn
import numpy as np
import pytest
from PIL import Image

from cellvit.errors import ImageError, SourceLostError
from cellvit.inference.fingerprints import BackgroundDigest, quick_hash
from cellvit.io.provenance import content_of
from cellvit.io.remote import as_path, identity_of
from cellvit.slide.info import slide_info
from cellvit.slide.naming import expand_inputs
from cellvit.slide.open import is_slide, open_slide
from cellvit.slide.readers import ome_zarr
from cellvit.slide.view import SlideView

zarr = pytest.importorskip("zarr", reason="OME-Zarr needs the extra formats")

from support.drawn_zarr import (  # noqa: E402
    KINDS,
    damage_chunk,
    describe,
    open_root,
    read_description,
    write_image,
    write_ome_zarr,
    write_zipped,
)
from support.http_files import served  # noqa: E402

IMAGE, CENTRES = drawn.draw(301, 223)
LEVELS = [IMAGE, drawn.shrunk(IMAGE, 2), drawn.shrunk(IMAGE, 4)]


def refused(path, match, **options):
    with pytest.raises(ImageError, match=match), open_slide(path, **options):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_writing_shows_the_same_picture_at_the_same_place(tmp_path, kind):
    path = write_ome_zarr(tmp_path / "a.ome.zarr", LEVELS, **KINDS[kind])
    assert is_slide(path)
    with open_slide(str(path)) as slide:
        assert (slide.reader, slide.path, slide.warnings) == ("ome-zarr", path, ())
        assert slide.level_sizes == ((301, 223), (150, 111), (75, 55))
        assert slide.bounds == (0, 0, 301, 223)
        assert slide.stated_mpp == pytest.approx((0.25, 0.25))
        for level, expected in enumerate(LEVELS):
            height, width = expected.shape[:2]
            np.testing.assert_array_equal(slide.read_region(0, 0, width, height, level=level), expected)
        np.testing.assert_array_equal(slide.read_region(60, 50, 90, 70), IMAGE[50:120, 60:150])
        assert (slide.read_region(-10, 215, 9, 20) == 255).all()
        view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.5)
        assert view.level == 1
        found = view.to_level0(drawn.table(drawn.found(view.read(0, 0, view.width, view.height)) + 0.5)).centroid - 0.5
    distances = np.linalg.norm(found[:, None] - CENTRES[None], axis=2)
    assert sorted(distances.argmin(axis=0)) == list(range(len(CENTRES)))
    assert distances.min(axis=1).max() < 0.5


def test_pieces_and_threads_do_not_change_a_pixel(tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr, "PIECE", 64)
    monkeypatch.setattr(ome_zarr, "CACHE_BYTES", 1)
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS, version="0.5", chunk=32, shard=2)
    boxes = [(x, y, 83, 71) for x in range(0, 200, 57) for y in range(0, 140, 45)]
    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        for (x, y, w, h), part in zip(boxes, pool.map(lambda box: slide.read_region(*box), boxes), strict=True):
            np.testing.assert_array_equal(part, IMAGE[y : y + h, x : x + w])


def test_archives_and_folders_are_found_and_told(tmp_path):
    folder = write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    packed = write_zipped(tmp_path / "b.zarr.zip", folder)
    inside = write_zipped(tmp_path / "c.ozx", folder, inside="a.zarr/")
    (tmp_path / "d.zip").write_bytes(packed.read_bytes())
    (tmp_path / "nothing").mkdir()
    for path in (packed, inside, tmp_path / "d.zip"):
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read_region(5, 6, 200, 150), IMAGE[6:156, 5:205])
    assert expand_inputs([str(tmp_path)])[0] == [folder, packed, inside]  # any other archive has to be named
    assert expand_inputs([str(folder)])[0] == expand_inputs([str(tmp_path / "*.zarr")])[0] == [folder]
    info = slide_info(folder)
    assert (info.pixels.kind, info.pixels.channels, info.pixels.bits) == ("OME-Zarr 0.4", 3, 8)
    assert info.mpp_place == "OME-Zarr axes"
    assert info.size_bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    (tmp_path / "e.ozx").write_bytes(packed.read_bytes()[:3000])
    refused(tmp_path / "e.ozx", "no zip archive, or cut short")


def test_the_same_store_is_known_again_and_another_is_not(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    with open_slide(path) as slide:
        before = quick_hash(slide)
        assert quick_hash(slide) == before
        kept = tmp_path / "sha256"
        with BackgroundDigest(path, kept) as digest:
            assert digest.result() == content_of(path)["sha256"]
        damage_chunk(path, 1, 1)
        assert quick_hash(slide) != before
        with BackgroundDigest(path, kept) as digest, pytest.raises(ImageError, match="was changed since"):
            digest.result()


@pytest.mark.parametrize(
    ("options", "mpp", "note"),
    [
        ({"mpp": (0.25, 0.5), "unit": "millimeter"}, (0.25, 0.5), ""),
        ({"unit": None}, None, "x 0.25 y 0.25 in its OME-Zarr axes .the axes name no unit of length"),
        ({"unit": None, "mpp": 1.0}, None, ""),
        ({"mpp": 400.0}, None, "400 µm/px is not a resolution of a microscope"),
    ],
)
def test_the_unit_of_the_axes_counts(tmp_path, options, mpp, note):
    with open_slide(write_ome_zarr(tmp_path / "a.zarr", LEVELS[:1], **options)) as slide:
        assert slide.stated_mpp == (None if mpp is None else pytest.approx(mpp))
        assert bool(slide.resolution_notes) == bool(note)
        if note:
            import re

            assert re.search(note, slide.resolution_notes[0])


@pytest.mark.parametrize(
    ("scales", "origins", "used"),
    [
        ([(1, 1), (1, 1), (1, 1)], None, [0]),  # as if every level had the size of a pixel of the first
        ([(1, 1), (2, 2), (4, 4)], [None, (0.3, 0.0), None], [0, 2]),  # more than half a pixel of the full image away
        ([(1, 1), (2, 2), (4, 4)], [None, (0.1, -0.1), None], [0, 1, 2]),
    ],
)
def test_a_level_that_does_not_lie_on_the_image_is_not_used(tmp_path, scales, origins, used):
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS, scales=scales)
    if origins:
        about = read_description(path)
        for dataset, origin in zip(about["multiscales"][0]["datasets"], origins, strict=True):
            if origin:
                step = {"type": "translation", "translation": [0.0, origin[1], origin[0]]}
                dataset["coordinateTransformations"].append(step)
        (path / ".zattrs").write_text(json.dumps(about))
    with open_slide(path) as slide:
        assert slide.level_sizes == tuple(LEVELS[level].shape[1::-1] for level in used)
        assert [text for text in slide.warnings if "does not lie on the full image" in text] == list(slide.warnings)
        assert len(slide.warnings) == 3 - len(used)


def test_a_level_that_is_stretched_lies_where_its_scale_says(tmp_path):
    image, centres = drawn.draw(601, 447, step=74)
    small = np.asarray(Image.fromarray(image).resize((75, 55), Image.Resampling.BOX))
    path = write_ome_zarr(tmp_path / "a.zarr", [image, small], scales=[(1, 1), (601 / small.shape[1], 447 / 55)])
    with open_slide(path) as slide:
        assert slide.level_ratios[1] == pytest.approx((601 / small.shape[1], 447 / 55))
        view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.25 * 8.2)
        assert view.level == 1
        found = view.to_level0(drawn.table(drawn.found(view.read(0, 0, view.width, view.height)) + 0.5)).centroid - 0.5
    low = centres[centres[:, 1] > 370]
    distances = np.linalg.norm(found[:, None] - low[None], axis=2).min(axis=0)
    assert distances.max() < 1  # by the sizes, which look like an eighth with a rest cut off, it would be 7


def test_a_level_that_begins_before_the_image_is_read_from_where_the_image_begins(tmp_path):
    padded = np.pad(LEVELS[1], ((3, 0), (2, 0), (0, 0)), constant_values=7)
    path = write_ome_zarr(tmp_path / "a.zarr", [IMAGE, padded], scales=[(1, 1), (2, 2)])
    about = read_description(path)
    step = {"type": "translation", "translation": [0.0, -3 * 0.5, -2 * 0.5]}
    about["multiscales"][0]["datasets"][1]["coordinateTransformations"].append(step)
    (path / ".zattrs").write_text(json.dumps(about))
    with open_slide(path) as slide:
        assert slide.level_sizes[1] == (150, 111)
        np.testing.assert_array_equal(slide.read_region(0, 0, 150, 111, level=1), LEVELS[1])


@pytest.mark.parametrize(("version", "shard"), [("0.4", None), ("0.5", None)])
def test_missing_chunks_have_the_fill_value_which_is_told_unless_it_is_white(tmp_path, version, shard):
    for fill in (255, 0):
        path = write_ome_zarr(
            tmp_path / f"{fill}.zarr", LEVELS[:1], version=version, fill=fill, leave_out=[(1, 1), (2, 0)]
        )
        with open_slide(path) as slide:
            assert (slide.read_region(64, 64, 64, 64) == fill).all()
            np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64), IMAGE[:64, :64])
            told = [text for text in slide.warnings if text.startswith("2 of 20 chunks")]
            assert len(told) == len(slide.warnings) == (fill == 0)
            assert not told or "its fill value 0, which is black" in told[0]


def test_a_damaged_chunk_costs_its_own_pixels_only(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    damage_chunk(path, 2, 1)
    with open_slide(path) as slide:
        with pytest.raises(ImageError, match="is damaged within the 80 x 80 px at x=100, y=50 of level 0"):
            slide.read_region(100, 50, 80, 80)
        np.testing.assert_array_equal(slide.read_region(0, 0, 128, 223), IMAGE[:, :128])
        _, remarks = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.25).thumbnail_with_remarks(301)
        assert remarks[0].startswith("level 0 is damaged at")
    for file in (path / "0").rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            file.write_bytes(b"no chunk")
    refused(path, "no pixels of it can be read")


def test_a_store_that_goes_away_is_no_background(tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr, "CACHE_BYTES", 1)
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS, fill=255)
    with open_slide(path) as slide:
        shutil.rmtree(path)
        with pytest.raises(SourceLostError, match="no longer there"):
            slide.read_region(0, 0, 20, 20)


def test_grey_16_bits_and_floats_are_what_they_are_in_a_tiff(tmp_path):
    grey = IMAGE[..., 0]
    with open_slide(write_ome_zarr(tmp_path / "g.zarr", [grey], axes="yx")) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 301, 223), grey[..., None].repeat(3, axis=2))
    deep = IMAGE.astype(np.uint16) * 16
    with open_slide(write_ome_zarr(tmp_path / "d.zarr", [deep])) as slide:
        assert "12 bits are used" in slide.warnings[0]
        np.testing.assert_array_equal(slide.read_region(0, 0, 9, 9), np.rint(deep[:9, :9] / 4095 * 255))
    with open_slide(write_ome_zarr(tmp_path / "f.zarr", [(IMAGE / 255).astype(np.float32)])) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 301, 223), IMAGE)
    refused(write_ome_zarr(tmp_path / "i.zarr", [IMAGE.astype(np.int32)]), "int32 values has no known range")


def test_the_colours_of_channels_are_heeded(tmp_path):
    stated = [{"label": name, "color": colour} for name, colour in [("b", "0000FF"), ("g", "00ff00"), ("r", "FF0000")]]
    with open_slide(write_ome_zarr(tmp_path / "b.zarr", [IMAGE[..., ::-1]], channels=stated)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 50, 50), IMAGE[:50, :50])
        assert "stored in another order" in slide.warnings[0]
    glow = [{"label": name, "color": "FFFFFF"} for name in ("DAPI", "FITC", "TRITC")]
    with open_slide(write_ome_zarr(tmp_path / "f.zarr", LEVELS[:1], channels=glow)) as slide:
        assert slide.warnings[0].startswith("its channels are called DAPI, FITC, TRITC, and are read as red")


@pytest.mark.parametrize(
    ("shape", "axes", "planes"),
    [((40, 50, 4), "cyx", "4 planes (c 4 of axes cyx)"), ((40, 50, 5), "zyx", "5 planes (z 5 of axes zyx)")],
)
def test_stacks_are_refused(tmp_path, shape, axes, planes):
    import re

    root = open_root(tmp_path / "a.zarr")
    root.create_array("0", shape=(shape[2], *shape[:2]), dtype="u1", chunks=(1, 40, 50))
    kinds = {"c": "channel"}
    about = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}],
    }
    describe(root, {"multiscales": [about]})
    refused(tmp_path / "a.zarr", re.escape(planes))


def test_what_is_no_image_says_what_to_name(tmp_path):
    for name, facts, match in [
        ("plate", {"plate": {"wells": [{}, {}]}}, "a plate of 2 wells, not a slide; name one field of view"),
        ("well", {"well": {"images": []}}, "it is a well of a plate"),
        ("labels", {"labels": ["nuclei"]}, "it holds labels and no image"),
        ("mask", {"image-label": {}, "multiscales": [{}]}, "it holds labels and no image"),
        ("empty", {}, r"a group without an image \(it is empty\); name the path"),
        ("none", {"multiscales": []}, "its description names no multiscales"),
        ("old", {"multiscales": [{"datasets": [{"path": "0"}]}]}, "version '0.4'|description is damaged"),
    ]:
        describe(open_root(tmp_path / f"{name}.zarr"), facts)
        refused(tmp_path / f"{name}.zarr", match)
    zarr.create_array(str(tmp_path / "array.zarr"), shape=(9, 9), dtype="u1")
    refused(tmp_path / "array.zarr", "is an array, which nothing describes as an image")
    (tmp_path / "half.zarr").mkdir()
    refused(tmp_path / "half.zarr", "is no Zarr store that can be read")
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    about = read_description(path)
    about["multiscales"][0]["version"] = "0.2"
    (path / ".zattrs").write_text(json.dumps(about))
    refused(path, "an OME-Zarr of version '0.2', not 0.4 or 0.5; write it again")
    shutil.rmtree(path / "0")
    about["multiscales"][0]["version"] = "0.4"
    (path / ".zattrs").write_text(json.dumps(about))
    refused(path, "its level '0' is missing")
    refused(tmp_path / "not.zarr", "does not exist")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_series_of_a_converter_are_scenes(tmp_path, version):
    path = tmp_path / "a.zarr"
    root = open_root(path, version)
    describe(root, {"bioformats2raw.layout": 3}, version)
    names = ("slide", "other", "macro image")
    for number, picture in enumerate([IMAGE, 255 - IMAGE, IMAGE[:50, :60]]):
        write_image(root.create_group(str(number)), [picture], version=version)
    (path / "OME").mkdir()
    metadata = "".join(f'<Image ID="Image:{i}" Name="{name}"/>' for i, name in enumerate(names))
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{metadata}</OME>'
    (path / "OME" / "METADATA.ome.xml").write_text(xml)
    refused(path, r"several images of full size: 0 'slide' \(301 x 223 px\), 1 'other' .* such as scene=0")
    info = slide_info(path)
    assert [picture.name for picture in info.pixels.scenes] == ["slide", "other"]
    for scene in (1, "Other"):
        with open_slide(path, scene=scene) as slide:
            np.testing.assert_array_equal(slide.read_region(0, 0, 20, 20), 255 - IMAGE[:20, :20])
            assert slide.properties["zarr.scene"].startswith("1 'other'")
    with open_slide(path / "0") as slide:  # an image in a store is a store
        np.testing.assert_array_equal(slide.read_region(0, 0, 20, 20), IMAGE[:20, :20])
    shutil.rmtree(path / "1")
    shutil.rmtree(path / "2")
    with open_slide(path) as slide:
        assert slide.warnings == ()


def test_the_only_image_of_a_store_of_elements_is_read(tmp_path):
    path = tmp_path / "sdata.zarr"
    root = open_root(path, "0.5")
    write_image(root.create_group("images/he"), LEVELS, version="0.5", unit=None, mpp=1.0)
    labels = root.create_group("labels/nuclei")
    write_image(labels, [IMAGE[..., 0]], axes="yx", version="0.5")
    with open_slide(path) as slide:
        assert slide.level_sizes[0] == (301, 223)
    write_image(root.create_group("images/if"), LEVELS, version="0.5")
    refused(path, r"several images of full size: 0 'he' .* 1 'if'")


def test_without_zarr_the_extra_is_named(tmp_path, monkeypatch):
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS)
    monkeypatch.setattr(ome_zarr, "find_spec", lambda name: None)
    refused(path, r"needs zarr; from a checkout: pip install '.\[formats\]'")


def test_a_codec_that_may_run_programs_is_refused(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", LEVELS[:1])
    about = json.loads((path / "0" / ".zarray").read_text())
    about["compressor"] = {"id": "pickle", "protocol": 5}
    (path / "0" / ".zarray").write_text(json.dumps(about))
    refused(path, "pickle")


def test_chunks_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr, "MAX_CHUNK_BYTES", 1000)
    refused(write_ome_zarr(tmp_path / "a.zarr", LEVELS), "in chunks of 64 x 64 px, too large to decode")


def test_big_endian_samples_and_a_fill_value_that_is_no_number(tmp_path):
    deep = IMAGE[:64, :64].astype(">u2") * 257
    with open_slide(write_ome_zarr(tmp_path / "b.zarr", [deep], fill=65535)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64), IMAGE[:64, :64])
    light = (IMAGE / 255).astype(np.float32)
    with open_slide(write_ome_zarr(tmp_path / "f.zarr", [light], fill=np.nan, leave_out=[(1, 1)])) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64), IMAGE[:64, :64])
        with pytest.raises(ImageError, match="is damaged"):
            slide.read_region(60, 60, 64, 64)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_server_that_denies_what_is_not_there(tmp_path, version):
    write_ome_zarr(tmp_path / "a.zarr", LEVELS, version=version)
    with served(tmp_path) as server:
        server.missing = 403
        with open_slide(as_path(f"{server.address}/a.zarr")) as slide:
            np.testing.assert_array_equal(slide.read_region(60, 50, 90, 70), IMAGE[50:120, 60:150])
        store = as_path(f"{server.address}/a.zarr")
        asked = len(server.requests)
        assert identity_of(store)["of"] == ("zarr.json" if version == "0.5" else ".zgroup")
        assert len(server.requests) - asked <= 6
        with pytest.raises(SourceLostError, match="may not be read"):
            open_slide(as_path(f"{server.address}/b.zarr"))
