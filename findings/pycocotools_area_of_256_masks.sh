#!/usr/bin/env bash
# What one would guess: pycocotools.mask.area gives the areas of as many masks as it is given, as toBbox, merge and iou do.
# What happens: with 256 masks or more it raises "OverflowError: Python integer 256 out of bounds for uint8". With 255 it
# works, and the other functions work with any number.
# Versions: pycocotools 2.0.11, numpy 2.4.6, Python 3.11.
# Why it matters: a picture of tissue has hundreds of nuclei. Code that was tried on images of everyday objects, of which
# a picture holds few, stops at the first crowded tile. Way out: call area for at most 255 masks at a time.
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


def squares(number):
    """Nuclei of 10 x 10 pixels in rows."""
    corners = [(20 * (i % 40), 20 * (i // 40)) for i in range(number)]
    rings = [[x, y, x + 10, y, x + 10, y + 10, x, y + 10] for x, y in corners]
    return mask.frPyObjects([[float(value) for value in ring] for ring in rings], 1000, 1000)


print("255 masks: area in all", mask.area(squares(255)).sum())
many = squares(256)
print("256 masks: boxes", len(mask.toBbox(many)), "merged area", int(mask.area(mask.merge(many))))
try:
    found = mask.area(many)
except OverflowError as error:
    print("256 masks: area raises OverflowError:", error)
else:
    raise SystemExit(f"changed: the areas of 256 masks are given, in all {found.sum()}")
assert mask.area(squares(255)).sum() == 25_500
print("as described: areas of 255 masks at most")
PYTHON
