"""All measurements together: of labelled pixels, of tiles as they are segmented, and of outlines on a slide."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, ImageError, SourceLostError
from cellvit.geometry.polygons import ring_bounds, select_rings
from cellvit.geometry.raster import draw_rings
from cellvit.io.images import Rgb8
from cellvit.measurement.base import MEASUREMENTS, Columns
from cellvit.measurement.pixels import LabelledPixels
from cellvit.measurement.stains import Stains, estimate_stains, reduced
from cellvit.measurement.texture import GRAIN_UM
from cellvit.slide.tiling import TileGrid
from cellvit.types import Nuclei, NucleiPrediction

MAX_SIDE = 960
"""Pixels that the box of an outline may be long to be measured; nuclei are some fifty."""

_BLOCK = 1024
_PATCHES, _PATCH = 32, 256
_GOLDEN = (5**0.5 - 1) / 2  # steps of it spread evenly, and hit no pattern of rows


Progress = Callable[[int, int], None]
"""Called with the number of nuclei that are done and of all."""


class Pixels(Protocol):
    """A picture that is read in parts: a :class:`cellvit.slide.view.SlideView`."""

    width: int
    height: int

    def read(self, x: int, y: int, width: int, height: int) -> Rgb8:
        """Return a part that lies inside."""


def measure_pixels(pixels: LabelledPixels) -> Columns:
    """Measure nuclei with everything in :data:`cellvit.measurement.base.MEASUREMENTS`.

    Args:
        pixels: The image and its nuclei.

    Returns:
        ``(N,)`` float32 by name. A nucleus without pixels has NaN everywhere.

    Raises:
        ConfigError: If two measurements give columns of one name.
    """
    found: Columns = {}
    for entry in MEASUREMENTS.entries():
        if entry.cls is None:
            continue
        columns = entry.cls()(pixels)
        if taken := sorted(found.keys() & columns.keys()):
            raise ConfigError(f"measurement {entry.name!r} gives {taken}, which another gives too; rename them")
        found |= columns
    return found


def measured_names(unit: str = "um") -> tuple[str, ...]:
    """Return the names of what :func:`measure_pixels` measures.

    Args:
        unit: ``"um"``, or ``"px"`` where the resolution is not known.
    """
    nothing = np.zeros((1, 1), np.int32), np.zeros((1, 1, 3), np.uint8)
    return tuple(measure_pixels(LabelledPixels(*nothing, 0, None if unit == "px" else (1.0, 1.0))))


@dataclass(frozen=True)
class TileMeasurement:
    """Measures the nuclei of tiles of an image while their pixels are in memory.

    Attributes:
        grid: The tiles.
        mpp: ``(x, y)`` microns per pixel of the tiles.
        stains: How the stains absorb.
    """

    grid: TileGrid
    mpp: tuple[float, float]
    stains: Stains

    def __call__(self, index: int, image: Rgb8, found: NucleiPrediction) -> Nuclei:
        """Return the nuclei of a tile with what was measured.

        A nucleus at an edge of the tile beyond which the image goes on has NaN everywhere: another tile holds it whole,
        or :func:`measure_missing` measures it. Of the ring of a whole nucleus what the tile holds counts.

        Args:
            index: Number of the tile.
            image: ``(h, w, 3)`` its pixels.
            found: Its nuclei.
        """
        nuclei = found.nuclei
        pixels = LabelledPixels(found.instance_map, image, len(nuclei), self.mpp, self.stains)
        tile = self.grid.tile(index)
        box = nuclei.bbox + np.array([tile.x, tile.y] * 2)
        cut = self.grid.cut(index, box, margin=np.ceil(pixels.pixels_of(GRAIN_UM)) + 1)
        columns = measure_pixels(pixels)
        for values in columns.values():
            values[cut] = np.nan
        return replace(nuclei, measurements=columns)


def measure_missing(
    view: Pixels,
    nuclei: Nuclei,
    *,
    mpp: tuple[float, float] | None,
    stains: Stains,
    progress: Progress | None = None,
) -> Nuclei:
    """Return nuclei of which those that were not measured are, from their outlines.

    Pixels whose centre lies inside an outline belong to its nucleus; where outlines overlap, to the later one. Not
    measured, NaN everywhere, are nuclei without an outline or outside of the view, with an outline of more than
    :data:`MAX_SIDE` pixels or without a pixel, and those where the pixels cannot be read.

    Args:
        view: The pixels.
        nuclei: In pixels of the view.
        mpp: ``(x, y)`` microns per pixel of the view; None where not known.
        stains: How the stains absorb.
        progress: Called with the number of nuclei that are done and of all that were missing.
    """
    names = measured_names("px" if mpp is None else "um")
    known = {name: np.array(nuclei.measurements[name]) for name in names if name in nuclei.measurements}
    columns = {name: known.get(name, np.full(len(nuclei), np.nan, np.float32)) for name in names}
    missing = np.flatnonzero(np.isnan(np.stack([*columns.values()])).all(axis=0))
    done = 0
    for rows, measured in _blocks(view, nuclei, missing, mpp, stains):
        for name, values in measured.items():
            columns[name][rows] = values
        done += len(rows)
        if progress is not None:
            progress(done, len(missing))
    return replace(nuclei, measurements={**nuclei.measurements, **columns})


def _blocks(
    view: Pixels, nuclei: Nuclei, rows: NDArray[np.intp], mpp: tuple[float, float] | None, stains: Stains
) -> Iterator[tuple[NDArray[np.intp], Columns]]:
    """Yield some of the rows at a time, those in one place, and what is measured of them."""
    bounds = ring_bounds(nuclei.contour_points, nuclei.contour_offsets)
    side = (bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0)
    usable = np.isfinite(bounds).all(axis=1) & (side <= MAX_SIDE)
    block = np.full((len(nuclei), 2), -9, np.int64)
    block[usable] = (bounds[usable, :2] + bounds[usable, 2:]) // (2 * _BLOCK)
    across = block[:, 0].max(initial=0) + 2
    key = block[:, 1] * across + block[:, 0]
    order = np.argsort(key, kind="stable")
    inside = (bounds[:, 2:] > 0).all(axis=1) & (bounds[:, 0] < view.width) & (bounds[:, 1] < view.height)
    wanted = rows[usable[rows] & inside[rows]]
    by_block = wanted[np.argsort(key[wanted], kind="stable")]
    for some in np.split(by_block, np.flatnonzero(np.diff(key[by_block])) + 1):
        if len(some):
            near = [(key[some[0]] + down * across + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
            ends = np.searchsorted(key[order], np.array([near, np.array(near) + 1]))
            around = np.sort(np.concatenate([order[a:b] for a, b in ends.T]))
            try:
                columns = _measured(view, nuclei, some, around, bounds, mpp, stains)
            except SourceLostError:
                raise
            except ImageError:  # one damaged place must not cost the rest
                continue
            yield some, columns


def _measured(
    view: Pixels,
    nuclei: Nuclei,
    rows: NDArray[np.intp],
    around: NDArray[np.intp],
    bounds: NDArray[np.float64],
    mpp: tuple[float, float] | None,
    stains: Stains,
) -> Columns:
    """Return what is measured of rows, among all the nuclei around."""
    spare = 16
    low = np.maximum(np.floor(bounds[rows, :2].min(axis=0)).astype(int) - spare, 0)
    high = np.minimum(np.ceil(bounds[rows, 2:].max(axis=0)).astype(int) + spare, [view.width, view.height])
    left, top, width, height = (int(value) for value in (*low, *(high - low)))
    around = around[((bounds[around, 2:] >= low) & (bounds[around, :2] <= high)).all(axis=1)]
    points, offsets = select_rings(nuclei.contour_points, nuclei.contour_offsets, around)
    labels = draw_rings(points - low, offsets, (height, width))
    image = view.read(left, top, width, height)
    columns = measure_pixels(LabelledPixels(labels, image, len(around), mpp, stains))
    place = np.searchsorted(around, rows)
    return {name: values[place] for name, values in columns.items()}


def stains_at(view: Pixels, places: NDArray[np.float64]) -> Stains:
    """Estimate how the stains of a slide absorb, from its pixels at some places; what cannot be read is left out.

    Args:
        view: The pixels.
        places: ``(K, 2)`` where tissue is, in pixels of the view; 32 of them are read, spread along the list.
    """
    spread = np.arange(min(_PATCHES, len(places))) * _GOLDEN % 1
    return estimate_stains(_patches(view, places[(spread * len(places)).astype(int)]))


def _patches(view: Pixels, places: NDArray[np.float64]) -> Iterator[Rgb8]:
    width, height = min(_PATCH, view.width), min(_PATCH, view.height)
    for x, y in places.tolist():
        left = min(max(0, round(x) - width // 2), view.width - width)
        top = min(max(0, round(y) - height // 2), view.height - height)
        try:
            yield reduced(view.read(left, top, width, height), 2)
        except SourceLostError:
            raise
        except ImageError:
            continue
