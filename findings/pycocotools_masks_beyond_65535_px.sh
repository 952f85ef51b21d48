#!/usr/bin/env bash
# What one would guess: pycocotools.mask.frPyObjects turns a polygon into a mask of the image it is told the size of, or
# says that the image is too large.
# What happens: from 2^32 pixels (such as 65,536 x 65,536) a mask lies somewhere else: a nucleus of 10 x 10 px near the
# lower right corner of a 70,000 x 70,000 image has its box at (8,144, 22,304) instead of (69,500, 69,600). The area is
# right. At 66,000 x 66,000 a nucleus near the upper left corner has 5.5 million pixels. No error, no warning.
# Versions: pycocotools 2.0.11, numpy 2.4.6, Python 3.11.
# Why it matters: whole slides at x40 are that large, and COCO is a common way to pass outlines on. Overlaps computed from
# such masks (iou, COCOeval) compare nuclei with the wrong places. Way out: masks of tiles, or polygons.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from pycocotools import mask

print(", ".join(f"{name} {version(name)}" for name in ("pycocotools", "numpy")), "Python", sys.version.split()[0])


def square(x, y, side):
    """Box and area of a nucleus of 10 x 10 px at a place of an image."""
    ring = [float(value) for value in (x, y, x + 10, y, x + 10, y + 10, x, y + 10)]
    coded = mask.frPyObjects([ring], side, side)
    return mask.toBbox(coded)[0].tolist(), int(mask.area(coded)[0])


wrong = []
for side, x, y in ((65_000, 64_500, 64_600), (66_000, 1_000, 2_000), (70_000, 69_500, 69_600), (100_000, 99_500, 99_600)):
    box, area = square(x, y, side)
    print(f"{side} x {side}: drawn at {x}, {y}, 10 x 10; box {box}, area {area}")
    wrong.append((box, area) != ([x, y, 10, 10], 100))
assert wrong == [False, True, True, True], "changed: masks of large images lie where they were drawn"
print("as described: from 2^32 pixels masks lie elsewhere")
PYTHON
