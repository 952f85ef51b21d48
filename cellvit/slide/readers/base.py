"""The base class of what reads slides, and the registry of readers: a new format is one file with one class.

A reader says which files it takes (:meth:`SlideReader.accepts`), opens one, and returns regions that lie inside it;
the checks of a region, white around the slide and closing are done here. ``READERS.register("name")``, or an entry
point in the group ``cellvit.readers``, makes :func:`cellvit.slide.open.open_slide` ask it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np

from cellvit.errors import ConfigError, ImageError
from cellvit.io.images import Rgb8
from cellvit.io.resolution import StatedResolution
from cellvit.plugins.registry import Registry

Size = tuple[int, int]
Box = tuple[int, int, int, int]

LARGE = 2**26
"""Pixels (67 million) above which any image is treated as a slide."""


_MOST_BYTES: ContextVar[int | None] = ContextVar("most_bytes", default=None)


@contextmanager
def small_caches(most: int) -> Iterator[None]:
    """Return a context in which slides are opened that keep little of what they have decoded.

    Args:
        most: Bytes for each slide.
    """
    token = _MOST_BYTES.set(most)
    try:
        yield
    finally:
        _MOST_BYTES.reset(token)


def cache_bytes(usual: int) -> int:
    """Return how much of what it has decoded a slide that is opened now may keep, in bytes.

    Args:
        usual: What its reader keeps where nobody asks for less.
    """
    most = _MOST_BYTES.get()
    return usual if most is None else min(usual, most)


class OtherReaderError(ImageError):
    """A reader cannot read a file that another reader may be able to read."""


class SlideReader(ABC):
    """A slide that is open; subclasses are opened with ``Reader(path)`` and read regions that lie inside.

    Attributes:
        reader: Name of the reader, for the record.
        suffixes: Suffixes by which files of its formats are found in a folder, lower case with the dot; those of
            :mod:`cellvit.slide.naming` are known anyway.
        priority: The reader with the highest number is asked first. OpenSlide has 30, TIFF 20, images read whole 10.
        scenes: Whether ``Reader(path, scene=...)`` chooses one of several images of a file.
        path: The file.
        level_sizes: ``(width, height)`` per level, full resolution first.
        bounds: ``(x, y, width, height)`` of the scanned part in level-0 pixels.
        stated_mpp: ``(x, y)`` micrometres per pixel as stated by the file, plausible values only.
        stated_magnification: Power of the objective as stated by the file.
        stated_place: Where in the file the resolution stands, such as "OME-XML"; empty where not known.
        resolution_notes: What the user should know about the resolution that the file states; see
            :class:`cellvit.io.resolution.StatedResolution`, which a reader may give in place of the two values.
        properties: What the file says about itself, for the record; nothing that names a patient or a user.
        warnings: What the user should know about the pixels; each is a sentence.
    """

    reader: str
    suffixes: ClassVar[frozenset[str]] = frozenset()
    priority: ClassVar[int] = 100
    scenes: ClassVar[bool] = False

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell whether this reader takes a file; unless overridden, by its suffix. Nothing is decoded.

        Args:
            path: A file that exists and is not empty.
        """
        return path.suffix.lower() in cls.suffixes

    @classmethod
    def is_slide(cls, path: Path) -> bool:
        """Tell whether a file that it accepts is a whole slide rather than an ordinary image.

        Args:
            path: The file.
        """
        return True

    def __init__(
        self,
        path: Path,
        *,
        level_sizes: tuple[Size, ...],
        bounds: Box | None = None,
        stated_mpp: tuple[float, float] | None = None,
        stated_magnification: float | None = None,
        resolution: StatedResolution | None = None,
        properties: Mapping[str, str] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.level_sizes = level_sizes
        self.bounds = bounds or (0, 0, *level_sizes[0])
        resolution = resolution or StatedResolution(stated_mpp, magnification=stated_magnification)
        self.stated_mpp = resolution.mpp
        self.stated_magnification = resolution.magnification
        self.stated_place = resolution.place
        self.resolution_notes = resolution.notes
        self.properties = dict(properties or {})
        self.warnings = tuple(warnings)
        self._closed = False

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a part of a level; what lies outside the slide is white. Threads may read at the same time.

        Args:
            x: Left edge in pixels of that level; may lie outside.
            y: Top edge.
            width: At least 1.
            height: At least 1.
            level: Number of the level, 0 is full resolution.

        Returns:
            ``(height, width, 3)`` uint8, a new array.

        Raises:
            ConfigError: If there is no such level, or the region is empty.
            ImageError: If the image data there are damaged, or the slide is closed.
        """
        if not 0 <= level < len(self.level_sizes):
            raise ConfigError(f"level {level} of a slide with {len(self.level_sizes)} levels; count from 0")
        if width < 1 or height < 1:
            raise ConfigError(f"a region of {width} x {height} px is empty; ask for 1 x 1 px or more")
        if self._closed:
            raise ImageError(f"slide {str(self.path)!r} is closed; open it again")
        full_width, full_height = self.level_sizes[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, full_width), min(y + height, full_height)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self._read(level, x, y, width, height)
        region = np.full((height, width, 3), 255, np.uint8)
        if left < right and top < bottom:
            inside = self._read(level, left, top, right - left, bottom - top)
            region[top - y : bottom - y, left - x : right - x] = inside
        return region

    @abstractmethod
    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        """Return a region that lies inside the level, as a new array."""

    def _damaged(self, level: int, box: Box, why: str) -> ImageError:
        """Return the error for image data that cannot be read, naming the place."""
        x, y, width, height = box
        return ImageError(
            f"slide {str(self.path)!r} is damaged within the {width} x {height} px at x={x}, y={y} of level {level} "
            f"({why}); copy or export it again"
        )

    def close(self) -> None:
        """Close the file; closing twice does nothing more."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


READERS: Registry[SlideReader] = Registry(
    "reader", SlideReader, package="cellvit.slide.readers", group="cellvit.readers"
)
