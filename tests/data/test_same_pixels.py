"""Training, prediction and segmentation see the same pixels of a file, whatever kind of file it is."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from cellvit.data.folder import FolderDataset, ImageDataset
from cellvit.io.images import read_image
from cellvit.slide.open import open_slide

RNG = np.random.default_rng(11)
RGB = RNG.integers(0, 256, (24, 36, 3), dtype=np.uint8)
GREY, ALPHA = RGB[..., 0], RGB[..., 1]
ROTATED = Image.Exif()
ROTATED[274] = 6


def clear_palette():
    image = Image.fromarray(RGB).quantize(16)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


FILES = {
    "rgba.png": lambda path: Image.fromarray(np.dstack([RGB, ALPHA])).save(path),
    "rgba.tif": lambda path: Image.fromarray(np.dstack([RGB, ALPHA])).save(path),
    "la.png": lambda path: Image.fromarray(np.dstack([GREY, ALPHA])).save(path),
    "palette.png": lambda path: clear_palette().save(path),
    "deep grey.png": lambda path: Image.fromarray(GREY.astype(np.uint16) * 257 + 200).save(path),
    "deep.tif": lambda path: tifffile.imwrite(path, RGB.astype(np.uint16) * 257 ^ 255, photometric="rgb"),
    "rotated.jpg": lambda path: Image.fromarray(RGB).save(path, exif=ROTATED),
    "rotated.png": lambda path: Image.fromarray(RGB).save(path, exif=ROTATED),
    "rotated.tif": lambda path: tifffile.imwrite(
        path, RGB, photometric="rgb", extratags=[(274, 3, 1, 6, True)], metadata=None
    ),
    "cmyk.jpg": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "cmyk.tif": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "grey.png": lambda path: Image.fromarray(GREY).save(path),
    "bits.png": lambda path: Image.fromarray(GREY > 99).save(path),
}


@pytest.mark.parametrize("name", FILES)
def test_training_prediction_and_segmentation_see_the_same_pixels(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    path = tmp_path / "images" / name
    FILES[name](path)
    pixels = read_image(path)  # what `cellvit segment` gives an image to the network as
    height, width = pixels.shape[:2]
    assert (height, width) == ((36, 24) if "rotated" in name else (24, 36))
    np.savez(tmp_path / "labels" / path.stem, inst_map=np.zeros((height, width), np.uint16))
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(FolderDataset(tmp_path, split=None)[0]["image"], tensor)
    assert torch.equal(ImageDataset(tmp_path / "images")[0]["image"], tensor)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, width, height), pixels)
