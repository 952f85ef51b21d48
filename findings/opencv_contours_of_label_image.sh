#!/usr/bin/env bash
# What one would guess: cv2.findContours takes an int32 label image with RETR_CCOMP, and gives one outer contour for each
# nucleus and its holes as children, as it does for a mask.
# What happens: there are further outer contours, without a parent, one pixel outside of every nucleus or group of nuclei
# that touch. Two squares apart give 4 outer contours in place of 2; two that touch give 3, the third around both. At the
# edge of the image such a contour may have coordinates off it, such as -1. The masks of the same squares have 2.
# Versions: opencv-python-headless 5.0.0.93 (4.10.0.84 and 4.12.0.88 do the same), numpy 2.4.6, Python 3.11.
# Why it matters: it looks like the fast way from a label image to outlines. Nuclei counted by contours are too many by a
# half or are twice as many, every second outline is a pixel too wide all round (119 px2 in place of 81), and looking up
# the label at its points gives background, the label at the other side of the image (-1), or an IndexError. Way out: take
# only contours whose points hold one label that is not 0, or contours of the mask of each nucleus.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import cv2
import numpy as np

names = ("opencv-python-headless", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names), "Python", sys.version.split()[0])


def outer(image):
    """Return the contours without a parent."""
    contours, tree = cv2.findContours(image, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0] for contour, row in zip(contours, tree[0]) if row[3] < 0]


def labels(*corners):
    """Return nuclei of 10 x 10 pixels, numbered from 1."""
    image = np.zeros((40, 40), np.int32)
    for number, (x, y) in enumerate(corners, start=1):
        image[y : y + 10, x : x + 10] = number
    return image


counts = {}
for name, corners in {"apart": ((5, 5), (22, 22)), "touching": ((5, 5), (15, 5)), "at the edge": ((0, 5), (22, 22))}.items():
    image = labels(*corners)
    found = outer(image)
    mask = [outer((image == number).astype(np.uint8)) for number in (1, 2)]
    wide = [contour for contour in found if cv2.contourArea(contour) > 81]
    counts[name] = len(found), len(wide)
    print(f"2 nuclei {name}: {sum(map(len, mask))} contours of their masks, {len(found)} outer contours of the label image")
    for contour in wide:
        box = [*contour.min(axis=0).tolist(), *contour.max(axis=0).tolist()]
        print(f"  one from {box[:2]} to {box[2:]}, area {cv2.contourArea(contour):.0f}")
    off = any((contour < 0).any() for contour in wide)
    if off != (name == "at the edge"):
        raise SystemExit("changed: other contours have points off the image")
if counts != {"apart": (4, 2), "touching": (3, 1), "at the edge": (4, 2)}:
    raise SystemExit(f"changed: outer contours, and those around nuclei: {counts}")
print("as described: contours around nuclei are among the outer contours")
PYTHON
