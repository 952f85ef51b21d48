"""What the pictures of whole slides share: checked chunks, and nuclei in the pixels of a picture."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError
from cellvit.export.stream import NucleiStream
from cellvit.export.tables import check_finite
from cellvit.types import Nuclei

Counts = NDArray[np.int32]
"""Nuclei per pixel, ``(h, w)``."""

Bounds = tuple[int, int, int, int]
"""A rectangle of a slide, ``(x, y, width, height)`` in full-resolution pixels."""


def nuclei_chunks(stream: NucleiStream) -> Iterator[Nuclei]:
    """Yield the chunks that hold nuclei, checked."""
    for chunk in stream:
        if len(chunk):
            check_finite(chunk)
            yield chunk


def scale_of(shape: tuple[int, ...], bounds: Bounds) -> tuple[float, float]:
    """Return raster pixels per slide pixel, ``(x, y)``."""
    if bounds[2] <= 0 or bounds[3] <= 0:
        raise ConfigError(f"bounds {bounds} have no area; give (x, y, width, height) of what the thumbnail shows")
    return shape[1] / bounds[2], shape[0] / bounds[3]


def both_mpp(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return microns per pixel along x and y."""
    across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    if not (np.isfinite((across, down)).all() and min(across, down) > 0):
        raise ConfigError(f"mpp={mpp} is no resolution; give microns per pixel of the full resolution")
    return across, down


def onto_picture(nuclei: Nuclei, origin: tuple[int, ...], scale: tuple[float, float]) -> Nuclei:
    """Return nuclei in the pixels of a picture; whole coordinates are the centres of pixels in both frames."""
    shift = [(0.5 - o) * s - 0.5 for o, s in zip(origin, scale, strict=True)]
    return nuclei.transform(scale=scale, shift=(shift[0], shift[1]))


def count_into(
    counts: dict[int, Counts], nuclei: Nuclei, bounds: Bounds, scale: tuple[float, float], shape: tuple[int, ...]
) -> None:
    """Add nuclei to the rasters of their types; those outside are left out."""
    height, width = shape[:2]
    pixel = np.floor((nuclei.centroid + 0.5 - bounds[:2]) * scale)
    inside = ((pixel >= 0) & (pixel < (width, height))).all(axis=1)
    col, row = pixel[inside].astype(np.int64).T
    kinds = nuclei.type[inside]
    for kind in np.unique(kinds).tolist():
        # in place: a raster may be much larger than a chunk
        raster = counts.setdefault(kind, np.zeros((height, width), np.int32))
        np.add.at(raster, (row[kinds == kind], col[kinds == kind]), 1)
