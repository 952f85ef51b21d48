"""The scanned part of a slide at the resolution of a model, without ever being in memory as a whole."""

import warnings
from dataclasses import replace

import numpy as np
from PIL import Image

from cellvit.errors import ConfigError
from cellvit.io.images import Rgb8
from cellvit.slide.damage import Undamaged
from cellvit.slide.resampling import Levels, Resampled, best_level, ratios_of
from cellvit.types import Nuclei

SAME_MPP = 0.05
"""A slide within this share of the wanted resolution is used as it is: resampling would only blur it."""

_PIECE, _PIECE_STEPS = 64, 8  # smallest damaged place that is told apart, in pixels of the level and of the picture

MIN_SCALE, MAX_SCALE = 1 / 32, 4.0
"""Strongest reduction and enlargement."""


class SlideView:
    """The scanned part of a slide, resampled as it is read.

    Args:
        slide: The slide.
        mpp: ``(x, y)`` micrometres per pixel of full resolution.
        target_mpp: Micrometres per pixel that are wanted.

    Attributes:
        slide: The slide.
        width: Pixels of the view.
        height: Pixels of the view.
        scale: ``(x, y)`` view pixels per level-0 pixel.
        level: Pyramid level it reads from.

    Raises:
        ConfigError: If the two resolutions are too far apart.
    """

    def __init__(self, slide: Levels, *, mpp: tuple[float, float], target_mpp: float) -> None:
        self.slide = slide
        wanted = _scale(mpp, target_mpp)
        full = slide.bounds[2:]
        self.width, self.height = (max(1, round(side * part)) for side, part in zip(full, wanted, strict=True))
        self.scale = (self.width / full[0], self.height / full[1])
        self.level = best_level(slide.level_sizes, (1 / wanted[0], 1 / wanted[1]))
        self._picture = Resampled(slide, size=(self.width, self.height), level=self.level)

    def read(self, x: int, y: int, width: int, height: int) -> Rgb8:
        """Return a part of the view. Threads may read at the same time; a pixel does not depend on the part.

        Args:
            x: Left edge in pixels of the view.
            y: Top edge.
            width: Pixels of the view, from 1; the part lies inside.
            height: Pixels of the view, from 1; the part lies inside.

        Returns:
            ``(height, width, 3)`` uint8.

        Raises:
            ConfigError: If the part does not lie inside.
            ImageError: If the image data there are damaged.
        """
        if min(x, y) < 0 or min(width, height) < 1 or x + width > self.width or y + height > self.height:
            raise ConfigError(
                f"a part of {width} x {height} px at x={x}, y={y} does not lie inside a view of "
                f"{self.width} x {self.height} px; cut it off at the edges"
            )
        return self._picture.read(x, y, width, height)

    def to_level0(self, nuclei: Nuclei) -> Nuclei:
        """Return nuclei found in the view in level-0 pixels of the slide.

        Args:
            nuclei: In pixels of the view.
        """
        left, top, width, height = self.slide.bounds
        placed = nuclei.transform(scale=(1 / self.scale[0], 1 / self.scale[1]), shift=(left, top))
        # a rounding error outside at the far edges otherwise
        low, high = np.array([left, top]), np.array([left + width, top + height])
        inside = np.clip(placed.bbox, np.tile(low, 2), np.tile(high, 2))
        return replace(placed, bbox=inside, contour_points=np.clip(placed.contour_points, low, high))

    def thumbnail(self, max_side: int = 2048) -> Rgb8:
        """Return the whole scanned part as a small picture; memory is bounded however large the slide is.

        What is damaged in one level is taken from another, and white where no level has it; both are a warning.

        Args:
            max_side: Its longer side in pixels, at most; it is never larger than full resolution.

        Raises:
            ImageError: If nothing, or little, can be read.
        """
        picture, remarks = self.thumbnail_with_remarks(max_side)
        for text in remarks:
            warnings.warn(text, stacklevel=2)
        return picture

    def thumbnail_with_remarks(self, max_side: int = 2048) -> tuple[Rgb8, list[str]]:
        """Return what :meth:`thumbnail` returns, and a sentence per kind of damage instead of a warning.

        Args:
            max_side: Its longer side in pixels, at most.

        Raises:
            ImageError: If nothing, or little, can be read.
        """
        full = self.slide.bounds[2:]
        shrink = min(1.0, max_side / max(full))
        size = (max(1, round(full[0] * shrink)), max(1, round(full[1] * shrink)))
        pixel = (full[0] / size[0], full[1] / size[1])
        level = best_level(self.slide.level_sizes, pixel)
        step = max(pixel) / max(ratios_of(self.slide)[level])
        sound = Undamaged(self.slide, piece=max(_PIECE, round(_PIECE_STEPS * step)))
        picture = Resampled(sound, size=size, level=level, filter=Image.Resampling.HAMMING).read(0, 0, *size)
        return picture, sound.remarks(level)


def _scale(mpp: tuple[float, float], target_mpp: float) -> tuple[float, float]:
    """Return the view pixels per level-0 pixel that are wanted; exactly 1 where the resolutions are nearly the same."""
    scale = (mpp[0] / target_mpp, mpp[1] / target_mpp)
    if not all(MIN_SCALE <= part <= MAX_SCALE for part in scale):  # also refuses nan
        usable = f"{target_mpp * MIN_SCALE:.3g} to {target_mpp * MAX_SCALE:.3g}"
        raise ConfigError(
            f"a slide of {mpp[0]:.4g} x {mpp[1]:.4g} µm/px is too far from the model's {target_mpp:g}; "
            f"this model takes {usable} µm/px"
        )
    return (1.0, 1.0) if all(abs(part - 1) <= SAME_MPP for part in scale) else scale
