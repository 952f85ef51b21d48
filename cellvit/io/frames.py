"""The frame in which a file counts coordinates: files of ours state it, older ones count from pixel centres.

Outlines of either frame, and the borders that OpenCV finds, are turned into each other.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.geometry.outlines import (
    anticlockwise,
    border_rings,
    edge_rings,
    flags_per_ring,
    following_points,
    turning_points,
    whole_borders,
)
from cellvit.geometry.polygons import (
    Floats,
    Offsets,
    open_rings,
    polygon_area,
    ring_bounds,
    ring_lengths,
    ring_offsets,
    select_rings,
)
from cellvit.types import PIXEL_CORNERS, Nuclei

Ints = NDArray[np.int64]

_SHIFT = 4  # points between pixels are drawn in steps of 1/16
_ROUNDED = 0.02  # pixels; coordinates in files are rounded to 0.01
_LARGEST = 4096  # pixels; a wider outline that follows no pixels is not drawn

PIXEL_CENTRES = "pixel-centres"
"""Frame of older files and of the released layout: the centre of pixel ``i`` is at ``i``, outlines run through the
centres of border pixels, boxes along edges."""


def stated_frame(facts: Mapping[str, Any], source: str) -> str:
    """Return the frame that a file of this package states.

    Args:
        facts: What the file says of itself.
        source: The file; named in errors.

    Raises:
        DataError: If it is none that is known.

    Example:
        >>> stated_frame({"version": 2, "frame": "pixel-corners"}, "new.parquet")
        'pixel-corners'
        >>> stated_frame({"version": 1}, "old.parquet")
        'pixel-centres'
    """
    frame = facts.get("frame", PIXEL_CENTRES)
    if frame not in (PIXEL_CORNERS, PIXEL_CENTRES):
        raise DataError(f"{source} counts coordinates from {frame!r}, which is unknown; update cellvit")
    return str(frame)


def from_frame(nuclei: Nuclei, frame: str) -> Nuclei:
    """Return nuclei whose coordinates are in some frame in that of this package; boxes are the same in both."""
    if frame == PIXEL_CORNERS:
        return nuclei
    points, offsets = from_pixel_centres(nuclei.contour_points, nuclei.contour_offsets, nuclei.bbox)
    return replace(nuclei, centroid=nuclei.centroid + 0.5, contour_points=points, contour_offsets=offsets)


def from_pixel_centres(points: Floats, offsets: Offsets, bbox: Floats) -> tuple[Floats, Offsets]:
    """Return outlines that ran through the centres of border pixels as outlines along the edges of pixels.

    That is how this package wrote them at first and how the released files still hold them: the centre of pixel ``i``
    is at ``i``. Outlines of nuclei that were found at another resolution follow larger or smaller pixels. One that
    follows no pixels at all is drawn, with the pixels that it runs through. One that is as large as its box was written
    in place of a line or a pixel, and is along edges already.

    Args:
        points: ``(P, 2)``, ``(x, y)``, open or closed outlines.
        offsets: ``(N + 1,)``.
        bbox: ``(N, 4)``, edges of the boxes of the same nuclei, which tell the size of the pixels; NaN: not known.

    Returns:
        Points, where pixel ``i`` covers ``[i, i + 1)``, and offsets ``(N + 1,)``; empty outlines stay empty.

    Example:
        >>> from_pixel_centres(np.array([[2.0, 1], [2, 2], [3, 2], [3, 1]]), np.array([0, 4]), np.full((1, 4), np.nan))
        (array([[2., 1.],
               [2., 3.],
               [4., 3.],
               [4., 1.]]), array([0, 4]))
    """
    points, offsets = open_rings(points, offsets)
    size = _pixel_size(points, offsets, bbox)
    start, index, straight = _on_lattice(points, offsets, size)
    boxes = np.flatnonzero((ring_bounds(points, offsets) == bbox).all(axis=1))
    straight[boxes] = False
    rows = np.flatnonzero(straight)
    chain, chain_offsets = whole_borders(*select_rings(index, offsets, rows))
    corners, corner_offsets = edge_rings(chain, chain_offsets)
    inside = polygon_area(chain.astype(float), chain_offsets) + ring_lengths(chain_offsets) / 2 + 1
    inside[ring_lengths(chain_offsets) == 1] = 1
    good = polygon_area(corners.astype(float), corner_offsets) == inside  # by Pick's theorem, else it is no border
    owner = np.repeat(rows, ring_lengths(corner_offsets))
    edges = start[owner] + 0.5 + (corners - 0.5) * size
    found, (box_points, box_offsets) = select_rings(edges, corner_offsets, good), select_rings(points, offsets, boxes)
    lengths = np.concatenate([ring_lengths(found[1]), ring_lengths(box_offsets)])
    done = np.concatenate([rows[good], boxes]), np.concatenate([found[0], box_points]), ring_offsets(lengths)
    return _with_others(points, offsets, done, _drawn_edges)


def to_pixel_centres(
    points: Floats, offsets: Offsets, *, pixel: tuple[float, float] = (1.0, 1.0)
) -> tuple[Floats, Offsets]:
    """Return outlines along the edges of pixels as outlines through the centres of the border pixels.

    Args:
        points: ``(P, 2)``, ``(x, y)``, open outlines.
        offsets: ``(N + 1,)``.
        pixel: ``(x, y)`` size of the pixels that the outlines follow. Of an outline that does not follow such pixels
            the border is that of the pixels of size 1 whose centres lie inside.

    Returns:
        Points, where the centre of pixel ``i`` is at ``i``, and offsets ``(N + 1,)``: for pixels of size 1 exactly what
        ``cv2.findContours`` returns for the pixels inside.

    Example:
        >>> to_pixel_centres(np.array([[2.0, 1], [2, 3], [4, 3], [4, 1]]), np.array([0, 4]))[0].tolist()
        [[2.0, 1.0], [2.0, 2.0], [3.0, 2.0], [3.0, 1.0]]
    """
    size = np.asarray(pixel, np.float64)
    start, index, straight = _on_lattice(points, offsets, size, sideways=False)
    rows = np.flatnonzero(straight & (ring_lengths(offsets) > 3))
    border, border_offsets = border_rings(*anticlockwise(*select_rings(index, offsets, rows)))
    owner = np.repeat(rows, ring_lengths(border_offsets))
    centres = start[owner] + (border + 0.5) * size - 0.5
    if pixel != (1.0, 1.0):
        centres = centres.round(2)
    return _with_others(points, offsets, (rows, centres, border_offsets), _drawn_border)


def _pixel_size(points: Floats, offsets: Offsets, bbox: Floats) -> Floats:
    """Return the size ``(x, y)`` of the pixels through whose centres outlines run; 1 where the boxes do not tell.

    An outline lies half a pixel inside its box on every side, save where the box holds further pieces, too. Whole
    coordinates are those of pixels of size 1, as the centres of others lie between them.
    """
    if not np.mod(points, 1).any():
        return np.ones(2)
    around = ring_bounds(points, offsets) + 0.5
    before, behind = around[:, :2] - bbox[:, :2], bbox[:, 2:] - around[:, 2:]
    rough = _typical(np.where(np.abs(before - behind) <= 2 * _ROUNDED, before + behind, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        side = bbox[:, 2:] - bbox[:, :2]
        size = _typical(side / np.rint(side / rough))
    return np.where((size > 0.05) & (size < 20), size, 1.0)


def _typical(values: Floats) -> Floats:
    """Return the median of every column, of the finite values; NaN if there are none."""
    return np.array(
        [np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan for column in values.T]
    )


def _on_lattice(
    points: Floats, offsets: Offsets, size: Floats, *, sideways: bool = True
) -> tuple[Floats, Ints, NDArray[np.bool_]]:
    """Return the first point of every outline, points in steps from it, and which outlines are of whole steps.

    Args:
        points: Of open outlines.
        offsets: Of the outlines.
        size: ``(x, y)`` of a step.
        sideways: Whether outlines may also go from corner to corner of pixels.
    """
    lengths = ring_lengths(offsets)
    start = np.full((len(lengths), 2), np.nan)
    start[lengths > 0] = points[offsets[:-1][lengths > 0]]
    away = points - np.repeat(start, lengths, axis=0)
    exact = np.isfinite(away).all(axis=1)
    index = np.rint(np.where(exact[:, None], away, 0) / size).astype(np.int64)
    near = (np.abs(away - index * size) <= _ROUNDED).all(axis=1)
    step = np.abs(index[following_points(offsets)] - index)
    straight = (step == 0).any(axis=1)
    if sideways:
        straight |= step[:, 0] == step[:, 1]
    return start, index, (flags_per_ring(exact & near & straight, offsets) == lengths) & (lengths > 0)


def _with_others(
    points: Floats,
    offsets: Offsets,
    done: tuple[Ints, Floats, Offsets],
    convert: Callable[[Floats], Floats],
) -> tuple[Floats, Offsets]:
    """Return all outlines in their order: those that are done, by their rows, and the others one by one."""
    rows, found, found_offsets = done
    others = np.setdiff1d(np.flatnonzero(ring_lengths(offsets) > 0), rows)
    if len(rows) == len(offsets) - 1 and (np.diff(rows) > 0).all():
        return found, found_offsets
    single = [convert(points[offsets[row] : offsets[row + 1]]) for row in others.tolist()]
    lengths = np.zeros(len(offsets) - 1, np.int64)
    lengths[rows], lengths[others] = ring_lengths(found_offsets), [len(ring) for ring in single]
    source = np.concatenate([found, *single, np.zeros((0, 2))])
    place = np.zeros(len(lengths), np.int64)
    order = np.concatenate([rows, others])
    place[order] = ring_offsets(lengths[order])[:-1]
    all_offsets = ring_offsets(lengths)
    return source[np.arange(all_offsets[-1]) + np.repeat(place - all_offsets[:-1], lengths)], all_offsets


def _drawn_edges(ring: Floats) -> Floats:
    """Return the edges of the pixels that an outline through centres encloses or runs through."""
    if not _can_be_drawn(ring):
        return ring + 0.5
    import cv2

    low = np.floor(ring.min(axis=0)) - 1
    mask = np.zeros(np.ceil(np.ptp(ring, axis=0)).astype(int)[::-1] + 4, np.uint8)
    cv2.fillPoly(mask, [np.rint((ring - low) * 2**_SHIFT).astype(np.int32)], 1, cv2.LINE_8, _SHIFT)
    border = find_border(mask)
    return np.asarray(edge_rings(border, np.array([0, len(border)]))[0] + low)


def _drawn_border(ring: Floats) -> Floats:
    """Return the turning points of the border of the pixels whose centres an outline encloses."""
    if not _can_be_drawn(ring):
        return ring - 0.5
    from skimage.draw import polygon  # here, for it is rarely needed and takes long to import

    low = np.floor(ring.min(axis=0))
    mask = np.zeros(np.ceil(ring.max(axis=0) - low).astype(int)[::-1] + 1, np.uint8)
    x, y = (ring - low - 0.5).T
    mask[polygon(y, x, mask.shape)] = 1  # type: ignore[no-untyped-call]
    if not mask.any():
        column, row = np.floor(ring.mean(axis=0) - low).astype(int)
        mask[row, column] = 1
    border = find_border(mask).astype(np.int64)
    return np.asarray(turning_points(border, np.array([0, len(border)]))[0] + low)


def _can_be_drawn(ring: Floats) -> bool:
    return bool(np.isfinite(ring).all() and (np.ptp(ring, axis=0) < _LARGEST).all())


def find_border(mask: NDArray[np.uint8], offset: tuple[int, int] = (0, 0)) -> NDArray[np.int32]:
    """Return the border of the largest piece of a mask.

    Args:
        mask: ``(H, W)`` uint8, not 0 where the nucleus is; at least one pixel.
        offset: ``(x, y)`` to add.

    Returns:
        ``(K, 2)`` pixels ``(x, y)``, each beside the next; anticlockwise as one sees them, from the first in reading
        order. Pieces are 8-connected; of equals the first in reading order counts.
    """
    import cv2  # here, for files are read and written without it

    # Two-level retrieval lists outer borders (no parent) and holes, so a second piece cannot hide inside a hole.
    found, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=offset)
    outer = [0] if len(found) == 1 else np.flatnonzero(hierarchy[0, :, 3] < 0)
    if len(outer) == 1:
        return np.asarray(found[outer[0]], np.int32).reshape(-1, 2)
    count, pieces = cv2.connectedComponents(mask, connectivity=8)
    firsts = np.unique(pieces, return_index=True)[1]
    areas = np.bincount(pieces.reshape(-1), minlength=count)
    largest = min(range(1, count), key=lambda piece: (-areas[piece], firsts[piece]))
    return find_border((pieces == largest).view(np.uint8), offset)
