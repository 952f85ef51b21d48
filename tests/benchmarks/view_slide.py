"""A drawn slide with its results, for the benchmarks of the viewer: 40,000 x 40,000 px and a million nuclei by default.

    python tests/benchmarks/view_slide.py FOLDER [--side 40000] [--nuclei 1000000]

The slide is a pyramidal TIFF of JPEG tiles that repeats a block of drawn tissue; each different tile is stored once, so
it takes a few megabytes. The nuclei of the table lie where they are drawn. The table has outlines of some 30 points and
measurements, written with the writer of the package in the order in which ``cellvit segment`` finds nuclei.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cellvit.classes import PANNUKE
from cellvit.io.parquet import write_parquet_stream
from cellvit.types import Nuclei

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn_tiff import write_tiled_tiff

BLOCK = 2048
MPP = 0.25
_CELL = 2048 / 52  # one nucleus each
_POINTS = 30
_TILE = 1024  # of the model: nuclei come tile by tile
_SHARES = (0.35, 0.25, 0.2, 0.02, 0.18)
_STAINS = ((92, 62, 140), (58, 40, 110), (120, 80, 160), (70, 30, 70), (104, 76, 150))  # RGB by type
MEASURED = (
    *("area_um2", "perimeter_um", "circularity", "solidity", "eccentricity", "feret_max_um", "feret_min_um"),
    *("hematoxylin_mean", "hematoxylin_sd", "eosin_mean", "glcm_contrast", "glcm_homogeneity", "nearest_um"),
    *("neighbors_25um", "neighbors_50um", "delaunay_neighbors"),
)


def write_results(folder, *, side=40_000, nuclei=1_000_000, block=BLOCK, seed=0):
    """Write ``slide.tif`` and ``results/`` into a folder, and return the path of the results.

    Args:
        folder: Is made if it is not there.
        side: Pixels of the slide; at least 512.
        nuclei: How many; of more than fit, as many as fit.
        block: Side in pixels of the tissue that repeats, a power of two from 512 on.
        seed: Of the drawing.
    """
    folder, out = Path(folder), Path(folder) / "results"
    out.mkdir(parents=True, exist_ok=True)
    drawn = _block(block, np.random.default_rng(seed))
    slide = folder / "slide.tif"
    picture = _drawn(drawn, block, np.random.default_rng(seed))
    write_tiled_tiff(slide, list(_levels(picture, side)), mpp=MPP, jpeg=80)
    place, kind, ring = _places(drawn, block, side, nuclei, np.random.default_rng(seed))
    facts = {"image": slide.name, "width": side, "height": side, "base_mpp": MPP, "origin": "slide"}
    chunks = _chunks(place, kind, ring, drawn, np.random.default_rng(seed))
    write_parquet_stream(
        chunks, out / "nuclei.parquet", classes=PANNUKE, measurements=MEASURED, metadata=facts, geometry=False
    )
    cv2.imwrite(str(out / "tissue.png"), np.full((max(1, side // 32), max(1, side // 32)), 255, np.uint8))
    counts = np.bincount(kind, minlength=len(PANNUKE)).tolist()
    (out / "summary.json").write_text(json.dumps(_summary(slide, side, counts)), encoding="utf-8")
    return out


def _block(side, rng):
    """Return the nuclei of a block: places, types and outlines ``(N, P, 2)`` around them."""
    count = round(side / _CELL)
    cell = side / count
    corner = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2) * cell
    place = corner + cell / 2 + rng.uniform(-6, 6, corner.shape)
    kind = rng.choice(np.arange(1, 6), len(place), p=_SHARES).astype(np.int32)
    axes = rng.uniform(6, 12, (len(place), 2))
    turn, angle = rng.uniform(0, np.pi, len(place)), np.linspace(0, 2 * np.pi, _POINTS, endpoint=False)
    u, v = axes[:, :1] * np.cos(angle), axes[:, 1:] * np.sin(angle)
    wobble = 1 + 0.08 * np.sin(3 * angle + rng.uniform(0, 6, (len(place), 1)))
    x = (u * np.cos(turn)[:, None] - v * np.sin(turn)[:, None]) * wobble
    y = (u * np.sin(turn)[:, None] + v * np.cos(turn)[:, None]) * wobble
    return place, kind, np.stack([x, y], axis=-1).round(2)


def _drawn(block, side, rng):
    """Return the picture of a block, which repeats without a seam but for nuclei at its edges."""
    place, kind, ring = block
    coarse = np.tile(rng.normal(0, 1, (side // 32, side // 32)).astype(np.float32), (3, 3))
    smooth = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 2), None, fx=32, fy=32)[side : 2 * side, side : 2 * side]
    shade = (smooth / smooth.std())[..., None]
    picture = np.clip(np.array([226, 168, 200]) + shade * np.array([10, 22, 12]), 0, 255).astype(np.uint8)
    for (x, y), type_, outline in zip(place, kind, ring, strict=True):
        points = np.rint((outline + np.array([x, y])) * 16).astype(np.int32)
        cv2.fillPoly(picture, [points], _STAINS[type_ - 1], lineType=cv2.LINE_AA, shift=4)
    grain = rng.normal(0, 5, (side, side, 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _levels(picture, side):
    yield picture, 512, side, side
    for factor in (4, 16, 64):
        if side // factor < 128:
            break
        small = cv2.resize(picture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        period = np.tile(small, (max(1, 512 // len(small)),) * 2 + (1,))
        yield period, 512, -(-side // factor), -(-side // factor)


def _places(drawn, block, side, wanted, rng):
    """Return place, type and row in the block of all nuclei of the slide, tile by tile of the model."""
    count = -(-side // block)
    shift = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 1, 2) * block
    place = (drawn[0] + shift).reshape(-1, 2)
    ring = np.tile(np.arange(len(drawn[0])), count * count)
    whole = np.flatnonzero(((place > 16) & (place < side - 16)).all(axis=1))
    whole = np.sort(rng.permutation(whole)[:wanted])
    tile = place[whole] // _TILE
    rows = whole[np.lexsort((whole, tile[:, 0], tile[:, 1]))]
    return place[rows], drawn[1][ring[rows]], ring[rows]


def _chunks(place, kind, ring, drawn, rng):
    for start in range(0, len(place), 50_000):
        rows = slice(start, start + 50_000)
        where, outline = place[rows], drawn[2][ring[rows]] + place[rows][:, None]
        number = len(where)
        values = rng.gamma(4, 10, (len(MEASURED), number)).astype(np.float32)
        yield replace(
            Nuclei.empty(classes=PANNUKE, measurements=MEASURED),
            centroid=where,
            bbox=np.concatenate([outline.min(axis=1), outline.max(axis=1)], axis=1),
            type=kind[rows],
            type_prob=rng.beta(6, 1.5, number).astype(np.float32),
            label=np.arange(start + 1, start + number + 1, dtype=np.int32),
            contour_offsets=np.arange(number + 1, dtype=np.int64) * _POINTS,
            contour_points=outline.reshape(-1, 2).round(2),
            measurements=dict(zip(MEASURED, values, strict=True)),
        )


def _summary(slide, side, counts):
    names = list(PANNUKE.names)
    return {
        "schema": 1,
        "slide": {
            "path": str(slide.resolve()),
            "name": slide.name,
            "size_bytes": slide.stat().st_size,
            "width": side,
            "height": side,
            "bounds": [0, 0, side, side],
            "levels": [[side, side]],
        },
        "resolution": {"mpp": [MPP, MPP], "source": "metadata"},
        "model": {"name": "drawn", "mpp": MPP, "classes": names, "colors": [list(c) for c in PANNUKE.colors]},
        "settings": {"origin": "slide", "roi": None, "scene": None},
        "tissue": {"area_mm2": round((side * MPP / 1000) ** 2, 3), "source": "found"},
        "nuclei": {"total": sum(counts), "by_type": dict(zip(names[1:], counts[1:], strict=True))},
        "files": {"parquet": "nuclei.parquet", "tissue": "tissue.png"},
        "warnings": [],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    options = parser.parse_args()
    print(write_results(options.folder, side=options.side, nuclei=options.nuclei))


if __name__ == "__main__":
    main()
