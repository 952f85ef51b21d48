"""Text panels for pictures: a legend of types with counts, and titles."""

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cellvit.classes import NO_TYPE, type_color, type_name
from cellvit.types import Nuclei, NucleiClasses, Rgb

Picture = NDArray[np.uint8]

Entries = list[tuple[Rgb | None, str]]
"""Lines of a legend: a colour, or None for text alone, and the text."""

_PAPER = (255, 255, 255)
_INK = (30, 30, 30)
_FRAME = (120, 120, 120)
_SHORTEST_BAR = 8  # pixels


def legend_entries(nuclei: Nuclei) -> Entries:
    """Return the lines of a legend: the total without a colour, then colour and ``"name: count"`` per type.

    What the types were learnt on comes last, without a colour, where it is known.

    Args:
        nuclei: All named types are listed, also those that do not occur; unnamed types only if they occur.
    """
    return count_entries(Counter(nuclei.type.tolist()), nuclei.classes)


def count_entries(counts: Mapping[int, int], classes: NucleiClasses | None) -> Entries:
    """Return the lines of a legend as :func:`legend_entries` does, from the number of nuclei per type id.

    Example:
        >>> count_entries({2: 1200}, None)
        [(None, '1,200 nuclei'), ((24, 229, 167), 'Type 2: 1,200')]
    """
    number = sum(counts.values())
    named = range(1, len(classes or ()))
    entries: Entries = [(None, f"{number:,} nucle{'us' if number == 1 else 'i'}")]
    for kind in sorted({*named, *(k for k in counts if k > 0)}):
        entries.append((type_color(classes, kind), f"{type_name(classes, kind)}: {counts.get(kind, 0):,}"))
    untyped = sum(n for kind, n in counts.items() if kind <= 0)
    if untyped and len(entries) > 1:
        entries.append((type_color(classes, 0), f"{NO_TYPE}: {untyped:,}"))
    if classes is not None and classes.learnt_on:
        entries.append((None, f"types learnt on {classes.learnt_on}"))
    return entries


def draw_legend(entries: Entries, width: int, *, size: int | None = None, pixel_um: float | None = None) -> Picture:
    """Return a panel of entries, broken into lines where they do not fit.

    Args:
        entries: Colour, or None for text alone, and text of each.
        width: Wanted width in pixels; the panel is wider if the longest entry is.
        size: Text height in pixels; None chooses one for the width.
        pixel_um: Microns across a pixel of the picture above; with it a scale bar comes last.

    Returns:
        ``uint8 (h, w, 3)`` RGB, ``w >= width``.
    """
    size = text_size(width) if size is None else size
    font, pad = font_of(size), round(0.7 * size)
    items = [_Item(color, text, 0 if color is None else size, size) for color, text in entries]
    if pixel_um is not None and (bar := scale_bar_um(width, pixel_um)):
        items.append(_Item(_INK, f"{bar:,g} µm", round(bar / pixel_um), max(3, size // 4)))
    widths = [round(font.getlength(item.text)) + (item.width + pad // 2 if item.width else 0) for item in items]
    width = max(width, max(widths, default=0) + 2 * pad)
    places, x, line = [], pad, 0
    for entry in widths:
        if x > pad and x + entry + pad > width:
            x, line = pad, line + 1
        places.append((x, line))
        x += entry + 2 * pad
    step = round(1.6 * size)
    panel = Image.new("RGB", (width, (line + 1) * step + pad), _PAPER)
    draw = ImageDraw.Draw(panel)
    for item, (left, row) in zip(items, places, strict=True):
        middle = pad // 2 + row * step + step // 2
        if item.color is not None:
            top = middle - item.height // 2
            box = (left, top, left + item.width - 1, top + item.height - 1)
            draw.rectangle(box, fill=item.color, outline=_FRAME)
            left += item.width + pad // 2
        draw.text((left, middle), item.text, fill=_INK, font=font, anchor="lm")
    return np.asarray(panel)


class _Item(NamedTuple):
    """An entry of a legend with the size of its patch of colour in pixels."""

    color: Rgb | None
    text: str
    width: int
    height: int


def scale_bar_um(width: int, pixel_um: float) -> float | None:
    """Return a round length in microns for a scale bar: at most a fifth of a picture, or None for less than 8 pixels.

    Args:
        width: Width of the picture in pixels.
        pixel_um: Microns across a pixel.

    Example:
        >>> scale_bar_um(1024, 0.25), scale_bar_um(900, 16.0), scale_bar_um(20, 0.25)
        (50.0, 2000.0, None)
    """
    most = width * pixel_um / 5
    power = 10.0 ** math.floor(math.log10(most))
    length = max(step * power for step in (1, 2, 5) if step * power <= most)
    return length if length >= _SHORTEST_BAR * pixel_um else None


def text_size(width: int) -> int:
    """Return the text height in pixels for a picture of a width: readable at 512 px, larger on larger pictures."""
    return max(13, round(width / 45)) if width < 1024 else max(22, round(width / 70))


def stack_rows(pictures: list[Picture]) -> Picture:
    """Return pictures one below the other, left aligned on white."""
    width = max(p.shape[1] for p in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def arrange(panels: list[Picture], columns: int, *, gap: int) -> Picture:
    """Return panels in rows, each in a cell as large as the largest panel, at its top left, with white between them."""
    height, width = np.max([p.shape[:2] for p in panels], axis=0).tolist()
    rows = -(-len(panels) // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, panel in enumerate(panels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return page


@lru_cache(maxsize=8)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of a text height in pixels: that of the charts, which knows ² and µ."""
    package = find_spec("matplotlib")  # which need not be imported for it: that takes a fifth of a second
    assert package is not None
    assert package.origin is not None
    return ImageFont.truetype(Path(package.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf", size)
