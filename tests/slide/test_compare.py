"""What differs between two readers is found: a shift, exchanged colours, another size or resolution."""

import numpy as np
import pytest
from drawn_pyramids import ArraySlide, draw, shrunk

from cellvit.slide import compare
from cellvit.slide.compare import compare_readers

IMAGE = draw(400, 300)[0]
LEVELS = [IMAGE, shrunk(IMAGE, 2)]


class Other:
    """A library that sees levels in its own way."""

    name, pyramids = "other", True

    def __init__(self, levels, mpp=(0.25, 0.25)):
        self.levels, self.mpp, self.closed, self.largest = levels, mpp, False, 0
        self.level_sizes = tuple((level.shape[1], level.shape[0]) for level in levels)

    @classmethod
    def version(cls):
        return "1.0"

    def read(self, x, y, width, height, *, level=0):
        self.largest = max(self.largest, width * height)
        return self.levels[level][y : y + height, x : x + width]

    def close(self):
        self.closed = True


@pytest.fixture
def seen(monkeypatch):
    def look(other, levels=LEVELS, **stated):
        slide = ArraySlide(levels, **({"stated_mpp": (0.25, 0.25)} | stated))
        monkeypatch.setattr(compare, "open_slide", lambda path: slide)
        monkeypatch.setattr(compare, "readers_for", lambda path: [])
        other.__class__.__call__ = lambda self, path: self
        monkeypatch.setattr(compare, "REFEREES", (other,))
        return compare_readers("array.svs")[1]

    return look


def test_one_picture_is_the_same_to_both(seen):
    other = Other(LEVELS)
    view = seen(other)
    assert (view.disagreements, view.refusal, other.closed) == ((), "", True)
    assert [difference.region.name for difference in view.differences] == [
        *("tissue", "upper left", "lower right", "level 1")
    ]
    assert {(d.largest, d.mean, d.shift) for d in view.differences} == {(0, 0.0, (0.0, 0.0))}


@pytest.mark.parametrize("shift", [(3, 0), (0, -2), (-1, 5)])
def test_a_shift_is_measured(seen, shift):
    moved = [np.roll(level, shift, axis=(1, 0)) for level in LEVELS]
    (tissue, *_) = seen(Other(moved)).differences
    assert tissue.shift == shift
    assert f"tissue: shifted by {shift[0]}, {shift[1]} px" in seen(Other(moved)).disagreements


def test_half_a_pixel_is_measured(seen):
    wide = np.kron(IMAGE[:150, :200], np.ones((2, 2, 1))).astype(np.uint8)
    moved = ((wide.astype(int) + np.roll(wide, 1, axis=1)) // 2).astype(np.uint8)
    (tissue, *_) = seen(Other([moved]), levels=[wide]).differences
    assert tissue.shift == (0.5, 0.0)


def test_colours_sizes_and_resolutions_are_told(seen):
    assert "tissue: red and blue are exchanged" in seen(Other([level[..., ::-1] for level in LEVELS])).disagreements
    darker = seen(Other([level // 2 for level in LEVELS])).disagreements
    assert any(text.startswith("tissue: colours 11") for text in darker), darker
    assert seen(Other([IMAGE[:-1]], mpp=None)).disagreements == (
        *("400 x 299 px instead of 400 x 300", "1 level instead of 2", "no resolution instead of 0.25 µm/px"),
    )
    assert seen(Other(LEVELS, mpp=(0.5, 0.25))).disagreements == ("0.5 x 0.25 µm/px instead of 0.25 µm/px",)


def test_only_small_regions_of_a_large_slide_are_read(seen, monkeypatch):
    large = np.broadcast_to(np.uint8(255), (6000, 9000, 3))
    other = Other([large])
    assert seen(other, levels=[large]).disagreements == ()
    assert other.largest == compare.SIDE**2
    monkeypatch.setattr(compare, "_SMALL", 1000)
    wide = np.full((3000, 3000, 3), 255, np.uint8)
    wide[1500:1700, 2500:2700] = IMAGE[:200, :200]
    (tissue, *_) = seen(Other([wide]), levels=[wide]).differences
    assert tissue.region.box == (2244, 1244, 512, 512)  # around the one of nine places where there is something


def test_a_library_that_fails_says_why(seen):
    other = Other(LEVELS)
    other.read = lambda *place, level: 1 / 0
    view = seen(other)
    assert (view.refusal, other.closed) == ("cannot read it: division by zero", True)
