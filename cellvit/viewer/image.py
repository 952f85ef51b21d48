"""Tiles of a slide or an image at every power of two of its size, as Deep Zoom counts them."""

import io
import math
import weakref
from functools import partial
from itertools import product

import numpy as np
from PIL import Image

from cellvit.io.images import Rgb8
from cellvit.slide.damage import Undamaged
from cellvit.slide.open import Slide
from cellvit.slide.resampling import Levels, Resampled, best_level, ratios_of
from cellvit.viewer.cache import BoundedCache

TILE = 512
"""Side of a tile in pixels."""

_QUALITY = 85
_PIECE = 64  # pixels; smaller damaged places are not told apart
_SMALL_LEVEL = 9  # the whole slide in one tile
_MOST_SOURCE = 2**24  # pixels that are read for a tile; of more it is put together from smaller ones
_SLOW_PIXELS = 2**26  # to be read for the whole slide
_ALL_BYTES = 32_000_000


class DeepZoom:
    """The pixels of a slide in tiles; it is closed when nobody holds this any more. Threads may read at the same time.

    Level ``max_level`` is full resolution, and each level below is half as large, down to one pixel.

    Args:
        slide: The slide, or an image opened as one.
        kept: Keeps tiles that were made last.
        name: Of the slide among those that share the tiles.

    Attributes:
        width: Level-0 pixels.
        height: Level-0 pixels.
        max_level: Number of the level of full resolution.
    """

    def __init__(self, slide: Slide, *, kept: BoundedCache[bytes] | None = None, name: str = "") -> None:
        self._slide, self._name = slide, name
        self._kept: BoundedCache[bytes] = BoundedCache(_ALL_BYTES, len) if kept is None else kept
        self.width, self.height = slide.level_sizes[0]
        self.max_level = max(1, math.ceil(math.log2(max(self.width, self.height))))
        weakref.finalize(self, slide.close)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Return the ``(x, y)`` micrometres per pixel that the file states."""
        return self._slide.stated_mpp

    @property
    def note(self) -> str:
        """Return what a viewer should know of the pixels; empty if nothing."""
        said = list(self._slide.warnings)
        if math.prod(self._slide.level_sizes[self._source(min(_SMALL_LEVEL, self.max_level))]) > _SLOW_PIXELS:
            said.append(
                "the file holds no small copies of the image: the first view of the whole takes long; a pyramidal "
                "TIFF is quick"
            )
        return " ".join(said)

    def size(self, level: int) -> tuple[int, int]:
        """Return the width and height of a level in its pixels."""
        factor = 2 ** (self.max_level - level)
        return -(-self.width // factor), -(-self.height // factor)

    def level_within(self, side: int) -> int:
        """Return the finest level of at most so many pixels along a side."""
        return max(level for level in range(self.max_level + 1) if max(self.size(level)) <= side)

    def has(self, level: int, column: int, row: int) -> bool:
        """Tell whether there is such a tile."""
        if not (0 <= level <= self.max_level and column >= 0 and row >= 0):
            return False
        width, height = self.size(level)
        return column * TILE < width and row * TILE < height

    def pixels(self, level: int, column: int, row: int) -> Rgb8:
        """Return a tile ``(h, w, 3)``; smaller than :data:`TILE` at the right and at the bottom.

        A place that is damaged is shown as another level has it, and white where none has.

        Args:
            level: From 0 to ``max_level``.
            column: From 0.
            row: From 0; see :meth:`has`.

        Raises:
            ImageError: If little or nothing can be read.
        """
        factor, size, source = 2 ** (self.max_level - level), self.size(level), self._source(level)
        x, y = column * TILE, row * TILE
        width, height = min(TILE, size[0] - x), min(TILE, size[1] - y)
        across, down = ratios_of(self._slide)[source]
        if level < self.max_level and width * height * factor**2 / (across * down) > _MOST_SOURCE:
            return self._joined(level, column, row, (width, height))
        sound = Undamaged(_Whole(self._slide, (size[0] * factor, size[1] * factor)), piece=_PIECE)
        return Resampled(sound, size=size, level=source).read(x, y, width, height)

    def jpeg(self, level: int, column: int, row: int) -> bytes:
        """Return a tile as :meth:`pixels` does, as JPEG, kept or made."""
        make = partial(self._jpeg, level, column, row)
        return self._kept.get((self._name, level, column, row), make)

    def thumbnail(self) -> bytes:
        """Return the whole slide as JPEG of at most :data:`TILE` pixels along a side."""
        return self.jpeg(min(_SMALL_LEVEL, self.max_level), 0, 0)

    def _jpeg(self, level: int, column: int, row: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels(level, column, row)).save(buffer, format="JPEG", quality=_QUALITY)
        return buffer.getvalue()

    def _joined(self, level: int, column: int, row: int, size: tuple[int, int]) -> Rgb8:
        """Return a tile made from the four of the next level: so a slide without small copies is read once only."""
        twice = Image.new("RGB", (2 * size[0], 2 * size[1]), "white")
        for right, below in product((0, 1), (0, 1)):
            if self.has(level + 1, 2 * column + right, 2 * row + below):
                content = self.jpeg(level + 1, 2 * column + right, 2 * row + below)
                with Image.open(io.BytesIO(content)) as part:
                    twice.paste(part, (right * TILE, below * TILE))
        return np.asarray(twice.resize(size, Image.Resampling.BOX))

    def _source(self, level: int) -> int:
        """Return the level of the file that a level is made from."""
        factor = 2 ** (self.max_level - level)
        return best_level(self._slide.level_sizes, (factor, factor))


class _Whole:
    """A slide of which all counts, not only what was scanned; its size is filled up to whole pixels of a level."""

    def __init__(self, slide: Levels, size: tuple[int, int]) -> None:
        self._slide = slide
        self.level_sizes = slide.level_sizes
        self.level_ratios = ratios_of(slide)
        self.bounds = (0, 0, *size)

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        return self._slide.read_region(x, y, width, height, level=level)
