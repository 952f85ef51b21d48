"""Single nuclei of slides, close up: for reports, and for what to label next."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cellvit.classes import NucleiClasses
from cellvit.errors import CellViTError
from cellvit.inference.resume import read_summary
from cellvit.inference.verify import slide_path
from cellvit.plotting.legend import Picture, arrange, draw_legend, stack_rows
from cellvit.plotting.overlay import draw_overlay, onto_picture
from cellvit.slide.open import Slide, open_slide
from cellvit.types import Nuclei

SIDE_UM = 32.0
"""Width of a crop."""

_SIDE, _COLUMNS, _GAP, _TEXT = 128, 8, 8, 13
_LINE = NucleiClasses(("Background", "Nucleus"), ((0, 0, 0), (255, 235, 0)))  # is on no tissue


class OpenSlide(NamedTuple):
    """The slide of a result folder: its pixels, where coordinates count from, and microns per pixel."""

    slide: Slide
    corner: tuple[int, int]
    mpp: float


@contextmanager
def slide_of(folder: Path, slides: str | Path | None = None) -> Iterator[OpenSlide | None]:
    """Return a context with the slide of a result folder; None where it is not there or cannot be read.

    Args:
        folder: The result folder.
        slides: The slide, or a folder that holds it, if it is not where it was.
    """
    summary = read_summary(folder) if folder.is_dir() else None
    path = None if summary is None else slide_path(summary, slides)
    if summary is None or path is None:
        yield None
        return
    settings = summary["settings"]
    try:
        slide = open_slide(path, scene=settings.get("scene"))
    except CellViTError:
        yield None
        return
    with slide:
        corner = slide.bounds[:2] if settings["origin"] == "bounds" else (0, 0)
        yield OpenSlide(slide, corner, sum(summary["resolution"]["mpp"]) / 2)


def draw_crop(opened: OpenSlide, nuclei: Nuclei, row: int, text: str) -> Picture:
    """Return a nucleus in the middle of its surroundings, with its outline, and a line of text below.

    Args:
        opened: The slide.
        nuclei: In the coordinates of the files.
        row: Which of them.
        text: The line.

    Returns:
        ``uint8 (h, w, 3)`` RGB.
    """
    side = max(8, round(SIDE_UM / opened.mpp))
    left, top = (int(place) - side // 2 for place in nuclei.centroid[row])
    pixels = opened.slide.read_region(left + opened.corner[0], top + opened.corner[1], side, side)
    how = cv2.INTER_AREA if side > _SIDE else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(pixels, (_SIDE, _SIDE), interpolation=how), np.uint8)
    scale = _SIDE / side
    outlined = replace(nuclei[row : row + 1], type=np.ones(1, np.int32), classes=_LINE)
    moved = onto_picture(outlined, (left, top), (scale, scale))
    drawn = draw_overlay(picture, moved, legend=False, thickness=1)
    return stack_rows([drawn, draw_legend([(None, text)], _SIDE, size=_TEXT)])


def contact_sheet(crops: Sequence[Picture], title: str) -> Picture:
    """Return crops in rows of eight below a title.

    Args:
        crops: At least one.
        title: The first line.
    """
    page = arrange(list(crops), min(_COLUMNS, len(crops)), gap=_GAP)
    return stack_rows([draw_legend([(None, title)], page.shape[1], size=_TEXT + 4), page])
