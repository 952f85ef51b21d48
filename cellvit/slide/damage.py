"""Reading around damage: a place that one level of a slide has lost is taken from another level, or left out."""

import math

import numpy as np
from PIL import Image

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.images import Rgb8, one_line
from cellvit.slide.resampling import Levels, ratios_of, resize_box

_MOST_PLACES = 4096  # a slide that has lost more of a level is not worth the time
_HOPELESS = 64  # places that cannot be read before any that can


class Undamaged:
    """The levels of a slide without the places that cannot be read.

    Such a place is cut up as long as parts of it can be read. The rest comes from the next level that has it, finer
    ones first, and is white where none has.

    Args:
        slide: The slide.
        piece: Side in pixels of a level below which a place is not cut up further, 1 or more.

    Attributes:
        replaced: Places that came from another level, ``(x, y)`` in level-0 pixels.
        lost: Places that no level has.
        level_ratios: Those of the slide.
    """

    def __init__(self, slide: Levels, *, piece: int) -> None:
        self._slide, self._piece, self._good = slide, piece, False
        self.level_ratios = ratios_of(slide)
        self.replaced: list[tuple[int, int]] = []
        self.lost: list[tuple[int, int]] = []
        self._levels: set[int] = set()
        self._why = ""

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """``(width, height)`` per level, full resolution first."""
        return self._slide.level_sizes

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """``(x, y, width, height)`` of the scanned part, level-0 pixels."""
        return self._slide.bounds

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return ``(height, width, 3)`` of a level.

        Args:
            x: Left edge in pixels of that level.
            y: Top edge.
            width: At least 1.
            height: At least 1.
            level: Number of the level.

        Raises:
            ImageError: If nothing of the level can be read, or very many places cannot.
        """
        try:
            found = self._slide.read_region(x, y, width, height, level=level)
        except SourceLostError:
            raise
        except ImageError as error:
            if max(width, height) <= self._piece:
                return self._instead(x, y, width, height, level, error)
        else:
            self._good = True
            return found
        if width >= height:
            half = width // 2
            parts = [(x, y, half, height), (x + half, y, width - half, height)]
        else:
            half = height // 2
            parts = [(x, y, width, half), (x, y + half, width, height - half)]
        return np.concatenate([self.read_region(*part, level=level) for part in parts], axis=int(width >= height))

    def remarks(self, level: int) -> list[str]:
        """Return one sentence about what came from elsewhere, and one about what is missing.

        Args:
            level: The level that was read.
        """
        said = []
        if self.replaced:
            levels = " and ".join(str(other) for other in sorted(self._levels))
            said.append(
                f"level {level} is damaged at {_places(self.replaced)} ({self._why}); the small picture in which "
                f"tissue is found takes that from level {levels}"
            )
        if self.lost:
            said.append(
                f"the slide is damaged at {_places(self.lost)} ({self._why}); that is white in the small picture in "
                "which tissue is found, and not searched unless tissue surrounds it; copy or export the slide again"
            )
        return said

    def _instead(self, x: int, y: int, width: int, height: int, level: int, error: ImageError) -> Rgb8:
        """Return a place from another level, or white."""
        self._why = self._why or one_line(error.__cause__ or error)
        failed = len(self.replaced) + len(self.lost)
        if failed >= _MOST_PLACES or (failed >= _HOPELESS and not self._good):
            raise error
        place = (round(x * self.level_ratios[level][0]), round(y * self.level_ratios[level][1]))
        for other in [*range(level - 1, -1, -1), *range(level + 1, len(self.level_ratios))]:
            try:
                found = self._from(other, (x, y, width, height), level)
            except SourceLostError:
                raise
            except ImageError:
                continue
            self.replaced.append(place)
            self._levels.add(other)
            return found
        self.lost.append(place)
        return np.full((height, width, 3), 255, np.uint8)

    def _from(self, other: int, box: tuple[int, int, int, int], level: int) -> Rgb8:
        """Return a place of a level as another level shows it."""
        x, y, width, height = box
        across, down = (
            mine / its for mine, its in zip(self.level_ratios[level], self.level_ratios[other], strict=True)
        )
        left, top, right, bottom = x * across, y * down, (x + width) * across, (y + height) * down
        x0, y0 = math.floor(left), math.floor(top)
        size = (max(1, math.ceil(right) - x0), max(1, math.ceil(bottom) - y0))
        found = self._slide.read_region(x0, y0, *size, level=other)
        edges = (left - x0, top - y0, right - x0, bottom - y0)
        return resize_box(found, (width, height), edges, filter=Image.Resampling.HAMMING)


def _places(places: list[tuple[int, int]]) -> str:
    x, y = places[0]
    return f"x={x}, y={y}" if len(places) == 1 else f"{len(places)} places, the first at x={x}, y={y}"
