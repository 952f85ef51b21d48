#!/bin/sh
# A slide made smaller with pyvips still states the resolution of the large one.
#
# One would guess: a TIFF of 0.25 µm per pixel that pyvips reduces to half its size, for a faster run or for a model of
# 0.5 µm per pixel, states 0.5.
# What happens: resize, shrink, reduce, subsample, affine and thumbnail_image all leave `xres` as it is, and tiffsave writes it.
# OpenSlide then gives openslide.mpp-x 0.25 for pixels of 0.5 µm. An image without any resolution is no better off: tiffsave
# writes 1 pixel per mm, which OpenSlide gives as an openslide.mpp-x of 1000.
# Versions: pyvips 3.2.0 with pyvips-binary 8.18.7 (libvips), openslide-python 1.4.7 with openslide-bin 4.0.1.2, numpy 2.3.5.
# Why it matters: a program that finds nuclei believes openslide.mpp-x. It does not enlarge the reduced slide to the resolution
# of its model, in whose pixels nuclei are then half as long as those it was trained on; areas in µm² come out a quarter of what
# they are, densities per mm² four times. With 1000 µm it enlarges the slide 4,000 times, or refuses it.
# What to do: image.resize(0.5).copy(xres=image.xres * 0.5, yres=image.yres * 0.5) before tiffsave, or state the resolution to the
# program that reads the file.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    pyvips==3.2.0 pyvips-binary==8.18.7 openslide-python==1.4.7 openslide-bin==4.0.1.2 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import openslide
import pyvips

print(*(f"{name} {version(name)}" for name in ("pyvips", "pyvips-binary", "openslide-python", "openslide-bin")), sep=", ")


def stated(image, **options):
    """Width and microns per pixel that OpenSlide gives for an image saved as a tiled TIFF."""
    image.tiffsave("saved.tif", tile=True, tile_width=256, tile_height=256, **options)
    with openslide.OpenSlide("saved.tif") as slide:
        return slide.dimensions[0], round(float(slide.properties["openslide.mpp-x"]), 4)


pixels = np.random.default_rng(0).integers(0, 255, (1024, 2048, 3), dtype=np.uint8)
full = pyvips.Image.new_from_array(pixels).copy(xres=4000, yres=4000)  # 4,000 pixels per mm: 0.25 µm
smaller = {
    "resize": full.resize(0.5),
    "shrink": full.shrink(2, 2),
    "reduce": full.reduce(2, 2),
    "subsample": full.subsample(2, 2),
    "affine": full.affine([0.5, 0, 0, 0.5]),
    "thumbnail_image": full.thumbnail_image(1024),
}
print("width and openslide.mpp-x of the full image:", stated(full))
found = {name: stated(image) for name, image in smaller.items()}
for name, (width, mpp) in found.items():
    print(f"after {name}: {width} px wide, stated {mpp} µm, true {0.25 * 2048 / width} µm")
mended = stated(smaller["resize"].copy(xres=full.xres * 0.5, yres=full.yres * 0.5))
print("after resize and copy(xres=..., yres=...):", mended)
nothing = stated(pyvips.Image.new_from_array(pixels))
print("of an array, with no resolution stated at all:", nothing)
assert set(found.values()) == {(1024, 0.25)}, "the resolution is no longer left as it was"
assert mended == (1024, 0.5)
assert nothing == (2048, 1000.0), "an image without a resolution no longer states 1 pixel per mm"
PY
echo "as described"
