"""Slides of Zeiss: colours, gaps, scenes, levels, and what is refused. Drawn files hold blue first, as scanners do."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest
from drawn_pyramids import draw, shrunk
from support.drawn_czi import CziTile, cut, write_czi

from cellvit.errors import ImageError
from cellvit.slide.info import slide_info
from cellvit.slide.open import is_slide, open_slide
from cellvit.slide.readers.czi import CziSlide

pytest.importorskip("pylibCZIrw")
RGB = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
DISCS = draw(450, 300)[0]


def whole(slide, level=0):
    return slide.read_region(0, 0, *slide.level_sizes[level], level=level)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.czi"


@pytest.mark.parametrize("compression", ["none", "zstd0", "zstd1", "jpegxr"])
def test_colours_are_those_of_the_format_whatever_the_compression(path, compression):
    write_czi(path, cut(RGB) + cut(shrunk(RGB, 2), ratio=2), compression=compression, quality=100)
    with open_slide(path) as slide:
        assert (slide.reader, slide.level_sizes, slide.bounds) == ("czi", ((300, 200), (150, 100)), (0, 0, 300, 200))
        assert (slide.stated_mpp, slide.stated_magnification, slide.warnings) == ((0.25, 0.25), 40, ())
        np.testing.assert_array_equal(whole(slide), RGB)
        np.testing.assert_array_equal(whole(slide, 1), shrunk(RGB, 2))
        np.testing.assert_array_equal(slide.read_region(37, 21, 200, 150), RGB[21:171, 37:237])
        np.testing.assert_array_equal(slide.read_region(-5, 190, 20, 20)[:10, 5:], RGB[190:, :15])


def test_openslide_sees_the_same_colours(path):
    write_czi(path, cut(RGB))
    with openslide.OpenSlide(path) as slide:
        seen = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    np.testing.assert_array_equal(seen[..., :3], RGB)


def test_a_file_of_the_library_is_read_as_the_format_says_and_told(path):
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        file.write(RGB)  # red first, as its example for users has it
        file.write_metadata(scale_x=0.5e-6, scale_y=0.25e-6)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), RGB[..., ::-1])
        assert slide.stated_mpp == (0.5, 0.25)
        assert "red and blue were exchanged" in slide.warnings[0]


def test_gaps_are_white_in_every_level(path):
    black = np.zeros((64, 64, 3), np.uint8)  # what a scanner puts where it saw nothing
    small = shrunk(RGB, 2)
    small[50:, :32] = 0
    tiles = [*cut(RGB, tile=100, keep=lambda column, row: (column, row) != (0, 1)), *cut(small, tile=50, ratio=2)]
    write_czi(path, [*tiles, CziTile(black, (400, 400), valid=np.zeros((64, 64), bool))])
    with open_slide(path) as slide:
        assert slide.level_sizes == ((464, 464), (232, 232))[: len(slide.level_sizes)]
        full = whole(slide)
        assert (full[100:200, :100] == 255).all()
        assert (full[:, 300:] == 255).all()
        np.testing.assert_array_equal(full[:100, :300], RGB[:100])
    write_czi(path, tiles)
    with open_slide(path) as slide:
        level = whole(slide, 1)
        assert (level[50:, :50] == 255).all()
        np.testing.assert_array_equal(level[:50], small[:50])
        np.testing.assert_array_equal(level[50:, 50:], small[50:, 50:])


def test_a_level_that_lacks_tiles_is_left_out(path):
    half, quarter = shrunk(RGB, 2), shrunk(RGB, 4)
    tiles = [*cut(RGB), *cut(half, tile=50, ratio=2, keep=lambda column, row: column < 2), *cut(quarter, ratio=4)]
    write_czi(path, tiles)
    with open_slide(path) as slide:
        assert slide.level_sizes == ((300, 200), (75, 50))
        assert "the level of 150 x 100 px lacks tiles" in slide.warnings[0]
        np.testing.assert_array_equal(whole(slide, 1), quarter)


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_levels_are_what_is_stored_wherever_they_are_cut(path, ratio):
    small = shrunk(DISCS, ratio)
    write_czi(path, cut(DISCS, place=(-70, 31)) + cut(small, tile=32, ratio=ratio, place=(-70, 31)))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide, 1), small)
        for x in range(3, 40, 9):
            np.testing.assert_array_equal(slide.read_region(x, 5, 31, 40, level=1), small[5:45, x : x + 31])


def two_scenes(path, place, **about):
    other = np.ascontiguousarray(DISCS[:150, :200])
    tiles = cut(RGB, place=(-50, 20)) + cut(shrunk(RGB, 2), ratio=2, place=(-50, 20))
    tiles += cut(other, place=place, scene=1) + cut(shrunk(other, 2), ratio=2, place=place, scene=1)
    return write_czi(path, tiles, scenes=("left", "right"), **about), other


def test_scenes_are_one_picture_or_one_of_them(path):
    _, other = two_scenes(path, (300, 70))
    with open_slide(path) as slide:
        assert slide.level_sizes == ((550, 200), (275, 100))
        assert "0 'left' (300 x 200 px), 1 'right' (200 x 150 px)" in slide.warnings[0]
        full, half = whole(slide), whole(slide, 1)
        np.testing.assert_array_equal(full[:, :300], RGB)
        np.testing.assert_array_equal(full[50:, 350:], other)
        assert (full[:50, 300:] == 255).all()
        np.testing.assert_array_equal(half[25:, 175:], shrunk(other, 2))
    for scene in (1, "right", "RIGHT"):
        with open_slide(path, scene=scene) as slide:
            assert (slide.level_sizes, slide.warnings) == (((200, 150), (100, 75)), ())
            np.testing.assert_array_equal(whole(slide), other)
            np.testing.assert_array_equal(whole(slide, 1), shrunk(other, 2))
    with pytest.raises(ImageError, match=r"a\.czi': scene 'third' is not among the images of the file: 0 'left'"):
        open_slide(path, scene="third")
    facts = slide_info(path).pixels
    assert [(picture.name, picture.size) for picture in facts.scenes] == [("left", (300, 200)), ("right", (200, 150))]
    assert (facts.kind, facts.channels, facts.bits, facts.compression) == ("CZI", 3, 8, "none")
    assert facts.associated is None


def test_scenes_that_hide_each_other_are_to_be_chosen(path):
    _, other = two_scenes(path, (100, 70))
    with pytest.raises(ImageError, match=r"2 scenes that lie on each other: 0 'left' .*; choose one .* scene=0"):
        open_slide(path)
    with open_slide(path, scene=0) as slide:
        np.testing.assert_array_equal(whole(slide), RGB)
    with open_slide(path, scene="right") as slide:
        np.testing.assert_array_equal(whole(slide), other)


def test_a_file_without_scenes_has_scene_0(path):
    write_czi(path, cut(RGB, scene=None))
    for scene in (None, 0):
        with open_slide(path, scene=scene) as slide:
            np.testing.assert_array_equal(whole(slide), RGB)


def test_threads_read_the_same_and_a_closed_slide_says_so(path):
    write_czi(path, cut(DISCS, tile=64) + cut(shrunk(DISCS, 2), tile=64, ratio=2), compression="jpegxr", quality=100)
    places = [(x, y, level) for level in (0, 1) for x in range(0, 120, 17) for y in range(0, 80, 19)]
    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda place: slide.read_region(*place[:2], 90, 60, level=place[2]), places)
        for (x, y, level), pixels in zip(places, found, strict=True):
            np.testing.assert_array_equal(pixels, shrunk(DISCS, 2**level)[y : y + 60, x : x + 90])
    slide.close()
    with pytest.raises(ImageError, match="is closed"):
        slide.read_region(0, 0, 1, 1)


@pytest.mark.parametrize(("bits", "kind"), [(16, "grey"), (16, "rgb"), (8, "grey")])
def test_grey_and_16_bits_are_read_as_in_a_tiff(path, bits, kind):
    pixels = RGB if kind == "rgb" else RGB[..., 0]
    write_czi(path, cut(pixels.astype(np.uint16) * 16 if bits == 16 else np.ascontiguousarray(pixels)))
    with open_slide(path) as slide:
        expected = np.broadcast_to(pixels if kind == "rgb" else pixels[..., None], RGB.shape).astype(int)
        assert np.abs(whole(slide) - expected).max() <= 1
        assert [text.partition("only")[0] for text in slide.warnings] == (
            ["its samples of 16 bits go up to 4,064 "] if bits == 16 else []
        )


def planes(name, pixels):
    return cut(pixels, plane=((name, 0),)) + cut(pixels, plane=((name, 1),))


GREY16 = RGB[..., 0].astype(np.uint16)


@pytest.mark.parametrize(
    ("tiles", "about", "told"),
    [
        (planes("Z", RGB), {}, r"several planes \(Z 2\); export the one you want"),
        (planes("T", RGB), {}, r"several planes \(T 2\)"),
        (planes("C", GREY16), {}, r"2 channels, 'Cam0' \(Gray16\), 'Cam1' \(Gray16\), and the models know H&E"),
        (cut(GREY16), {"contrast": "Fluorescence"}, "channel 'Cam0' is fluorescence"),
        (cut(RGB, ratio=2), {}, "no tiles of full resolution"),
        (cut(RGB), {"compression": "jpeg"}, "compressed as JPEG, which pylibCZIrw does not read"),
    ],
)
def test_what_is_no_slide_in_colour_is_refused(path, tiles, about, told):
    write_czi(path, tiles, **about)
    assert is_slide(path)
    with pytest.raises(ImageError, match=rf"a\.czi'.*{told}"):
        open_slide(path)


def test_the_channel_in_colour_is_read_where_others_lie_beside_it(path):
    write_czi(path, cut(GREY16, plane=(("C", 0),)) + cut(RGB, plane=(("C", 1),)))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), RGB)
        assert "of its channels 'Cam0' (Gray16), 'Cam1' (Bgr24) the one in colour is read, 'Cam1'" in slide.warnings[0]


@pytest.mark.parametrize("about", [{"metadata": False}, {"mpp": None, "power": None}, {"mpp": 0.0, "power": None}])
def test_without_a_resolution_the_pixels_are_still_there(path, about):
    write_czi(path, cut(RGB), **about)
    with open_slide(path) as slide:
        assert (slide.stated_mpp, slide.stated_magnification) == (None, None)
        assert len(slide.resolution_notes) == (about.get("mpp") == 0.0)
        np.testing.assert_array_equal(whole(slide), RGB)


def test_damaged_files_say_so(path, tmp_path):
    write_czi(path, cut(RGB, tile=100), compression="zstd0")
    data = bytearray(path.read_bytes())
    for name, content in (("cut", data[:-300]), ("head", data[:100])):
        (tmp_path / f"{name}.czi").write_bytes(content)
        with pytest.raises(ImageError, match=rf"{name}\.czi' is not a slide .* \(czi: .*; copy or export it again"):
            open_slide(tmp_path / f"{name}.czi")
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="is an empty file"):
        open_slide(path)
    first = data.index(b"ZISRAWSUBBLOCK") + 32 + 256
    data[first : first + 40] = bytes(40)
    path.write_bytes(data)
    with open_slide(path) as slide:
        with pytest.raises(
            ImageError, match=r"damaged within the 50 x 50 px at x=10, y=10 of level 0 .*copy or export"
        ):
            slide.read_region(10, 10, 50, 50)
        np.testing.assert_array_equal(slide.read_region(100, 0, 200, 200), RGB[:, 100:])


def test_without_the_extra_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    write_czi(path, cut(RGB), compression="jpegxr")
    with pytest.raises(ImageError, match=r"needs the package 'pylibCZIrw' 6.1 or newer .*pip install '\.\[formats\]'"):
        open_slide(path)
    write_czi(path, cut(RGB))
    with open_slide(path) as slide:  # OpenSlide knows this compression
        assert slide.reader == "openslide"
        np.testing.assert_array_equal(whole(slide), RGB)


def test_the_suffix_does_not_matter(path, tmp_path):
    write_czi(path, cut(RGB))
    shutil.copy(path, tmp_path / "scan")
    assert CziSlide.accepts(tmp_path / "scan")
    (tmp_path / "b.czi").write_bytes(b"no slide")
    assert not CziSlide.accepts(tmp_path / "b.czi")
