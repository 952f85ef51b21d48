#!/usr/bin/env bash
# What one would guess: tifffile.imwrite(..., photometric="rgb", compression="jpeg") writes a file that says RGB, also where
# the tiles are given as JPEG that is encoded already, as one does to put the tiles of a slide into another file unchanged.
# What happens: the tag says YCbCr with chroma of half the size, whatever the tiles are. Tiles of RGB JPEG, which several
# scanners write, are then turned into RGB once more by readers that believe the tag. tifffile itself reads the right
# colours, since it looks into the JPEG.
# Versions: tifffile 2026.3.3, imagecodecs 2026.3.6, openslide-python 1.4.7, openslide-bin 4.0.1.2, numpy 2.4.6, Python 3.11.
# Why it matters: the slide looks right where it was made, and tens of grey levels off where it is segmented: pink tissue
# is orange, and a network finds other nuclei, without an error. Way out: write the tag anew after the file is made
# (262: 2 for RGB), or encode the tiles as YCbCr.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check tifffile==2026.3.3 imagecodecs==2026.3.6 \
  openslide-python==1.4.7 openslide-bin==4.0.1.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import imagecodecs
import numpy as np
import openslide
import tifffile

names = ("tifffile", "imagecodecs", "openslide-python", "openslide-bin", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names), "Python", sys.version.split()[0])

color = np.array((200, 120, 180))  # eosin
tile = imagecodecs.jpeg8_encode(
    np.broadcast_to(color.astype(np.uint8), (256, 256, 3)).copy(), level=95, colorspace="RGB", outcolorspace="RGB"
)
layout = {"shape": (512, 512, 3), "dtype": np.uint8, "tile": (256, 256), "photometric": "rgb", "compression": "jpeg"}
tifffile.imwrite("slide.tif", (tile for _ in range(4)), **layout)

with tifffile.TiffFile("slide.tif") as file:
    page = file.pages[0]
    said, own = page.photometric.name, page.asarray()[100, 100].astype(int)
with openslide.OpenSlide("slide.tif") as slide:
    seen = np.array(slide.read_region((100, 100), 0, (1, 1)).getpixel((0, 0))[:3])
print(f"asked for RGB, tiles are RGB JPEG of {color.tolist()}; the file says {said}")
print(f"tifffile reads  {own.tolist()}")
print(f"OpenSlide reads {seen.tolist()}, {np.abs(seen - color).max()} grey levels off")
if not (said == "YCBCR" and np.abs(own - color).max() <= 2 and np.abs(seen - color).max() > 30):
    raise SystemExit("changed: the file says what its tiles are, or the readers agree")
print("as described: the tag says YCbCr for tiles of RGB, and a reader that believes it shows other colours")
PYTHON
