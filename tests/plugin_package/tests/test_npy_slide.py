"""Checks of the reader: what another reader sees, what is outside, and what is no slide."""

import json

import numpy as np
import pytest
from PIL import Image

from cellvit.errors import ImageError
from cellvit.slide.open import is_slide, open_slide

PIXELS = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "scan.npy", PIXELS)
    np.save(tmp_path / "scan.half.npy", PIXELS[::2, ::2])
    (tmp_path / "scan.json").write_text(json.dumps({"mpp": 0.25}))
    return tmp_path / "scan.npy"


def test_it_is_asked_for_its_files_and_says_what_they_state(path):
    assert is_slide(path)
    with open_slide(path) as slide:
        assert (slide.reader, slide.level_sizes, slide.stated_mpp) == ("npy", ((80, 60), (40, 30)), (0.25, 0.25))
        assert slide.warnings == ()


def test_two_readers_see_one_picture(path, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "scan.png")
    with open_slide(path) as slide, open_slide(tmp_path / "scan.png") as other:
        for box in ((0, 0, 80, 60), (7, 5, 20, 30), (-3, 50, 100, 20)):  # the last one reaches outside: white there
            np.testing.assert_array_equal(slide.read_region(*box), other.read_region(*box))
        np.testing.assert_array_equal(slide.read_region(5, 5, 10, 9, level=1), PIXELS[::2, ::2][5:14, 5:15])
    with pytest.raises(ImageError, match="is closed"):
        slide.read_region(0, 0, 1, 1)


def test_what_is_no_slide_says_why(path):
    np.save(path, PIXELS[..., 0])
    with pytest.raises(ImageError, match=r"uint8 \(60, 80\); save \(H, W, 3\) RGB"):
        open_slide(path)
    np.save(path, PIXELS[:-2])
    with pytest.raises(ImageError, match=r"scan\.half\.npy' is not half of"):
        open_slide(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"scan\.npy' is not a slide .*npy: "):
        open_slide(path)
