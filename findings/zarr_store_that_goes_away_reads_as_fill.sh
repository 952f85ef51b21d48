#!/usr/bin/env bash
# What one would guess: a store that goes away while it is read (a share that is unmounted, a folder that is moved, a copy that
# is broken off) ends with an error, as a TIFF file does that is cut short.
# What happens: a chunk that cannot be found is the fill value, whether it was never written or has gone. An open array reads
# on without a word, and the rest of the slide is glass (fill value 255) or black (0). Formats 2 and 3, and the same for one
# chunk that a copy left out. `nchunks_initialized` counts what is there, but also where empty chunks were left out on purpose.
# Versions: zarr 3.1.6, numpy 2.4.6, Python 3.11. Its configuration has no switch for it.
# Why it matters: nuclei are counted in half of the tissue, and the table looks as that of a slide with much glass.
# Way out: ask for the metadata again after a region that is nothing but fill (`store.exists` of zarr.json or .zarray), and end if
# they are gone; state how many chunks are stored before starting.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check zarr==3.1.6 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zarr

print(", ".join(f"{name} {version(name)}" for name in ("zarr", "numpy")), "Python", sys.version.split()[0])

SIDE, CHUNK, STEP, RADIUS = 1024, 256, 64, 10
y, x = np.mgrid[:SIDE, :SIDE] % STEP - STEP // 2
SLIDE = np.where(y**2 + x**2 < RADIUS**2, 90, 200).astype(np.uint8)  # 256 dark nuclei on tissue of grey 200
AREA = (y[:STEP, :STEP] ** 2 + x[:STEP, :STEP] ** 2 < RADIUS**2).sum()


def nuclei(pixels):
    return round((pixels < 120).sum() / AREA)


for zarr_format in (2, 3):
    made = zarr.create_array(
        "slide.zarr", shape=SLIDE.shape, chunks=(CHUNK, CHUNK), dtype="u1", fill_value=255, zarr_format=zarr_format
    )
    made[:] = SLIDE
    slide = zarr.open_array("slide.zarr", mode="r")
    upper = nuclei(slide[: SIDE // 2])
    shutil.rmtree("slide.zarr")
    rest = slide[SIDE // 2 :]  # no error
    print(
        f"format {zarr_format}: {upper} nuclei in the upper half; the store goes away; {nuclei(rest)} in the lower half, "
        f"whose pixels are all {np.unique(rest).tolist()}; chunks there: {slide.nchunks_initialized} of {slide.nchunks}"
    )
    if upper != 128 or nuclei(rest) != 0 or np.unique(rest).tolist() != [255]:
        raise SystemExit("changed: a store that has gone is no longer read as its fill value")

made = zarr.create_array("copy.zarr", shape=SLIDE.shape, chunks=(CHUNK, CHUNK), dtype="u1", fill_value=255)
made[:] = SLIDE
Path("copy.zarr/c/2/1").unlink()  # a copy without one chunk
found = nuclei(zarr.open_array("copy.zarr", mode="r")[:])
print(f"a copy without one of its 16 chunks: {found} of 256 nuclei, no error")
if found != 240:
    raise SystemExit("changed: a chunk that is missing is no longer read as the fill value")
print("as described: what is not there is the fill value")
PYTHON
