"""Charts of matplotlib as pictures: no display, no global state, and nothing cut off."""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cellvit.plotting.legend import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#4074b4", "#e28c32", "#5aa05a")
"""Of the bars and curves that are compared."""


def new_axes(width: float, height: float, *, text: float = 18) -> "tuple[Figure, Axes]":
    """Return a figure and its one coordinate system of a size in pixels; labels lie outside of it.

    Args:
        width: Width of the coordinate system in pixels.
        height: Its height in pixels.
        text: Height of the text in pixels.
    """
    from matplotlib.figure import Figure

    dpi = 7.2 * text  # text has 10 points unless something else is said
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axisbelow(True)
    return figure, axes


def to_picture(figure: "Figure", *, margin: int = 20) -> Picture:
    """Return all that is drawn in a figure, however far its labels reach.

    Args:
        figure: The figure.
        margin: White border in pixels.

    Returns:
        ``uint8 (h, w, 3)`` RGB.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names come in any script; a box stands for it
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=margin / figure.dpi)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))
