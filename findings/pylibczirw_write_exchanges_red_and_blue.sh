#!/usr/bin/env bash
# What one would guess: an RGB image written with pylibCZIrw is a CZI of that image, since reading it back gives the same
# numbers.
# What happens: the samples are stored as they are given, under the pixel type Bgr24, which the format defines as blue
# first. Reading gives them back as they are stored, so that a round trip hides it. A reader that keeps to the format
# returns red and blue exchanged; and pylibCZIrw returns a scanner's files blue first.
# Versions: pylibCZIrw 6.1.0, czifile 2019.7.2, tifffile 2023.2.28, numpy 2.4.6, Python 3.11.
# Why it matters: a slide converted to CZI this way is pink where it was purple for QuPath, ZEN and other readers, and
# a scanner's slide read this way looks wrong to a network without an error: haematoxylin and eosin change their colours,
# nuclei are missed. A test by round trip passes. Way out: turn the last axis around when writing and when reading.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  pylibCZIrw==6.1.0 czifile==2019.7.2 tifffile==2023.2.28 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import czifile
import numpy as np
from pylibCZIrw import czi

names = ("pylibCZIrw", "czifile", "tifffile", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names), "Python", sys.version.split()[0])

red, green, blue = color = (150, 60, 170)  # a nucleus in haematoxylin and eosin
image = np.empty((256, 256, 3), np.uint8)
image[:] = color
with czi.create_czi("slide.czi") as document:
    document.write(image)
with czi.open_czi("slide.czi") as document:
    back, kind = document.read()[5, 5].tolist(), document.pixel_types[0]
other = czifile.imread("slide.czi").reshape(-1, 3)[5].tolist()
stored = Path("slide.czi").read_bytes()
given_order, format_order = (stored.count(bytes(pixel) * 64) for pixel in (color, color[::-1]))

print(f"written as RGB      {list(color)}, stored as {kind}")
print(f"pylibCZIrw reads    {back}")
print(f"czifile reads       {other}")
print(f"bytes of the file: {given_order} runs of red, green, blue; {format_order} of blue, green, red")
if not (kind == "Bgr24" and back == list(color) and other == [blue, green, red] and given_order and not format_order):
    raise SystemExit("changed: red and blue are not exchanged, or by another one")
print("as described: red and blue are exchanged for a reader that keeps to the format, and a round trip hides it")
PYTHON
