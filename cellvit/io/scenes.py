"""Which image of a TIFF is meant: overviews, labels, smaller levels and several scenes may lie in one file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cellvit.errors import ImageError

if TYPE_CHECKING:  # the library is loaded when the first file is read
    from tifffile import TiffFile

SceneName = int | str
"""How an image of a file is chosen: its number in the file from 0, or its name."""

MIN_RATIO = 1.2
"""Between the sides of two levels of a pyramid, at least."""

_FULL = 0.5  # share of the largest image's area from which another image is a scene as well
_NOTABLE = 0.05  # share from which another image is told
_SHOWN = 8
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
_COMPANION = re.compile(r"^\s*(label|macro|overview|thumbnail|barcode|preview|slide ?preview)\b", re.I | re.M)


class SeveralImagesError(ImageError):
    """A file holds several images of full size, and none is chosen.

    Args:
        text: The message.
        scenes: These images.
    """

    def __init__(self, text: str, scenes: "Sequence[Measured]" = ()) -> None:
        super().__init__(text)
        self.scenes = tuple(scenes)


class Named(Protocol):
    """An image of a file that can be chosen; as text, it is number, name and size."""

    @property
    def index(self) -> int:
        """Its number in the file, from 0."""

    @property
    def name(self) -> str:
        """What the file calls it; may be empty."""


Choice = TypeVar("Choice", bound=Named)


class Measured(Named, Protocol):
    """One of which can be told whether it is the largest; :class:`Scene` says what each attribute is."""

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)``."""

    @property
    def area(self) -> int:
        """Number of pixels."""

    @property
    def companion(self) -> bool:
        """Whether it is a label, an overview, a mask or the like."""

    @property
    def reduced(self) -> bool:
        """Whether it is a smaller copy of another image."""


Largest = TypeVar("Largest", bound=Measured)


@dataclass(frozen=True)
class Scene:
    """An image of a file.

    Attributes:
        index: Its number in the file, from 0.
        name: What the file calls it; may be empty.
        series: Number of the series of tifffile it belongs to.
        levels: The image in all its sizes, as series of tifffile, the largest first.
        companion: Whether the file says that it is a label, an overview, a mask or the like.
        reduced: Whether the file says that it is a smaller copy of another image.
    """

    index: int
    name: str
    series: int
    levels: tuple[Any, ...]
    companion: bool
    reduced: bool

    @property
    def page(self) -> Any:
        """First page of its largest size."""
        return self.levels[0].keyframe

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)``."""
        return self.page.imagewidth, self.page.imagelength

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.size[0] * self.size[1]

    def __str__(self) -> str:
        """Return number, name and size."""
        return scene_text(self.index, self.name, self.size)


@dataclass(frozen=True)
class PlainScene:
    """An image of a file or a store that is no TIFF; :class:`Scene` says what each attribute is."""

    index: int
    name: str
    size: tuple[int, int]
    companion: bool = False
    reduced: bool = False

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.size[0] * self.size[1]

    def __str__(self) -> str:
        """Return number, name and size."""
        return scene_text(self.index, self.name, self.size)


def scene_text(index: int, name: str, size: tuple[int, int]) -> str:
    """Return how a message calls an image of a file: number, name if it has one, and size.

    Args:
        index: Its number.
        name: Its name, or nothing.
        size: ``(width, height)`` in pixels.

    Example:
        >>> scene_text(1, "Slide 7", (512, 256))
        "1 'Slide 7' (512 x 256 px)"
    """
    return f"{index}{f' {name!r}' if name else ''} ({size[0]} x {size[1]} px)"


def is_companion(name: str) -> bool:
    """Tell whether an image is called a label, an overview, a thumbnail or the like.

    Args:
        name: What the file calls it.

    Example:
        >>> is_companion("Macro image"), is_companion("Slide 7")
        (True, False)
    """
    return _COMPANION.search(name) is not None


def tiff_scenes(tiff: "TiffFile") -> list[Scene]:
    """Return every image of a file in its order. Pages of one size that no metadata join are images of their own.

    Args:
        tiff: An open file.
    """
    scenes: list[Scene] = []
    for number, series in enumerate(tiff.series):
        for image in _apart(series, tiff):
            levels = tuple(sorted(image.levels, key=_area, reverse=True))
            page = levels[0].keyframe
            name = str(image.name or page.tags.valueof("PageName") or "").strip()
            kind = int(page.subfiletype or 0)
            companion = bool(kind & _MASK or _COMPANION.search(f"{name}\n{page.description[:2000]}"))
            scenes.append(Scene(len(scenes), name, number, levels, companion, bool(kind & _REDUCED)))
    return scenes


def choose_scene(scenes: Sequence[Largest], wanted: SceneName | None = None) -> tuple[Largest, list[str]]:
    """Return the image that is meant, and one sentence per image of some size that is not read.

    Without ``wanted`` it is the largest one, wherever it lies. Of several that are large, none is the right one.

    Args:
        scenes: From :func:`tiff_scenes`, or what another reader has instead.
        wanted: Number or name of the image, or None.

    Raises:
        ImageError: If there is no such image, or several are of full size and none is chosen.
    """
    if wanted is not None:
        return named_scene(scenes, wanted), []
    largest = max(scenes, key=lambda scene: (scene.area, -scene.index))
    others = [
        scene
        for scene in scenes
        if scene is not largest
        and not (scene.reduced or scene.companion)
        and not is_smaller(scene.size, largest.size)
        and scene.area >= _NOTABLE * largest.area
    ]
    full = [largest, *(scene for scene in others if scene.area >= _FULL * largest.area)]
    if len(full) > 1:
        raise SeveralImagesError(
            f"the file holds several images of full size: {listed(full)}; choose one by its number or its name, "
            f"such as scene={full[0].index}",
            full,
        )
    first = scenes[0]
    if first is not largest and not first.reduced and first not in others:
        others = [first, *others]
    if not others:
        return largest, []
    return largest, [
        f"of the {len(scenes)} images of the file the largest is read, {largest}, and not {listed(others)}; "
        f"another is chosen by its number or its name, such as scene={others[0].index}"
    ]


def is_smaller(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Tell whether a size has the proportions of an image and is smaller; labels and pictures of a slide have not.

    Args:
        size: ``(width, height)``.
        full: ``(width, height)`` of the image.

    Example:
        >>> [is_smaller(size, (1000, 801)) for size in ((500, 400), (500, 300), (990, 793))]
        [True, False, False]
    """
    width, height = size
    if full[0] < MIN_RATIO * width or full[1] < MIN_RATIO * height:
        return False
    # both sides were rounded to pixels: the ratios agree within what a pixel more or less makes
    low = max(full[0] / (width + 1), full[1] / (height + 1))
    high = min(full[0] / max(width - 1, 0.5), full[1] / max(height - 1, 0.5))
    return bool(low <= high)


def named_scene(scenes: Sequence[Choice], wanted: SceneName) -> Choice:
    """Return the image that a number or a name means.

    Args:
        scenes: Of a file.
        wanted: Its number or its name, in which capitals do not count where that is not needed.

    Raises:
        ImageError: If there is no such image, or several have the name.
    """
    text = str(wanted).strip()
    found = [scene for scene in scenes if scene.name == text] or [
        scene for scene in scenes if scene.name.casefold() == text.casefold()
    ]
    if isinstance(wanted, int) or not found:
        found = [scene for scene in scenes if str(scene.index) == text]
    if len(found) != 1:
        why = "is the name of several images" if found else "is not among the images"
        raise ImageError(f"scene {wanted!r} {why} of the file: {listed(scenes)}; choose one by its number")
    return found[0]


def listed(scenes: Sequence[Named]) -> str:
    """Return number, name and size of images of a file, of many the first.

    Args:
        scenes: The images.
    """
    more = f" and {len(scenes) - _SHOWN} more" if len(scenes) > _SHOWN else ""
    return ", ".join(str(scene) for scene in scenes[:_SHOWN]) + more


def _area(series: Any) -> int:
    return int(series.keyframe.imagewidth) * int(series.keyframe.imagelength)


def _apart(series: Any, tiff: "TiffFile") -> Iterator[Any]:
    """Yield a series, or each of its pages where only their equal size made them one."""
    if series.kind != "generic" or series.axes[:1] != "I" or len(series.pages) != series.shape[0]:
        yield series
        return
    from tifffile import TiffPageSeries

    for page in series.pages:
        frame = page.keyframe
        yield TiffPageSeries([page], shape=frame.shape, dtype=frame.dtype, axes=frame.axes, parent=tiff, kind="generic")
