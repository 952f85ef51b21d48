"""Pieces of a page: numbers, times, bars of types and small pictures."""

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

from PIL import Image

from cellvit.types import Rgb

PICTURES = ("overlay.png", "tissue.png")
"""Pictures of a slide; the first that is there is shown."""


def picture_uri(folder: Path, *, side: int) -> str | None:
    """Return a small picture of a slide as a ``data:`` address, or None if there is none.

    Args:
        folder: Results of the slide.
        side: Longest side in pixels; a smaller picture is not enlarged.
    """
    for name in PICTURES:
        try:
            with Image.open(folder / name) as opened:
                small = opened.convert("RGB")
            small.thumbnail((side, side))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # not there, or damaged: the page is worth more than a picture
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=80, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return None


def number_cell(label: str, value: float | None, text: str, *, kind: str = "number") -> str:
    """Return a cell of the table with a number that can be sorted by.

    Args:
        label: Heading of the column, for narrow screens.
        value: What is sorted by; None if it is not known.
        text: What is shown.
        kind: Class of the cell.
    """
    known = "" if value is None else f' data-value="{value}"'
    return f'<td class="{kind}" data-label="{label}"{known}>{text}</td>'


def shown(value: float | None, form: str) -> str:
    """Return a number as text; nothing if it is not known."""
    return "" if value is None else format(value, form)


def type_bar(by_type: Mapping[str, int], colors: Mapping[str, Rgb]) -> str:
    """Return a bar of the shares of the types; a drawing, because backgrounds are not printed."""
    total = sum(by_type.values()) or 1
    pieces, left = [], 0.0
    for name, color in colors.items():
        width = 100 * by_type.get(name, 0) / total
        title = f"<title>{escape(name)}: {by_type.get(name, 0):,}</title>"
        if width:
            place = f'x="{left:.3f}" width="{width:.3f}" height="10"'
            pieces.append(f'<rect {place} fill="{_css(color)}">{title}</rect>')
        left += width
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(pieces)}</svg>'
    )


def swatch(color: Rgb) -> str:
    """Return a small square of a colour."""
    return f'<svg viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" fill="{_css(color)}"/></svg>'


def _css(color: Rgb) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in color)


def percent(part: int, whole: int) -> str:
    """Return a share as text."""
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def duration(seconds: float) -> str:
    """Return a time to read.

    Example:
        >>> duration(5.2), duration(75), duration(4000)
        ('5 s', '1 min 15 s', '1 h 06 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
