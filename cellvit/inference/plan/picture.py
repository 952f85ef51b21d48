"""A picture of a plan: the slide, what is tissue, which tiles are searched, which are done."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.inference.plan.measure import Sample, tile_boxes
from cellvit.inference.plan.progress import ExistingRun
from cellvit.inference.prepare import PreparedSlide
from cellvit.plotting.legend import Picture, draw_legend, stack_rows
from cellvit.plotting.overlay import check_picture_path, write_picture

TISSUE, REGION, TILE = (20, 20, 20), (215, 25, 30), (30, 90, 225)
DONE, MEASURED = (25, 160, 80), (240, 140, 0)
"""Colours of the outlines, and of the tiles that are done."""

_SMALLEST = 700  # pixels of the longer side; a smaller thumbnail is enlarged, or lines would cover it
_FADED = 0.45  # share of their colour left to places that are not searched
_TINT = 0.35


def write_plan_picture(
    path: str | Path, prepared: PreparedSlide, *, started: ExistingRun | None = None, sample: Sample | None = None
) -> None:
    """Write a picture of what is planned: tissue and region of interest outlined, tiles framed, the rest faded.

    Args:
        path: A PNG, JPEG or TIFF file.
        prepared: The slide.
        started: Tells which tiles are done; they are tinted.
        sample: Tells which tiles were measured; they have another frame.

    Raises:
        ConfigError: If the suffix stands for no format.
        OutputError: If the file cannot be written.
    """
    check_picture_path(path)
    tiles = prepared.tiles
    parts = started.parts if started else ()
    done = np.concatenate([prepared.part(number) for number in parts]) if parts else tiles[:0]
    measured = sample.tiles if sample else tiles[:0]
    canvas = _enlarged(prepared.thumbnail)
    shape, width = canvas.shape[:2], max(1, round(max(canvas.shape) / 700))
    boxes = {name: _on_canvas(prepared, numbers, shape) for name, numbers in (("all", tiles), ("done", done))}
    canvas = _faded(canvas, boxes["all"])
    for left, top, right, bottom in boxes["done"]:
        inside = canvas[top:bottom, left:right]
        inside[:] = inside * (1 - _TINT) + np.multiply(DONE, _TINT)
    _frame(canvas, boxes["all"], TILE, width)
    _frame(canvas, _on_canvas(prepared, measured, shape), MEASURED, 2 * width)
    _outline(canvas, prepared.tissue.mask, TISSUE, width)
    if prepared.region is not None:
        _outline(canvas, prepared.region.mask(shape, prepared.slide.bounds), REGION, 2 * width)
    searched = "tissue" if prepared.tissue_source.startswith("found") else prepared.tissue_source
    entries = [
        (TISSUE, f"{searched}: {prepared.tissue_mm2:,.2f} mm²"),
        (TILE, f"{len(tiles):,} of {len(prepared.grid):,} tiles are searched"),
        *([(DONE, f"{len(done):,} done")] if len(done) else []),
        *([(MEASURED, f"{len(measured):,} measured")] if len(measured) else []),
        *([(REGION, "region of interest")] if prepared.region is not None else []),
    ]
    write_picture(stack_rows([canvas, draw_legend(list(entries), canvas.shape[1])]), path)


def _enlarged(thumbnail: Picture) -> Picture:
    factor = max(1, -(-_SMALLEST // max(thumbnail.shape)))
    return np.array(thumbnail.repeat(factor, axis=0).repeat(factor, axis=1))


def _on_canvas(prepared: PreparedSlide, tiles: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the boxes of tiles in pixels of the picture; they may overlap by less than a pixel."""
    scale = np.array([shape[1] / prepared.size[0], shape[0] / prepared.size[1]])
    boxes: NDArray[np.float64] = tile_boxes(prepared, tiles) * np.tile(scale, 2)
    return np.asarray(np.rint(boxes), np.int64)


def _faded(canvas: Picture, boxes: Iterable[NDArray[np.int64]]) -> Picture:
    """Return the picture with everything outside of the boxes faded towards white."""
    faded = np.array(255 - (255 - canvas.astype(np.float32)) * _FADED, np.uint8)
    for left, top, right, bottom in boxes:
        faded[top:bottom, left:right] = canvas[top:bottom, left:right]
    return faded


def _frame(canvas: Picture, boxes: NDArray[np.int64], color: tuple[int, int, int], width: int) -> None:
    for left, top, right, bottom in boxes.tolist():
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), color, width)


def _outline(canvas: Picture, mask: NDArray[np.bool_], color: tuple[int, int, int], width: int) -> None:
    full = cv2.resize(mask.astype(np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(full, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, color, width)
