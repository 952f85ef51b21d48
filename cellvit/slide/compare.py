"""One file as every reader sees it: sizes, resolution, and how far pixels are apart at a few places.

The reader that opens the file for segmentation is the first; all others, ours and the libraries of
:mod:`cellvit.slide.referees`, are compared with it. However large the slide, only small regions are read.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.io.images import Rgb8, one_line
from cellvit.io.remote import RemotePath, as_path
from cellvit.io.resolution import apart, micrometres
from cellvit.slide.open import open_slide
from cellvit.slide.readers.base import Size, SlideReader, readers_for
from cellvit.slide.referees import REFEREES, Referee
from cellvit.slide.resampling import level_ratios
from cellvit.slide.view import SlideView

SIDE = 512
"""Pixels of a side of a region that is compared, at most."""

SAME_COLOUR, SAME_PLACE, SAME_MPP = 2.0, 0.5, 1.005
"""Grey levels of the mean difference, pixels, and the factor of the resolution within which readers agree."""

_THUMBNAIL = 512
_SMALL = 2**25  # pixels of the smallest level up to which it may be read whole
_PROBE = 256
_CONTRAST = 2.0  # grey levels of the standard deviation below which no place can be found again
_FAR = 16  # pixels to each side in which a shift is looked for


class _Seen(Protocol):
    """What a reader and a referee have in common."""

    @property
    def level_sizes(self) -> tuple[Size, ...]:
        """``(width, height)`` of each level."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Region:
    """A region of which colours are compared.

    Attributes:
        name: What it is, such as "tissue".
        level: Number of the level for the first reader.
        box: ``(x, y, width, height)`` in its pixels.
    """

    name: str
    level: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Difference:
    """How the pixels of a region differ from those of the first reader.

    Attributes:
        region: The region.
        largest: Grey levels by which a channel differs at most.
        mean: Grey levels by which channels differ on average.
        shift: ``(x, y)`` pixels by which it lies further right and down; None where nothing shows it.
        exchanged: Whether red and blue are exchanged: then the colours agree far better.
    """

    region: Region
    largest: int
    mean: float
    shift: tuple[float, float] | None
    exchanged: bool = False


@dataclass(frozen=True)
class ReaderView:
    """A file as one reader sees it.

    Attributes:
        name: Of the reader; ours are called "cellvit" with their own name behind it.
        version: Of the library; empty for ours.
        level_sizes: ``(width, height)`` of each level that it tells; empty where it does not open the file.
        mpp: ``(x, y)`` micrometres per pixel that it tells, or None.
        differences: One for each region that was compared.
        disagreements: A sentence for each thing in which it differs from the first reader.
        refusal: Why it does not open the file; empty where it does.
    """

    name: str
    version: str = ""
    level_sizes: tuple[Size, ...] = ()
    mpp: tuple[float, float] | None = None
    differences: tuple[Difference, ...] = ()
    disagreements: tuple[str, ...] = ()
    refusal: str = ""


@dataclass
class _Opened:
    slide: Any
    mpp: tuple[float, float] | None
    pyramids: bool
    read: Callable[..., Rgb8] = field(repr=False)


def compare_readers(path: str | Path) -> list[ReaderView]:
    """Return a file as every reader sees it, first the one that opens it for segmentation.

    Args:
        path: A slide or an image; of one at an address, our readers only are asked.

    Raises:
        ImageError: If no reader of ours opens it.
    """
    path = as_path(path)
    with open_slide(path) as slide:
        name = f"cellvit {slide.reader}"
        regions = list(_regions(slide))
        wanted = {region: slide.read_region(*region.box, level=region.level) for region in regions}
        views = [ReaderView(name, "", tuple(slide.level_sizes), slide.stated_mpp)]
        for label, version, opener in _others(path, type(slide)):
            views.append(_view(label, version, opener, views[0], wanted))
        return views


def _others(path: Path, first: type) -> Iterator[tuple[str, str, Callable[[], _Opened]]]:
    """Yield name, version and how to open the file, of our other readers and of the referees that are installed."""
    for reader in readers_for(path):
        if reader is not first and issubclass(reader, SlideReader) and reader.accepts(path):
            yield f"cellvit {reader.reader}", "", partial(_open_own, reader, path)
    for referee in () if isinstance(path, RemotePath) else REFEREES:  # they are asked about files on a disk only
        with suppress(PackageNotFoundError):
            yield referee.name, referee.version(), partial(_open_referee, referee, path)


def _open_own(reader: Any, path: Path) -> _Opened:
    slide: SlideReader = reader(path)
    return _Opened(slide, slide.stated_mpp, True, slide.read_region)


def _open_referee(referee: type[Referee], path: Path) -> _Opened:
    slide = referee(path)
    return _Opened(slide, slide.mpp, slide.pyramids, slide.read)


def _view(
    name: str,
    version: str,
    opener: Callable[[], _Opened],
    first: ReaderView,
    wanted: dict[Region, Rgb8],
) -> ReaderView:
    try:
        opened = opener()
    except Exception as error:  # each library has errors of its own
        return ReaderView(name, version, refusal=one_line(error))
    slide: _Seen = opened.slide
    try:
        same = slide.level_sizes[0] == first.level_sizes[0]  # regions of pictures of other sizes show other things
        found = [_difference(opened, region, pixels, first) for region, pixels in wanted.items() if same]
        differences = tuple(difference for difference in found if difference is not None)
    except Exception as error:
        return ReaderView(name, version, slide.level_sizes, opened.mpp, refusal=f"cannot read it: {one_line(error)}")
    finally:
        slide.close()
    told = (*_facts_apart(opened, first), *(t for d in differences for t in _apart(d)))
    return ReaderView(name, version, slide.level_sizes, opened.mpp, differences, told)


def _facts_apart(opened: _Opened, first: ReaderView) -> Iterator[str]:
    """Yield in what size, levels and resolution differ."""
    sizes, mpp = opened.slide.level_sizes, opened.mpp
    full, own = first.level_sizes[0], sizes[0]
    if own != full:
        yield f"{own[0]} x {own[1]} px instead of {full[0]} x {full[1]}"
    if opened.pyramids and len(sizes) != len(first.level_sizes):
        yield f"{len(sizes)} level{'s' if len(sizes) > 1 else ''} instead of {len(first.level_sizes)}"
    if (mpp is None) != (first.mpp is None):
        names = ["no resolution" if stated is None else micrometres(stated) for stated in (mpp, first.mpp)]
        yield f"{names[0]} instead of {names[1]}"
    elif mpp is not None and first.mpp is not None and apart(mpp, first.mpp) > SAME_MPP:
        yield f"{micrometres(mpp)} instead of {micrometres(first.mpp)}"


def _apart(difference: Difference) -> Iterator[str]:
    """Yield in what a region differs too much."""
    where = difference.region.name
    if difference.exchanged:
        yield f"{where}: red and blue are exchanged"
    elif difference.mean > SAME_COLOUR:
        yield f"{where}: colours {difference.mean:.1f} grey levels apart on average, {difference.largest} at most"
    if difference.shift is not None and max(map(abs, difference.shift)) > SAME_PLACE:
        yield f"{where}: shifted by {difference.shift[0]:g}, {difference.shift[1]:g} px"


def _regions(slide: Any) -> Iterator[Region]:
    """Yield the regions of a slide that are compared: where there is most to see, two corners, the smallest level."""
    width, height = slide.level_sizes[0]
    side = (min(SIDE, width), min(SIDE, height))
    x, y = _busiest(slide)
    left, top = (
        min(max(at - part // 2, 0), full - part) for at, part, full in zip((x, y), side, (width, height), strict=True)
    )
    yield Region("tissue", 0, (left, top, *side))
    corner = (min(SIDE // 2, width), min(SIDE // 2, height))
    yield Region("upper left", 0, (0, 0, *corner))
    yield Region("lower right", 0, (width - corner[0], height - corner[1], *corner))
    if len(slide.level_sizes) > 1:
        last = len(slide.level_sizes) - 1
        full = slide.level_sizes[last]
        part = (min(SIDE, full[0]), min(SIDE, full[1]))
        yield Region(f"level {last}", last, ((full[0] - part[0]) // 2, (full[1] - part[1]) // 2, *part))


def _busiest(slide: Any) -> tuple[int, int]:
    """Return the place in level-0 pixels around which a slide has most contrast in green, as far as little is read.

    It is looked for in a small picture of the slide, or, where no level is small, at nine places of full resolution.
    """
    left, top, width, height = slide.bounds
    last = slide.level_sizes[-1]
    if last[0] * last[1] > _SMALL:
        places = [
            (left + width * (2 * i + 1) // 6, top + height * (2 * j + 1) // 6) for j in range(3) for i in range(3)
        ]
        return max(places, key=lambda at: slide.read_region(*at, _PROBE, _PROBE)[..., 1].std())
    picture, _ = SlideView(slide, mpp=(1.0, 1.0), target_mpp=1.0).thumbnail_with_remarks(_THUMBNAIL)
    scale = (width / picture.shape[1], height / picture.shape[0])
    green = picture[..., 1].astype(np.float32)
    window = (max(1, round(SIDE / scale[0])), max(1, round(SIDE / scale[1])))
    window = (min(window[0], green.shape[1]), min(window[1], green.shape[0]))
    spread = cv2.blur(green * green, window) - cv2.blur(green, window) ** 2
    row, column = np.unravel_index(int(spread.argmax()), spread.shape)
    return round(left + (float(column) + 0.5) * scale[0]), round(top + (float(row) + 0.5) * scale[1])


def _difference(opened: _Opened, region: Region, pixels: Rgb8, first: ReaderView) -> Difference | None:
    """Return how a reader sees a region, or None where it has no such level."""
    level = _same_level(opened.slide.level_sizes, first.level_sizes, region.level)
    if level is None:
        return None
    x, y, width, height = region.box
    full = opened.slide.level_sizes[level]
    width, height = min(width, full[0] - x), min(height, full[1] - y)  # a level may be rounded to a pixel less
    seen, pixels = opened.read(x, y, width, height, level=level), pixels[:height, :width]
    gap = np.abs(seen.astype(np.int16) - pixels)
    turned = float(np.abs(seen[..., ::-1].astype(np.int16) - pixels).mean())
    mean = float(gap.mean())
    exchanged = mean > SAME_COLOUR and turned < mean / 4
    return Difference(region, int(gap.max()), round(mean, 2), _shift(pixels, seen), exchanged)


def _same_level(sizes: tuple[Size, ...], wanted: tuple[Size, ...], level: int) -> int | None:
    """Return the number of a level that shrinks as much as one of the first reader, or None."""
    ratio = level_ratios(wanted)[level]
    return next((i for i, own in enumerate(level_ratios(sizes)) if apart(own, ratio) < 1.01), None)


def _shift(pixels: Rgb8, seen: Rgb8) -> tuple[float, float] | None:
    """Return by how many pixels ``(x, y)`` a picture is shifted, to a tenth; None where there is little to see."""
    grey, other = (picture.mean(axis=2, dtype=np.float32) for picture in (pixels, seen))
    if min(float(grey.std()), float(other.std())) < _CONTRAST or min(grey.shape) < 4 * _FAR:
        return None
    inner = other[_FAR:-_FAR, _FAR:-_FAR]
    score = cv2.matchTemplate(grey, inner, cv2.TM_CCOEFF_NORMED)
    row, column = (int(value) for value in np.unravel_index(int(score.argmax()), score.shape))
    x, y = (_peak(line, at) for line, at in ((score[row], column), (score[:, column], row)))
    return round(_FAR - x, 1) + 0.0, round(_FAR - y, 1) + 0.0


def _peak(line: NDArray[np.float32], at: int) -> float:
    """Return where a parabola through a maximum and its neighbours has its peak."""
    if not 0 < at < len(line) - 1:
        return float(at)
    before, top, after = (float(value) for value in line[at - 1 : at + 2])
    bend = before - 2 * top + after
    return at + (0.5 * (before - after) / bend if bend < 0 else 0.0)
