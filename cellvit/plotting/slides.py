"""Pictures of a whole slide: every nucleus as a dot, how dense they lie, and the densest places close up.

The nuclei come as a stream; only small rasters, counts and the nuclei of the close-ups are held.
"""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.classes import type_color
from cellvit.errors import ConfigError
from cellvit.io.stream import NucleiStream
from cellvit.plotting.density import (
    Bounds,
    Counts,
    both_mpp,
    choose_sigma,
    count_into,
    draw_density,
    nuclei_chunks,
    panel_shape,
    scale_of,
)
from cellvit.plotting.hotspots import write_closeups
from cellvit.plotting.legend import Picture, count_entries, draw_legend, stack_rows
from cellvit.plotting.overlay import canvas_of, check_picture_path, draw_onto, line_width, onto_picture, write_picture

__all__ = ["write_closeups", "write_density", "write_slide_overlay"]

_EDGE = (0, 0, 0)
_OUTLINE_SCALE = 0.5  # thumbnail pixels per slide pixel from which outlines can be told apart
_FADED = 0.55  # share of the tissue's colour left under dots
_DOT_SHARE = 0.35  # radius of a dot by the width of a nucleus
_SPARSE = 0.05  # where dots of five pixels would cover less than this share of the picture, they are that large


def write_slide_overlay(
    stream: NucleiStream,
    thumbnail: Picture,
    path: str | Path,
    *,
    bounds: Bounds,
    mpp: float | tuple[float, float] | None = None,
    tissue: NDArray[np.bool_] | None = None,
) -> None:
    """Write a picture of a slide with every nucleus as a dot in the colour of its type, and a legend below.

    Where dots of several types fall on one pixel the most frequent there is seen. Thumbnails of at least half the
    full resolution, which only small slides have, show outlines.

    Args:
        stream: The nuclei, in full-resolution pixels; read once.
        thumbnail: ``uint8 (h, w, 3)`` RGB.
        path: The file; its suffix (``.png``, ``.jpg``, ``.tif``) says the format.
        bounds: What the thumbnail shows.
        mpp: Microns per pixel of the full resolution, one number or ``(x, y)``; with it the legend has a scale bar.
        tissue: ``(h, w)``, True where nuclei were looked for, of any resolution, over the same bounds; its edge is
            drawn.

    Raises:
        ConfigError: If the suffix stands for no format, the bounds have no area, or ``mpp`` is not positive.
        OutputError: If the file cannot be written.
        ImageError: If the thumbnail is not of this form.
        DataError: If a coordinate is not finite.
    """
    check_picture_path(path)
    canvas = canvas_of(thumbnail)
    scale = scale_of(canvas.shape, bounds)
    draw = _draw_outlines if min(scale) >= _OUTLINE_SCALE else _draw_dots
    counts = draw(stream, canvas, bounds, scale)
    entries = count_entries(counts, stream.classes)
    if tissue is not None and not tissue.all():
        _draw_edge(canvas, tissue)
        entries.append((_EDGE, "edge of the tissue searched"))
    pixel_um = None if mpp is None else both_mpp(mpp)[0] / scale[0]
    write_picture(stack_rows([canvas, draw_legend(entries, canvas.shape[1], pixel_um=pixel_um)]), path)


def _draw_edge(canvas: Picture, tissue: NDArray[np.bool_]) -> None:
    """Draw the edge of the tissue, and of holes in it."""
    resized = cv2.resize(tissue.astype(np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    edges, _ = cv2.findContours(resized, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, edges, -1, _EDGE, 1 + max(canvas.shape[:2]) // 1024, cv2.LINE_AA)


def write_density(
    stream: NucleiStream,
    thumbnail: Picture,
    path: str | Path,
    *,
    bounds: Bounds,
    mpp: float | tuple[float, float],
    sigma_um: float | None = None,
    tissue: NDArray[np.bool_] | None = None,
) -> None:
    """Write heat maps of the nuclei per mm², of all nuclei and of each type that occurs, over the grey thumbnail.

    Beside the map of all nuclei lies one of its relative standard error. Places where the standard error of a map is
    above half of the density are faded, and a type of fewer than 50 nuclei has no map.

    Args:
        stream: The nuclei, in full-resolution pixels; read once.
        thumbnail: ``uint8 (h, w, 3)`` RGB.
        path: The file; its suffix (``.png``, ``.jpg``, ``.tif``) says the format.
        bounds: What the thumbnail shows; nuclei outside are left out.
        mpp: Microns per pixel of the full resolution, one number or ``(x, y)``.
        sigma_um: Standard deviation in microns of the Gaussian that smooths; None takes 50, and more on slides so
            large that it would be less than two pixels. The picture states it.
        tissue: ``(h, w)``, True where nuclei were looked for, of any resolution, over the same bounds; nothing is
            coloured beside it.

    Raises:
        ConfigError: If the suffix stands for no format, or bounds, ``mpp`` or ``sigma_um`` are not positive.
        OutputError: If the file cannot be written.
        ImageError: If the thumbnail is not of this form.
        DataError: If a coordinate is not finite.
    """
    check_picture_path(path)
    canvas = canvas_of(thumbnail)
    across, down = both_mpp(mpp)
    if sigma_um is not None and not sigma_um > 0:
        raise ConfigError(f"sigma_um={sigma_um} smooths nothing; give a positive number of microns")
    height, width = panel_shape(canvas)
    scale = scale_of((height, width), bounds)
    counts: dict[int, Counts] = {}
    for chunk in nuclei_chunks(stream):
        count_into(counts, chunk, bounds, scale, (height, width))
    pixel_um = (across / scale[0], down / scale[1])
    sigma = choose_sigma(pixel_um) if sigma_um is None else sigma_um
    picture = draw_density(counts, canvas, classes=stream.classes, pixel_um=pixel_um, sigma_um=sigma, tissue=tissue)
    write_picture(picture, path)


def _draw_outlines(stream: NucleiStream, canvas: Picture, bounds: Bounds, scale: tuple[float, float]) -> Counter[int]:
    """Draw outlines chunk by chunk; return the number of nuclei per type."""
    counts: Counter[int] = Counter()
    thickness = 0
    for chunk in nuclei_chunks(stream):
        counts.update(chunk.type.tolist())
        moved = onto_picture(chunk, bounds[:2], scale)
        thickness = thickness or line_width(canvas, moved)
        draw_onto(canvas, moved, thickness)
    return counts


def _draw_dots(stream: NucleiStream, canvas: Picture, bounds: Bounds, scale: tuple[float, float]) -> Counter[int]:
    """Fade a canvas and draw a dot per nucleus; return the number of nuclei per type."""
    totals: Counter[int] = Counter()
    maps: dict[int, Counts] = {}
    width = 0.0
    for chunk in nuclei_chunks(stream):
        totals.update(chunk.type.tolist())
        width += float((chunk.bbox[:, 2:] - chunk.bbox[:, :2]).mean(axis=1).sum())
        count_into(maps, chunk, bounds, scale, canvas.shape)
    canvas[:] = np.rint(255 - (255 - canvas.astype(np.float32)) * _FADED)
    number = max(1, totals.total())
    sparse = 5 * number < _SPARSE * canvas.shape[0] * canvas.shape[1]
    radius = max(int(sparse), round(_DOT_SHARE * width / number * min(scale)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)
    most = np.zeros(canvas.shape[:2], np.float32)
    for kind in sorted(maps, key=lambda k: (-totals[k], k)):  # of two equally frequent the rarer is seen
        here = cv2.filter2D(maps[kind].astype(np.float32), -1, disc, borderType=cv2.BORDER_CONSTANT).round()
        seen = (here > 0) & (here >= most)
        canvas[seen] = type_color(stream.classes, kind)
        most[seen] = here[seen]
    return totals
