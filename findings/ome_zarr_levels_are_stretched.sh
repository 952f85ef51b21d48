#!/usr/bin/env bash
# What one would guess: level k of a pyramid that ome-zarr writes is the image at one 2^k-th of its size, with a rest cut off
# or filled up, as scanners and most tools make pyramids; a pixel of level 3 is 8 pixels of level 0.
# What happens: the sizes are halved and rounded down, and the whole image is resized to that. Level 3 of 447 pixels has 55,
# and each of them is 8.127 pixels wide. The scale in the file says so; sizes and level numbers do not.
# Versions: ome-zarr 0.15.0, zarr 3.1.6, numpy 2.4.6, Python 3.11.
# Why it matters: nuclei or tissue found on a level and placed by a power of two lie off by more the farther right and down
# they are: 6 pixels of level 0 in a picture of 447, where a nucleus is 20 wide; in a slide of 40,063 pixels up to 63 at level 6.
# Way out: place them by the scale of each level, which the format requires; never by its number.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ome-zarr==0.15.0 zarr==3.1.6 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import zarr
from ome_zarr.writer import write_image

names = ("ome-zarr", "zarr", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names), "Python", sys.version.split()[0])

side, place = 447, 424
image = np.zeros((1, side, side), np.uint8)
image[0, place - 8 : place + 8, place - 8 : place + 8] = 255  # a nucleus, its centre at 424
group = zarr.open_group("slide.zarr", mode="w")
write_image(image, group, axes="cyx")
facts = dict(group.attrs)
(multiscale,) = facts.get("ome", facts)["multiscales"]

found = {}
for number, level in enumerate(multiscale["datasets"]):
    pixels = np.asarray(group[level["path"]])[0].astype(float)
    scale = level["coordinateTransformations"][0]["scale"][-1]
    centre = (pixels.sum(axis=0) * (np.arange(len(pixels)) + 0.5)).sum() / pixels.sum()  # from the edge of the picture
    by_number, by_scale = centre * 2**number - place, centre * scale - place
    found[number] = by_number, by_scale
    print(f"level {number}: {len(pixels):>3} px, scale {scale:.3f}; off by {by_number:+.1f} px by its number, {by_scale:+.1f} by its scale")
if not (abs(found[0][0]) < 0.1 and -8 < found[3][0] < -5 and abs(found[3][1]) < 1):
    raise SystemExit("changed: a level lies where its number says, or not where its scale says")
print("as described: a pixel of level 3 is 8.127 pixels wide, and the nucleus lies more than 5 px off by the level's number")
PYTHON
