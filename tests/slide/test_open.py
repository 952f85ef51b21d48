import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import drawn_pyramids as drawn
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.errors import ConfigError, ImageError
from cellvit.io.images import to_rgb
from cellvit.slide.naming import SLIDE_SUFFIXES, expand_inputs
from cellvit.slide.open import is_slide, open_slide
from cellvit.slide.readers import image as image_reader
from cellvit.slide.readers import tiff as tiff_reader
from cellvit.slide.readers.base import cache_bytes, small_caches
from cellvit.slide.readers.openslide import bounds_of
from cellvit.slide.readers.tiff import ChunkCache, TiffSlide
from cellvit.slide.view import SlideView

RATIOS = (1, 2, 3.37, 4)
RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (700, 900, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def pyramid():
    image, centres = drawn.draw(3001, 2203)
    return [drawn.shrunk(image, ratio) for ratio in RATIOS], centres


@pytest.fixture(scope="session")
def files(tmp_path_factory, pyramid):
    folder, (levels, _) = tmp_path_factory.mktemp("pyramids"), pyramid
    Image.fromarray(levels[0]).save(folder / "flat.png")
    return {
        "aperio": drawn.write_aperio(folder / "aperio.svs", levels),
        "ome": drawn.write_ome(folder / "ome.ome.tif", levels),
        "ome series": drawn.write_ome(folder / "series.ome.tif", levels, separate=True),
        "plain": drawn.write_plain(folder / "plain.tif", levels),
        "strips": drawn.write_plain(folder / "strips.tif", levels[:1], tile=None, rowsperstrip=64),
        "uncompressed": drawn.write_plain(folder / "raw.tif", levels[:1], tile=None, compression=None),
        "png": folder / "flat.png",
    }


KINDS = ["aperio", "ome", "ome series", "plain", "strips", "uncompressed", "png"]
PYRAMIDS = KINDS[:4]
READERS = dict.fromkeys(KINDS, "tiff") | {"aperio": "openslide", "png": "pillow"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_slide_says_about_itself(files, kind):
    with open_slide(files[kind]) as slide:
        assert slide.reader == READERS[kind]
        assert slide.path == files[kind]
        assert slide.level_sizes[0] == (3001, 2203)
        assert slide.bounds == (0, 0, 3001, 2203)
        assert slide.stated_mpp == (None if kind == "png" else pytest.approx((0.25, 0.25)))
        assert slide.stated_magnification == (40 if kind == "aperio" else None)
        assert all(isinstance(text, str) for pair in slide.properties.items() for text in pair)
        expected = ((3001, 2203), (1500, 1101), (891, 654), (750, 550))
        assert slide.level_sizes == (expected if kind in PYRAMIDS else expected[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_full_resolution_is_read_exactly_and_white_lies_around_it(files, pyramid, kind):
    image = pyramid[0][0]
    padded = np.pad(image, ((40, 40), (40, 40), (0, 0)), constant_values=255)
    with open_slide(files[kind]) as slide:
        for x, y, width, height in [
            (0, 0, 3001, 2203),
            (250, 250, 20, 20),
            (2900, 2150, 101, 53),
            (-40, -40, 300, 100),
            (2990, 2195, 51, 48),
            (700, -30, 1, 2263),
        ]:
            expected = padded[y + 40 : y + 40 + height, x + 40 : x + 40 + width]
            np.testing.assert_array_equal(slide.read_region(x, y, width, height), expected)
        assert (slide.read_region(5000, 5000, 30, 20) == 255).all()
        assert (slide.read_region(-30, 0, 30, 20) == 255).all()
        region = slide.read_region(10, 10, 20, 20)
        region[:] = 0  # a region is the caller's own
        np.testing.assert_array_equal(slide.read_region(10, 10, 20, 20), image[10:30, 10:30])


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_levels_are_read_in_their_own_pixels(files, pyramid, kind):
    with open_slide(files[kind]) as slide:
        for level, expected in enumerate(pyramid[0]):
            height, width = expected.shape[:2]
            read = slide.read_region(0, 0, width, height, level=level).astype(int)
            part = slide.read_region(width - 300, height - 270, 300, 270, level=level)
            np.testing.assert_array_equal(part, read[-270:, -300:])
            if READERS[kind] == "tiff":
                np.testing.assert_array_equal(read, expected)
            else:  # OpenSlide moves a level by parts of a pixel where its ratio is no whole number
                assert np.abs(read - expected).mean() < 0.5
                assert np.abs(read[:, -1] - expected[:, -1]).max() < 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.25, 0.125, 0.37, 0.5, 0.9, 1.0])
def test_discs_are_found_where_they_were_drawn(files, pyramid, kind, target):
    centres = pyramid[1]
    with open_slide(files[kind]) as slide:
        view = SlideView(slide, mpp=(drawn.MPP, drawn.MPP), target_mpp=target)
        assert kind not in PYRAMIDS or view.level == {0.5: 1, 0.9: 2, 1.0: 3}.get(target, 0)
        corner = (max(0, view.width - 1500), max(0, view.height - 1200))  # an enlarged view would be slow as a whole
        part = view.read(*corner, view.width - corner[0], view.height - corner[1])
        discs = view.to_level0(drawn.table(drawn.found(part) + corner + 0.5)).centroid - 0.5
        first = np.array(corner) / view.scale + np.where(np.array(corner) > 0, 40, 0)
    expected = centres[(centres > first).all(axis=1)]
    discs = discs[(discs > first - 1).all(axis=1)]
    distances = np.linalg.norm(discs[:, None] - centres[None], axis=2)
    assert distances.min(axis=1).max() < 0.5
    assert len(set(distances.argmin(axis=1))) == len(discs) >= len(expected) > 100 * (target > 0.2)


@pytest.fixture
def restless():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_what_one_thread_reads(files, kind, monkeypatch, restless):
    monkeypatch.setattr(tiff_reader, "CACHE_BYTES", 1)
    boxes = [(int(x), int(y), 230, 190) for x, y in RNG.integers(-100, 2900, (24, 2))]
    with open_slide(files[kind]) as slide:
        alone = [slide.read_region(*box) for box in boxes]
    with open_slide(files[kind]) as slide, ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for one, other in zip(alone, pool.map(lambda box: slide.read_region(*box), boxes), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["aperio", "ome"])
def test_slides_that_may_keep_little_read_the_same(files, kind):
    with small_caches(1000):
        assert (cache_bytes(10**9), cache_bytes(10)) == (1000, 10)
        small = open_slide(files[kind])
    assert cache_bytes(10**9) == 10**9
    with small, open_slide(files[kind]) as usual:
        for level in range(2):
            one, other = (slide.read_region(100, 50, 700, 400, level=level) for slide in (small, usual))
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_closing(files, kind):
    slide = open_slide(str(files[kind]))
    with slide as same:
        assert same is slide
    slide.close()
    with pytest.raises(ImageError, match="is closed"):
        slide.read_region(0, 0, 10, 10)
    with open_slide(files[kind]) as again:
        with pytest.raises(ConfigError, match="level 9"):
            again.read_region(0, 0, 10, 10, level=9)
        with pytest.raises(ConfigError, match="0 x 10 px is empty"):
            again.read_region(0, 0, 0, 10)


GREY = NOISE[..., 0]
ALPHA = np.dstack([NOISE, np.where(GREY > 99, 255, GREY)])
DEEP = NOISE.astype(np.uint16) * 257
LAYOUTS = {
    "grey": (GREY, {"photometric": "minisblack", "tile": (128, 256)}),
    "alpha": (ALPHA, {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (128, 128)}),
    "16 bit": (DEEP, {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "predictor": True}),
    "big endian": (DEEP, {"photometric": "rgb", "byteorder": ">", "rowsperstrip": 32}),
    "big endian tiles": (DEEP, {"photometric": "rgb", "byteorder": ">", "tile": (64, 64), "compression": "lzw"}),
    "strips": (NOISE, {"photometric": "rgb", "rowsperstrip": 17, "compression": "lzw"}),
    "one strip": (NOISE, {"photometric": "rgb", "rowsperstrip": 700, "compression": "zlib"}),
    "planar": (np.moveaxis(NOISE, -1, 0), {"photometric": "rgb", "planarconfig": "separate", "tile": (128, 128)}),
    "planar strips": (np.moveaxis(NOISE, -1, 0), {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 9}),
    "colours as pages": (np.moveaxis(NOISE, -1, 0), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}),
    "big tiff": (NOISE, {"photometric": "rgb", "bigtiff": True, "tile": (256, 256)}),
    "palette": (None, {}),
    "floats": ((NOISE / 255).astype(np.float32), {"photometric": "rgb", "tile": (128, 128)}),
    "rotated": (NOISE, {"photometric": "rgb", "tile": (64, 64), "extratags": [(274, 3, 1, 6, True)]}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_tiff_are_read_as_images_are(tmp_path, layout):
    data, options = LAYOUTS[layout]
    path = tmp_path / ("a.ome.tif" if layout == "colours as pages" else "a.tif")
    if data is None:
        flat = Image.fromarray(NOISE).quantize(64)
        flat.save(path)
        expected = np.asarray(flat.convert("RGB"))
    else:
        tifffile.imwrite(path, np.ascontiguousarray(data), **options)
        expected = to_rgb(np.moveaxis(data, 0, -1) if data.shape[0] == 3 else data)
    if layout == "rotated":
        expected = np.rot90(expected, -1)
    height, width = expected.shape[:2]
    with open_slide(path) as slide:
        assert slide.reader == ("pillow" if layout in ("palette", "floats", "rotated") else "tiff")
        np.testing.assert_array_equal(slide.read_region(0, 0, width, height), expected)
        part = slide.read_region(301, 99, 222, 333)
        np.testing.assert_array_equal(part, expected[99 : 99 + 333, 301 : 301 + 222])


def test_jpeg_tiles_are_read_with_their_colours(tmp_path):
    image = drawn.draw(600, 500)[0]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="jpeg", subsampling=(2, 2))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].photometric == 6  # stored as brightness and colour differences
    with open_slide(path) as slide:
        assert np.abs(slide.read_region(0, 0, 600, 500).astype(int) - image).mean() < 3


def test_tiles_that_the_file_leaves_out_are_white(tmp_path):
    path = tmp_path / "a.tif"
    tiles = (NOISE[:256, :256].tobytes() if i == 0 else b"" for i in range(4))
    tifffile.imwrite(path, tiles, shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb")
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 256, 256), NOISE[:256, :256])
        assert (slide.read_region(256, 0, 256, 512) == 255).all()


def test_stacks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((5, 512, 512), np.uint8), tile=(256, 256), photometric="minisblack")
    with pytest.raises(ImageError, match=r"z\.tif.*5 planes"):
        open_slide(tmp_path / "z.tif")
    stack = np.zeros((4, 300, 300, 3), np.uint8)
    tifffile.imwrite(tmp_path / "z.ome.tif", stack, tile=(256, 256), photometric="rgb", metadata={"axes": "ZYXS"})
    with pytest.raises(ImageError, match=r"z\.ome\.tif.*4 planes"):
        open_slide(tmp_path / "z.ome.tif")


def test_another_image_of_an_ome_tiff_is_not_a_level(tmp_path, pyramid):
    levels = pyramid[0]
    other = drawn.shrunk(drawn.draw(3001, 2203, seed=1)[0], 2)
    cut_off = levels[1][:, :900]
    path = drawn.write_ome(tmp_path / "a.ome.tif", [levels[0], other, cut_off], separate=True)
    with open_slide(path) as slide:
        assert slide.level_sizes == ((3001, 2203),)
        np.testing.assert_array_equal(slide.read_region(0, 0, 3001, 2203), levels[0])


def test_a_label_marked_as_reduced_is_not_a_level(tmp_path, pyramid):
    levels = pyramid[0]
    path = drawn.write_plain(tmp_path / "a.tif", [levels[0], levels[1], levels[2][:300]])
    with open_slide(path) as slide:
        assert slide.level_sizes == ((3001, 2203), (1500, 1101))


def test_an_ome_tiff_states_its_objective(tmp_path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="Instrument:0">'
        '<Objective ID="Objective:0" NominalMagnification="20.0"/></Instrument><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="900" SizeY="700" SizeC="3" SizeZ="1" SizeT="1" '
        'PhysicalSizeX="503" PhysicalSizeXUnit="nm" PhysicalSizeY="0.504" PhysicalSizeYUnit="&#181;m"><Channel '
        'ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", tile=(256, 256), description=xml.encode(), metadata=None)
    with open_slide(path) as slide:
        assert slide.stated_magnification == 20
        assert slide.stated_mpp == pytest.approx((0.503, 0.504))
    tifffile.imwrite(path, NOISE, photometric="rgb", description=xml.replace('"503"', '"x"').encode(), metadata=None)
    with open_slide(path) as slide:
        assert slide.stated_mpp is None


def test_a_resolution_that_no_microscope_has_is_not_stated(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", tile=(256, 256), resolution=(72, 72), resolutionunit="INCH")
    with open_slide(path) as slide:
        assert slide.stated_mpp is None


# Memory


def test_a_strip_is_decoded_once_for_a_row_of_tiles(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", rowsperstrip=50, compression="zlib")
    decoded, decode = [], tiff_reader.TiffLevel.decode
    monkeypatch.setattr(tiff_reader, "CACHE_BYTES", 1000)  # far less than a row of tiles needs
    monkeypatch.setattr(
        tiff_reader.TiffLevel, "decode", lambda self, c, r, read: (decoded.append(r), decode(self, c, r, read))[1]
    )
    with open_slide(path) as slide:
        decoded.clear()
        with ThreadPoolExecutor(4) as pool:
            for y in (0, 200, 400):
                list(pool.map(lambda x, y=y: slide.read_region(x, y, 100, 250), range(0, 900, 100)))
    assert sorted(decoded) == list(range(13))


def test_the_memory_of_the_cache_is_bounded():
    cache = ChunkCache(5000, largest=8000)
    made = []

    def chunk(key):
        return cache.get(key, lambda: (made.append(key), np.zeros((10, 100, 1), np.uint8))[1])

    for key in range(8):
        chunk(key)
    assert cache._bytes == 5000
    chunk(7)
    chunk(3)
    assert made == list(range(8))  # the last five are kept
    chunk(0)
    assert made == [*range(8), 0]
    chunk(3)
    assert made == [*range(8), 0]  # used lately, so 4 went
    chunk(4)
    assert made == [*range(8), 0, 4]
    cache.reserve(20_000)
    for key in range(30):
        chunk(key)
    assert cache._bytes == 8000
    cache.clear()
    assert cache._bytes == 0


def test_a_chunk_is_decoded_by_one_thread():
    cache, made, started = ChunkCache(5000, largest=5000), [], threading.Barrier(4)

    def slow():
        made.append(1)
        threading.Event().wait(0.05)
        return np.zeros((1, 1, 3), np.uint8)

    def ask(_):
        started.wait()
        return cache.get("a", slow)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, range(4)))
    assert len(made) == 1
    assert all(result is results[0] for result in results)


def test_strips_too_large_to_decode_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_reader, "MAX_CHUNK_BYTES", 700 * 900 * 3 - 1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", rowsperstrip=700, compression="zlib")
    with pytest.raises(ImageError, match=r"a\.tif.*900 x 700 px, too large.*tiled, pyramidal TIFF"):
        open_slide(path)
    tifffile.imwrite(path, NOISE, photometric="rgb", rowsperstrip=700)
    with open_slide(path) as slide:  # without compression nothing needs decoding
        np.testing.assert_array_equal(slide.read_region(0, 0, 900, 700), NOISE)


# OpenSlide


def test_bounds_are_read_from_properties():
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]

    def bounds(*values):
        return bounds_of(dict(zip(names, map(str, values), strict=True)), (1000, 800))

    assert bounds(10, 20, 300, 200) == (10, 20, 300, 200)
    assert bounds(-5, 20, 300, 2000) == (0, 20, 295, 780)
    assert bounds(2000, 20, 300, 200) == (0, 0, 1000, 800)
    assert bounds("x", 20, 300, 200) == (0, 0, 1000, 800)
    assert bounds_of({names[0]: "10"}, (1000, 800)) == (0, 0, 1000, 800)


def test_transparent_pixels_are_white_and_covered_ones_keep_their_colour(monkeypatch, files):
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[..., :3], pixels[0, :, 3] = 50, [0, 100, 200, 255]
    with open_slide(files["aperio"]) as slide:
        monkeypatch.setattr(type(slide._handle), "read_region", lambda *_: Image.fromarray(pixels))
        assert slide.read_region(0, 0, 4, 1)[0, :, 0].tolist() == [255, 255, 50, 50]


@pytest.mark.parametrize("kind", ["openslide", "tiff"])
def test_a_damaged_tile_is_named_and_the_others_are_read(tmp_path, kind):
    image = RNG.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    write = drawn.write_aperio if kind == "openslide" else drawn.write_plain
    write(path, [image], compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        place, count = tiff.pages[0].dataoffsets[10], tiff.pages[0].databytecounts[10]  # at x=512, y=512
    data = bytearray(path.read_bytes())
    data[place : place + count] = bytes(count)
    path.write_bytes(data)
    boxes = [(x, y, 256, 256) for y in range(0, 1024, 256) for x in range(0, 1024, 256)] * 3

    def read(box):
        try:
            return slide.read_region(*box)
        except ImageError as error:
            return str(error)

    with open_slide(path) as slide, ThreadPoolExecutor(6) as pool:
        assert slide.reader == kind
        for box, result in zip(boxes, pool.map(read, boxes), strict=True):
            if box[:2] == (512, 512):
                assert "a.tif' is damaged within the 256 x 256 px at x=512, y=512 of level 0" in result
                assert "copy or export it again" in result
            else:
                np.testing.assert_array_equal(result, image[box[1] : box[1] + 256, box[0] : box[0] + 256])
        with pytest.raises(
            ImageError,
            match=r"damaged within the 1024 x 1024 px at x=0, y=0|damaged within the 256 x 256 px at x=512, y=512",
        ):
            SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.5).read(0, 0, 512, 512)


def test_where_openslide_fails_to_open_another_reader_may_help(files, monkeypatch):
    import openslide

    def refuse(*_):
        raise openslide.OpenSlideError("no")

    with open_slide(files["plain"]) as slide:
        assert slide.reader == "tiff"
    monkeypatch.setattr("cellvit.slide.readers.openslide._open", refuse)
    with open_slide(files["aperio"]) as slide:
        assert slide.reader == "tiff"
        assert slide.stated_mpp == (0.25, 0.25)
        assert slide.stated_magnification == 40


# What is no slide, and what is one


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.svs' does not exist"):
        open_slide(tmp_path / "missing.svs")
    with pytest.raises(ImageError, match="is a folder"):
        open_slide(tmp_path)
    (tmp_path / "empty.svs").touch()
    with pytest.raises(ImageError, match="empty file"):
        open_slide(tmp_path / "empty.svs")
    (tmp_path / "notes.svs").write_text("no slide")
    with pytest.raises(
        ImageError, match=r"notes\.svs' is not a slide or an image that OpenSlide, tifffile or Pillow can"
    ):
        open_slide(tmp_path / "notes.svs")
    for name in ("missing.svs", ".", "empty.png", "notes.txt"):
        assert not is_slide(tmp_path / name)
    assert is_slide(tmp_path / "empty.svs")
    assert is_slide(tmp_path / "notes.svs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.97])
def test_files_that_are_cut_short(tmp_path, files, kind, part):
    data = files[kind].read_bytes()
    path = tmp_path / files[kind].name
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match=path.name) as caught, open_slide(path) as slide:
        slide.read_region(0, 0, *slide.level_sizes[0])
    assert "\n" not in str(caught.value)
    assert "again" in str(caught.value)
    assert is_slide(path) in (True, False)


def test_unreadable_file(files, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match="permissions"):
        open_slide(files["ome"])
    assert not is_slide(files["strips"])


def test_which_files_are_slides(tmp_path, files, monkeypatch):
    assert {kind: is_slide(path) for kind, path in files.items()} == {
        kind: kind not in ("strips", "uncompressed", "png") for kind in KINDS
    }
    for module in (tiff_reader, image_reader):
        monkeypatch.setattr(module, "LARGE", 3001 * 2203 - 1)
    assert all(is_slide(str(path)) for path in files.values())
    aperio = tmp_path / "aperio.tif"
    aperio.write_bytes(files["aperio"].read_bytes())
    assert is_slide(aperio)
    assert ".svs" in SLIDE_SUFFIXES
    assert ".png" not in SLIDE_SUFFIXES


def test_the_slides_of_a_folder(tmp_path):
    for name in ("a.SVS", "b.png", "c.mrxs", "c.dat", "d.dcm"):
        (tmp_path / name).touch()
    files, missing = expand_inputs([str(tmp_path)])
    assert [path.name for path in files] == ["a.SVS", "b.png", "c.mrxs"]
    assert missing == []


# Real slides


def test_a_real_slide_of_one_level(test_data):
    path = test_data / "wsi" / "cmu_small_region.svs"
    assert is_slide(path)
    with open_slide(path) as slide, TiffSlide(path) as same:
        assert slide.reader == "openslide"
        assert slide.level_sizes == ((2220, 2967),)
        assert slide.stated_mpp == same.stated_mpp == (0.499, 0.499)
        assert slide.stated_magnification == same.stated_magnification == 20
        assert slide.properties["openslide.vendor"] == "aperio"
        assert not any("b414003d" in text for text in slide.properties.values())  # the user
        region = slide.read_region(700, 800, 500, 400).astype(int)
        assert np.abs(region - same.read_region(700, 800, 500, 400)).mean() < 1
        view = SlideView(slide, mpp=slide.stated_mpp, target_mpp=0.25)
        assert (view.width, view.height) == (round(2220 * 0.499 / 0.25), round(2967 * 0.499 / 0.25))
        assert view.thumbnail(500).shape == (500, 374, 3)


def test_a_real_pyramid(test_data):
    path = test_data / "wsi" / "tcga_pyramid_without_mpp.svs"
    assert is_slide(path)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.level_sizes == ((4443, 3567), (2221, 1783))
        assert slide.stated_mpp is None
        assert slide.stated_magnification is None
        coarse = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.5)
        assert coarse.level == 1
        box = (coarse.width - 400, coarse.height - 400, 400, 400)
        from_level1 = coarse.read(*box).astype(float)
    with TiffSlide(path) as same:  # the levels show the same places, also at the far edge
        full = same.read_region(0, 0, 4443, 3567)
    from_level0 = SlideView(drawn.ArraySlide([full]), mpp=(0.25, 0.25), target_mpp=0.5).read(*box).astype(float)
    inner = from_level1[20:-20, 20:-20]
    errors = {
        (dx, dy): np.abs(inner - from_level0[20 + dy : 380 + dy, 20 + dx : 380 + dx]).mean()
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
    }
    assert min(errors, key=errors.get) == (0, 0)
    assert errors[0, 0] < 0.6 * min(error for shift, error in errors.items() if shift != (0, 0))


def test_a_real_broken_slide(test_data):
    path = test_data / "wsi" / "broken.svs"
    assert is_slide(path)
    with pytest.raises(
        ImageError, match=r"broken\.svs' is not a slide or an image .* convert it to a tiled, pyramidal TIFF"
    ):
        open_slide(path)
