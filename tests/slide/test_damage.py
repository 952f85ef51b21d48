"""Damage stays where it is, tags that OpenSlide passes over are heeded, and unusual pictures are told."""

from types import SimpleNamespace

import drawn_pyramids as drawn
import numpy as np
import pytest
import tifffile

from cellvit.errors import ImageError
from cellvit.inference.prepare import prepare_slide
from cellvit.inference.settings import SlideSettings
from cellvit.io.images import read_image
from cellvit.slide.appearance import appearance_remarks
from cellvit.slide.damage import Undamaged
from cellvit.slide.open import open_slide
from cellvit.slide.view import SlideView

IMAGE = np.kron(np.random.default_rng(2).integers(60, 250, (8, 8, 3), dtype=np.uint8), np.ones((128, 128, 1), np.uint8))


class Holed(drawn.ArraySlide):
    """A slide with places, ``(level, x, y, width, height)``, that cannot be read."""

    def __init__(self, levels, holes):
        super().__init__(levels)
        self.holes = holes

    def _read(self, level, x, y, width, height):
        for number, left, top, across, down in self.holes:
            if level == number and x < left + across and left < x + width and y < top + down and top < y + height:
                raise self._damaged(level, (left, top, across, down), "lost")
        return super()._read(level, x, y, width, height)


def test_a_place_that_one_level_has_lost_comes_from_another():
    levels = [IMAGE, IMAGE[::2, ::2], IMAGE[::4, ::4]]
    for holes, source in (([(1, 128, 128, 64, 64)], 0), ([(1, 128, 128, 64, 64), (0, 256, 256, 128, 128)], 2)):
        view = SlideView(Holed(levels, holes), mpp=(0.25, 0.25), target_mpp=0.25)
        picture, remarks = view.thumbnail_with_remarks(512)
        assert np.abs(picture.astype(int) - IMAGE[::2, ::2]).max() <= 2
        assert len(remarks) == 1
        assert f"takes that from level {source}" in remarks[0]
        with pytest.warns(UserWarning, match="level 1 is damaged"):
            view.thumbnail(512)


def test_a_place_that_no_level_has_is_left_out():
    view = SlideView(Holed([IMAGE], [(0, 256, 512, 128, 128)]), mpp=(0.25, 0.25), target_mpp=0.25)
    picture, remarks = view.thumbnail_with_remarks(1024)
    expected = IMAGE.copy()
    expected[512:640, 256:384] = 255
    np.testing.assert_array_equal(picture, expected)
    assert "the slide is damaged at 4 places, the first at x=256, y=512 (" in remarks[0]


def test_a_slide_of_which_nothing_can_be_read_is_refused():
    view = SlideView(Holed([IMAGE], [(0, 0, 0, 1024, 1024)]), mpp=(0.25, 0.25), target_mpp=0.25)
    with pytest.raises(ImageError, match="is damaged within"):
        view.thumbnail(512)


@pytest.mark.parametrize("lost", [0, 5])
def test_one_lost_tile_does_not_cost_the_slide(tmp_path, lost):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(256, 256), compression="jpeg", metadata=None)
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[lost], file.pages[0].databytecounts[lost]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    with open_slide(path) as slide:
        prepared = prepare_slide(slide, SlideSettings(mpp=0.25, formats=()), model_mpp=0.25)
    assert slide.reader == "tiff"
    assert any("the slide is damaged at 16 places" in text for text in prepared.warnings)
    good = np.ones((4, 4), bool)
    good[divmod(lost, 4)] = False
    close = np.abs(prepared.thumbnail.astype(int) - IMAGE).reshape(4, 256, 4, 256, 3).mean((1, 3, 4)) < 4
    np.testing.assert_array_equal(close, good)


def test_very_much_damage_is_not_read_for_ever():
    slide = Holed([IMAGE], [(0, 0, 0, 1024, 1024)])
    with pytest.raises(ImageError):
        Undamaged(slide, piece=8).read_region(0, 0, 1024, 1024)


# Tags that OpenSlide passes over


@pytest.mark.parametrize("odd", ["orientation", "padding", "associated", "nothing"])
def test_a_scanner_file_is_read_as_its_tags_say(tmp_path, odd):
    stored = IMAGE[:768]
    text = "Aperio Image Library v12.0.15 \r\n1024x768 [0,0 1024x768] (256x256) RAW|AppMag = 40|MPP = 0.2500"
    options = {"photometric": "rgb", "metadata": None, "description": text}
    if odd == "orientation":
        options["extratags"] = [(274, "H", 1, 3, True)]
    if odd in ("padding", "associated"):
        fourth = np.full(stored.shape[:2], 0 if odd == "padding" else 255, np.uint8)
        stored = np.dstack([stored, fourth])
        options["extrasamples"] = ["unspecified" if odd == "padding" else "assocalpha"]
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        file.write(stored, tile=(256, 256), **options)
        file.write(stored[::8, ::8], **options)
        file.write(stored[::4, ::4], tile=(256, 256), **options)
    expected = stored[::-1, ::-1, :3] if odd == "orientation" else stored[..., :3]
    with open_slide(path) as slide:
        assert slide.reader == {"orientation": "pillow", "nothing": "openslide"}.get(odd, "tiff")
        assert slide.stated_mpp == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read_region(0, 0, 1024, 768), expected)
    if odd != "padding":
        np.testing.assert_array_equal(read_image(path), expected)


# Pictures that are not stained tissue on bright ground


def discs(ground, nucleus, radius=10):
    y, x = np.mgrid[:256, :256] % 32 - 16
    inside = x**2 + y**2 < radius**2
    return np.where(inside[..., None], np.array(nucleus, np.uint8), np.array(ground, np.uint8))


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (discs((232, 185, 212), (98, 62, 138)), None),
        (discs((240, 240, 240), (200, 150, 190), radius=3), None),
        (discs((200, 200, 200), (90, 90, 90)), None),  # a grey photograph
        (np.pad(discs((232, 185, 212), (98, 62, 138)), ((200, 200), (200, 200), (0, 0))), None),  # a black frame
        (np.full((64, 64, 3), 255, np.uint8), None),
        (discs((4, 4, 4), (10, 11, 12)), "nearly black"),
        (discs((5, 5, 8), (30, 60, 230)), "fluorescence"),
        (discs((5, 5, 5), (250, 250, 250)), "fluorescence"),
        (discs((10, 5, 5), (250, 20, 240), radius=14), "fluorescence"),
        (discs((70, 70, 90), (90, 110, 160), radius=14), "fluorescence"),
    ],
    ids=["h&e", "pale", "grey", "framed", "white", "black", "dapi", "grey dapi", "magenta", "haze"],
)
def test_unusual_pictures_are_told(picture, word):
    remarks = appearance_remarks(picture)
    assert bool(remarks) == (word is not None)
    assert word is None or word in remarks[0]


def test_what_is_unusual_stands_in_the_warnings_of_a_slide(tmp_path):
    dark = discs((5, 5, 8), (30, 60, 230))
    slide = SimpleNamespace(
        path=tmp_path / "x.svs",
        bounds=(0, 0, 256, 256),
        level_sizes=((256, 256),),
        stated_mpp=(0.25, 0.25),
        stated_magnification=None,
        warnings=("its file says so",),
        read_region=lambda x, y, width, height, level=0: dark[y : y + height, x : x + width],
    )
    warnings = prepare_slide(slide, SlideSettings(formats=()), model_mpp=0.25).warnings
    assert warnings[0] == "its file says so"
    assert any("fluorescence" in text for text in warnings)
