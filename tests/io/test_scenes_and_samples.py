"""Which image of a TIFF is read, and what the samples of a pixel are: alpha, padding, bits."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.errors import ImageError
from cellvit.io.images import image_with_remarks, read_image, read_mpp
from cellvit.slide.open import is_slide, open_slide

RNG = np.random.default_rng(8)
SCAN = RNG.integers(0, 256, (192, 256, 3), dtype=np.uint8)
SMALL = RNG.integers(0, 256, (60, 96, 3), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (180, 250, 3), dtype=np.uint8)
TILES = {"photometric": "rgb", "tile": (64, 64)}


def both(path, scene=None):
    """Return pixels and remarks, which an image and a slide must have alike."""
    pixels, remarks = image_with_remarks(path, scene=scene)
    with open_slide(path, scene=scene) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, *slide.level_sizes[0]), pixels)
        assert list(slide.warnings) == remarks
    return pixels, remarks


def size(mpp, name):
    return {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "Name": name}


def test_the_largest_image_of_an_ome_tiff_is_read_with_its_own_resolution(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(SMALL, photometric="rgb", metadata=size(2.0, "overview"))
        file.write(SCAN, **TILES, metadata=size(0.25, "scan"))
    pixels, remarks = both(path)
    np.testing.assert_array_equal(pixels, SCAN)
    assert len(remarks) == 1
    assert "1 'scan' (256 x 192 px), and not 0 'overview' (96 x 60 px)" in remarks[0]
    assert read_mpp(path) == 0.25
    with pytest.warns(UserWarning, match=r"a\.ome\.tif': of the 2 images"):
        read_image(path)
    for scene in (0, "0", "overview"):
        np.testing.assert_array_equal(both(path, scene)[0], SMALL)
        assert read_mpp(path, scene=scene) == 2.0
    with open_slide(path) as slide:
        assert slide.stated_mpp == (0.25, 0.25)
    assert is_slide(path)
    for read in (read_image, open_slide):
        with pytest.raises(ImageError, match=r"scene 'x' is not among the images.*1 'scan'"):
            read(path, scene="x")


@pytest.mark.parametrize("reduced", [0, 1])
def test_a_thumbnail_or_smaller_levels_may_come_first(tmp_path, reduced):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(SCAN[::4, ::4], photometric="rgb", subfiletype=reduced, metadata=None)
        file.write(SCAN[::2, ::2], photometric="rgb", subfiletype=reduced, metadata=None)
        file.write(SCAN, **TILES, metadata=None)
    pixels, remarks = both(path)
    np.testing.assert_array_equal(pixels, SCAN)
    assert len(remarks) == (0 if reduced else 1)
    with open_slide(path) as slide:
        assert slide.level_sizes == (((256, 192), (128, 96), (64, 48)) if reduced else ((256, 192),))


def test_the_full_image_may_be_a_sub_image_of_a_small_page(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(SCAN[::4, ::4], photometric="rgb", subifds=1)
        file.write(SCAN, **TILES)
    np.testing.assert_array_equal(both(path)[0], SCAN)


def test_a_palette_image_behind_a_thumbnail_is_read(tmp_path):
    pages = [Image.fromarray(image).quantize(16) for image in (SMALL, SCAN)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(both(tmp_path / "a.tif")[0], np.asarray(pages[1].convert("RGB")))


@pytest.mark.parametrize("kind", ["ome", "pages", "equal pages"])
def test_of_several_large_images_one_must_be_chosen(tmp_path, kind):
    second = SCAN[::-1].copy() if kind == "equal pages" else OTHER
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    with tifffile.TiffWriter(path, ome=kind == "ome") as file:
        for name, image in (("left", SCAN), ("right", second)):
            file.write(image, **TILES, metadata=size(0.5, name) if kind == "ome" else None)
    for read in (read_image, open_slide):
        with pytest.raises(ImageError, match=r"several images of full size: 0 .*\(256 x 192 px\), 1 .*scene=0"):
            read(path)
    for number, image in enumerate((SCAN, second)):
        np.testing.assert_array_equal(both(path, number)[0], image)
    if kind == "ome":
        np.testing.assert_array_equal(both(path, "Right")[0], OTHER)


def test_other_files_hold_one_image(tmp_path):
    Image.fromarray(SCAN).save(tmp_path / "a.png")
    np.testing.assert_array_equal(both(tmp_path / "a.png", 0)[0], SCAN)
    with pytest.raises(ImageError, match="holds one image, no scene 1"):
        open_slide(tmp_path / "a.png", scene=1)


# Alpha


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["mapped", "tiles"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_alpha_is_what_the_tag_says(tmp_path, depth, tile):
    most = np.iinfo(depth).max
    plain = np.full((64, 128, 4), (200, 120, 160, 255), np.float64) / 255
    plain[:, 64:, 3] = 128 / 255
    multiplied = plain * [1, 1, 1, 0] + plain * [0, 0, 0, 1]
    multiplied[..., :3] *= plain[..., 3:]
    for name, data, tag in (("a", multiplied, "assocalpha"), ("u", plain, "unassalpha")):
        path = tmp_path / f"{name}.tif"
        stored = np.rint(data * most).astype(depth)
        tifffile.imwrite(path, stored, photometric="rgb", extrasamples=[tag], tile=tile, metadata=None)
        pixels, remarks = both(path)
        np.testing.assert_allclose(pixels[10, 100].astype(int), (227, 187, 207), atol=1)
        assert pixels[10, 10].tolist() == [200, 120, 160]
        assert remarks == []


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["mapped", "tiles"])
@pytest.mark.parametrize("extra", [["unspecified"], ["unspecified", "unspecified"], ["unspecified", "unassalpha"]])
def test_samples_that_are_no_alpha_are_left_out(tmp_path, extra, tile):
    padding = np.zeros((*SCAN.shape[:2], len(extra)), np.uint8)
    if extra[-1] == "unassalpha":
        padding[..., -1] = 255
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.dstack([SCAN, padding]), photometric="rgb", extrasamples=extra, tile=tile)
    pixels, remarks = both(path)
    np.testing.assert_array_equal(pixels, SCAN)
    assert len(remarks) == 1
    assert "left out: the file does not say that it is alpha" in remarks[0]


def test_an_image_that_is_nearly_transparent_is_told(tmp_path):
    clear = np.dstack([SCAN, np.zeros(SCAN.shape[:2], np.uint8)])
    Image.fromarray(clear).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", clear, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    for name in ("a.png", "a.tif"):
        pixels, remarks = both(tmp_path / name)
        assert (pixels == 255).all()
        assert "100.0% of the image transparent" in remarks[0]


# Bits


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["ome", "json", "tag", "nothing", "packed"])
def test_the_bits_that_count(tmp_path, bits, kind):
    white = 2**bits - 1
    deep = np.rint(SCAN / 255.0 * white).astype(np.uint16)
    deep[0, 0] = white
    path, options = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif"), {"photometric": "rgb"}
    if kind == "packed":
        pytest.importorskip("imagecodecs")
        options["bitspersample"] = bits
    elif kind in ("ome", "json"):
        options["metadata"] = {"SignificantBits": bits, **({"axes": "YXS"} if kind == "ome" else {})}
    elif kind == "tag":
        options |= {"extratags": [(281, "H", 3, (white,) * 3, True)], "tile": (64, 64)}
    tifffile.imwrite(path, deep, **options)
    pixels, remarks = both(path)
    np.testing.assert_allclose(pixels[1:].astype(int), SCAN[1:], atol=1)
    assert len(remarks) == (kind == "nothing")
    if kind == "nothing":
        assert f"go up to {white:,} only" in remarks[0]
        assert f"{bits} bits are used" in remarks[0]


def test_a_statement_that_the_values_contradict_is_told(tmp_path):
    deep = (SCAN.astype(np.uint16) * 257) >> 2
    deep[0, 0] = 2**14 - 1
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", metadata={"SignificantBits": 10})
    pixels, remarks = both(tmp_path / "a.tif")
    np.testing.assert_allclose(pixels[1:].astype(int), SCAN[1:], atol=1)
    assert "states 10 significant bits, and its samples go up to 16,383; 14 bits are used" in remarks[0]
