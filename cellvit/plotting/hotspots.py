"""The places of a slide where most nuclei lie, close up: for checking outlines by eye."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError
from cellvit.io.stream import NucleiStream
from cellvit.plotting.density import Bounds, Counts, both_mpp, count_into, nuclei_chunks
from cellvit.plotting.legend import Entries, Picture, arrange, count_entries, draw_legend, stack_rows, text_size
from cellvit.plotting.overlay import check_picture_path, draw_overlay, line_width, onto_picture, write_picture
from cellvit.types import Nuclei

WINDOW_STEPS = 4
"""Dense places are looked for in steps of this part of their width."""

_PLACE_UM = 128.0  # width of a close-up
_PLACE_SIDE = 480  # pixels that a close-up should have on the page


class _Place(NamedTuple):
    """A window of the slide and the nuclei seen in it."""

    bounds: Bounds
    nuclei: Nuclei
    inside: NDArray[np.bool_]  # whose centroid lies in the window: these count


class SlidePixels(Protocol):
    """What close-ups need of a slide."""

    @property
    def bounds(self) -> Bounds:
        """The scanned part, ``(x, y, width, height)`` in full-resolution pixels."""
        ...

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Picture:
        """Return pixels of a level, ``uint8 (height, width, 3)`` RGB."""
        ...


def write_closeups(
    stream: NucleiStream, slide: SlidePixels, path: str | Path, *, mpp: float | tuple[float, float], count: int = 4
) -> None:
    """Write the places of a slide with the most nuclei, at full resolution with outlines.

    Args:
        stream: The nuclei, in full-resolution pixels; read twice.
        slide: The slide.
        path: The file; its suffix (``.png``, ``.jpg``, ``.tif``) says the format.
        mpp: Microns per pixel of the full resolution, one number or ``(x, y)``.
        count: Number of places; there are fewer if the slide has no more that hold nuclei and do not overlap.

    Raises:
        ConfigError: If the suffix stands for no format, or ``mpp`` or ``count`` are not positive.
        OutputError: If the file cannot be written.
        DataError: If a coordinate is not finite.
    """
    check_picture_path(path)
    if count < 1:
        raise ConfigError(f"count={count} close-ups; ask for at least one")
    across, down = both_mpp(mpp)
    # a multiple of the steps, so that windows side by side do not overlap
    wish = [max(WINDOW_STEPS, round(_PLACE_UM / m / WINDOW_STEPS) * WINDOW_STEPS) for m in (across, down)]
    size = (min(slide.bounds[2], wish[0]), min(slide.bounds[3], wish[1]))
    windows = _densest(stream, slide.bounds, size, count)
    places = _collect(stream, windows)
    factor = max(1, round(_PLACE_SIDE / max(size)))
    text = text_size(max(size[0] * factor, 512))
    panels = [_panel(slide, place, number, factor, text) for number, place in enumerate(places, start=1)]
    counts: Counter[int] = Counter()
    for place in places:
        counts.update(place.nuclei.type[place.inside].tolist())
    if not places:
        write_picture(draw_legend([(None, "No nuclei were found on this slide.")], 640), path)
        return
    page = arrange(panels, 1 if len(panels) == 1 else 2, gap=text)
    entries = count_entries(counts, stream.classes)
    entries[0] = (None, f"In these places: {entries[0][1]}")
    notes: Entries = [
        (None, f"Each place is {size[0] * across:.0f} µm wide."),
        (None, "x and y: top left corner in full-resolution pixels."),
    ]
    width = page.shape[1]
    write_picture(stack_rows([page, *(draw_legend(lines, width, size=text) for lines in (entries, notes))]), path)


def _collect(stream: NucleiStream, windows: list[Bounds]) -> list[_Place]:
    """Return the nuclei that reach into each window."""
    found: list[list[Nuclei]] = [[] for _ in windows]
    for chunk in nuclei_chunks(stream) if windows else ():
        xmin, ymin, xmax, ymax = chunk.bbox.T
        for (x, y, width, height), parts in zip(windows, found, strict=True):
            seen = (xmin < x + width) & (xmax > x) & (ymin < y + height) & (ymax > y)
            parts.extend([chunk.select(seen)] if seen.any() else [])
    places = []
    for window, parts in zip(windows, found, strict=True):
        nuclei = Nuclei.concatenate(parts) if parts else Nuclei.empty(classes=stream.classes)
        offset = nuclei.centroid - window[:2]
        inside = ((offset >= 0) & (offset < window[2:])).all(axis=1)
        places.append(_Place(window, nuclei, np.asarray(inside)))
    return places


def _panel(slide: SlidePixels, place: _Place, number: int, factor: int, text: int) -> Picture:
    """Return one place with its title above, enlarged by a whole factor."""
    x, y, width, height = place.bounds
    pixels = np.ascontiguousarray(slide.read_region(x, y, width, height))
    side = (width * factor, height * factor)
    canvas = np.asarray(cv2.resize(pixels, side, interpolation=cv2.INTER_CUBIC), np.uint8) if factor > 1 else pixels
    moved = onto_picture(place.nuclei, (x, y), (factor, factor))
    drawn = draw_overlay(canvas, moved, legend=False, thickness=line_width(canvas, moved) + (factor > 1))
    entries: Entries = [(None, f"{number}: x {x:,}, y {y:,}"), (None, f"{place.inside.sum():,} nuclei")]
    return stack_rows([draw_legend(entries, drawn.shape[1], size=text), drawn])


def _densest(stream: NucleiStream, bounds: Bounds, size: tuple[int, int], count: int) -> list[Bounds]:
    """Return the windows of a size with the most nuclei that do not overlap, densest first."""
    step = np.maximum(1, np.array(size) // WINDOW_STEPS)
    shape = [max(WINDOW_STEPS, side // s) for side, s in zip(bounds[2:], step.tolist(), strict=True)][::-1]
    frame = (bounds[0], bounds[1], shape[1] * int(step[0]), shape[0] * int(step[1]))
    rasters: dict[int, Counts] = {}
    for chunk in nuclei_chunks(stream):
        count_into(rasters, chunk, frame, (1 / step[0], 1 / step[1]), (shape[0], shape[1]))
    places = densest_windows(sum(rasters.values(), np.zeros(shape, np.int32)), count)
    # the last window of a slide narrower than a few pixels would reach beyond it
    last = (bounds[0] + bounds[2] - size[0], bounds[1] + bounds[3] - size[1])
    corners = [(bounds[0] + col * int(step[0]), bounds[1] + row * int(step[1])) for row, col in places]
    return [(min(x, last[0]), min(y, last[1]), *size) for x, y in corners]


def densest_windows(counts: NDArray[Any], count: int) -> list[tuple[int, int]]:
    """Return the windows of a raster with the largest sums that do not overlap, the largest first.

    Args:
        counts: ``(h, w)``, at least :data:`WINDOW_STEPS` pixels each.
        count: Number of windows; there are fewer where the rest is empty.

    Returns:
        Row and column of the first pixel of each; a window is :data:`WINDOW_STEPS` pixels wide and high.
    """
    windows = np.lib.stride_tricks.sliding_window_view(counts, (WINDOW_STEPS, WINDOW_STEPS)).sum((2, 3))
    places: list[tuple[int, int]] = []
    for apart in (2 * WINDOW_STEPS, WINDOW_STEPS):  # first with a gap as wide as a window, then side by side
        free = windows.copy()
        for row, col in places:
            _suppress(free, row, col, apart)
        while len(places) < count and free.max() > 0:
            row, col = divmod(int(free.argmax()), free.shape[1])
            places.append((row, col))
            _suppress(free, row, col, apart)
    return places


def _suppress(windows: NDArray[np.int_], row: int, col: int, apart: int) -> None:
    """Mark the windows near a chosen one as taken."""
    windows[max(0, row - apart + 1) : row + apart, max(0, col - apart + 1) : col + apart] = 0
