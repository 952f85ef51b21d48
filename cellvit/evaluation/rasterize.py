"""Outlines and label images as instance maps on one pixel grid, and the nuclei measured in them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import skimage.draw
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.geometry.polygons import FurtherRings
from cellvit.io.detections import LoadedNuclei, Types
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import UNKNOWN_TYPE, IntMap, Nuclei, NucleiPrediction

_SHIFT = 4  # outlines are drawn in steps of 1/16 pixel
_REACH = 1e6  # pixels; OpenCV draws with 32-bit integers
_MAX_PIXELS = 2**28


def drawn_maps(pred: LoadedNuclei, target: LoadedNuclei, *, corners: bool = False) -> tuple[IntMap, IntMap]:
    """Return the predicted and the true instance map of one image, on one pixel grid.

    Outlines are drawn onto the grid of the map on the other side. Where both sides are outlines the grid is the
    smallest that holds them all.

    Args:
        pred: What the tool says.
        target: What is true.
        corners: Of files that do not say it, whether predicted outlines count pixels from corners; else they count
            from centres, as true outlines of such files do. See :func:`draw_outlines`.

    Raises:
        DataError: If the maps differ in shape, or outlines lie outside the grid or need one that is too large.
    """
    if pred.instance_map is not None and target.instance_map is not None:
        if pred.instance_map.shape != target.instance_map.shape:
            message = f"'{pred.path}' is {pred.instance_map.shape} and '{target.path}' {target.instance_map.shape}; "
            raise DataError(message + "both must show the same pixels: resize or crop one of them")
        return _int32(pred.instance_map), _int32(target.instance_map)
    grid = pred.instance_map if pred.instance_map is not None else target.instance_map
    if grid is not None:
        return _drawn(pred, grid.shape, corners=corners), _drawn(target, grid.shape)
    shape, origin = _common_grid(pred, target)
    found, true = (_moved(side, (-origin[0], -origin[1])) for side in (pred, target))
    return _drawn(found, shape, corners=corners), _drawn(true, shape)


def draw_outlines(
    nuclei: Nuclei, shape: tuple[int, ...], *, corners: bool = True, further: FurtherRings | None = None
) -> IntMap:
    """Return outlines as an instance map; where nuclei overlap, the later one is seen.

    Args:
        nuclei: The outlines; row ``i`` is drawn with the label ``i + 1``. Parts outside are cut off.
        shape: ``(H, W)`` of the map.
        corners: True, as everywhere in this package and in QuPath: pixel ``i`` covers ``[i, i + 1)`` and belongs to the
            nucleus if its centre ``i + 0.5`` lies inside. False: the centre of pixel ``i`` is at ``i`` and an outline
            runs through the centres of the outermost pixels, which belong to the nucleus, as OpenCV has it.
        further: Holes and further pieces of the nuclei; None where there are none. Holes are left as they are, save
            the pixels that their outlines run through where pixels count from centres.

    Returns:
        ``(H, W)`` int32, 0 is background; a label whose pixels are all hidden or outside does not occur.

    Example:
        >>> square = np.array([[1.0, 0], [3, 0], [3, 2], [1, 2]])
        >>> nuclei = replace(nuclei_from_instances(np.ones((3, 3), int)).nuclei, contour_points=square)
        >>> draw_outlines(nuclei, (3, 5)).tolist()
        [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
        >>> draw_outlines(nuclei, (3, 5), corners=False).tolist()
        [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]
    """
    canvas = np.zeros(shape, np.int32)
    if not len(nuclei):
        return canvas
    outlines = np.split(_drawable(nuclei.contour_points, corners=corners), nuclei.contour_offsets[1:-1])
    more = {} if further is None else replace(further, points=_drawable(further.points, corners=corners)).rings()
    for row, ring in enumerate(outlines):
        pieces = more.get(row, {})
        for rings in ([ring, *pieces.get(0, ())], *(pieces[number] for number in pieces if number)):
            _draw_piece(canvas, rings, row + 1, corners=corners)
    return canvas


def _drawable(points: NDArray[np.float64], *, corners: bool) -> NDArray[Any]:
    """Return points as they are drawn: from centres of pixels, or as whole steps of a pixel."""
    clipped = np.clip(points, -_REACH, _REACH)
    return clipped - 0.5 if corners else np.rint(clipped * 2**_SHIFT).astype(np.int32)


def _draw_piece(canvas: IntMap, rings: Sequence[NDArray[Any]], label: int, *, corners: bool) -> None:
    """Draw one polygon of an outer ring and its holes."""
    if not corners:
        cv2.fillPoly(canvas, list(rings), label, cv2.LINE_8, _SHIFT)
        return
    outer, *holes = (_inside(ring, canvas.shape) for ring in rings)
    before = [canvas[hole] for hole in holes]
    canvas[outer] = label
    for hole, values in zip(holes, before, strict=True):
        canvas[hole] = values


def nuclei_from_labels(instance_map: NDArray[Any], types: Types | None) -> NucleiPrediction:
    """Return an instance map with the table of its nuclei, single pixels too.

    Args:
        instance_map: ``(H, W)`` integers; labels may have gaps.
        types: Type of label ``i`` at ``i``; None makes all unknown (-1).
    """
    found = nuclei_from_instances(instance_map, min_contour_points=1)
    label = np.zeros(len(found.nuclei) + 1, np.int64)
    label[found.instance_map.ravel()] = instance_map.ravel()
    kinds = np.full(len(label), UNKNOWN_TYPE) if types is None else types[label]
    return replace(found, nuclei=replace(found.nuclei, type=kinds[1:].astype(np.int32)))


def _drawn(stated: LoadedNuclei, shape: tuple[int, ...], *, corners: bool = False) -> IntMap:
    if stated.outlines is None:
        return _int32(stated.instance_map)
    drawn = draw_outlines(stated.outlines, shape, corners=corners or stated.corners, further=stated.further)
    if len(stated.outlines) and not drawn.any():
        low, high = stated.outlines.contour_points.min(0).tolist(), stated.outlines.contour_points.max(0).tolist()
        message = f"all outlines of '{stated.path}' lie outside the {shape[1]}x{shape[0]} px of the image: they span "
        raise DataError(message + f"x, y from {low} to {high}; give coordinates in pixels of the image")
    return drawn


def _moved(side: LoadedNuclei, shift: tuple[int, int]) -> LoadedNuclei:
    """Return outlines moved by some pixels ``(x, y)``."""
    outlines, further = side.outlines, side.further
    return replace(
        side,
        outlines=None if outlines is None else outlines.transform(shift=shift),
        further=None if further is None else replace(further, points=further.points + np.asarray(shift)),
    )


def _common_grid(pred: LoadedNuclei, target: LoadedNuclei) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shape of the smallest grid that holds both sides' outlines, and its origin ``(x, y)``."""
    sides = [side.outlines.contour_points for side in (pred, target) if side.outlines is not None]
    sides += [side.further.points for side in (pred, target) if side.further is not None]
    points = np.concatenate([*sides, np.zeros((1, 2))] if not sum(map(len, sides)) else sides)
    low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int) + 1
    width, height = (high - low).tolist()
    if width * height > _MAX_PIXELS:
        message = f"the outlines of '{pred.path}' and '{target.path}' span {width}x{height} px; "
        raise DataError(message + "score regions, or give one side as an instance map")
    return (height, width), (int(low[0]), int(low[1]))


def _int32(instances: NDArray[Any] | None) -> IntMap:
    return np.asarray(instances).astype(np.int32)


def _inside(ring: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the pixels whose centres lie inside an outline."""
    rows, cols = skimage.draw.polygon(ring[:, 1], ring[:, 0], shape)  # type: ignore[no-untyped-call]
    return rows, cols
