"""The pixels of labelled nuclei, sorted by nucleus: what every measurement of a tile starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError, ImageError
from cellvit.io.images import Rgb8
from cellvit.measurement.stains import RUIFROK, Stains
from cellvit.types import IntMap

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

USUAL_MPP = 0.25
"""Microns per pixel at which microns become pixels where the resolution is not known."""


class Groups:
    """Values of many nuclei in one array, nucleus after nucleus, each of at least one value.

    Args:
        sizes: ``(K,)`` values of each, from 1.

    Attributes:
        sizes: The sizes.
        starts: ``(K,)`` number of the first value of each.
    """

    def __init__(self, sizes: Ints) -> None:
        self.sizes = sizes
        self.starts = np.cumsum(sizes) - sizes

    @cached_property
    def owner(self) -> Ints:
        """Number of the nucleus of every value."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def sum(self, values: NDArray[Any]) -> Floats:
        """Return the sum of every nucleus ``(K,)`` from values in order."""
        if not len(self.sizes):
            return np.zeros(0)
        return np.asarray(np.add.reduceat(values, self.starts, dtype=np.float64))

    def mean(self, values: NDArray[Any]) -> Floats:
        """Return the mean of every nucleus ``(K,)``."""
        return self.sum(values) / self.sizes

    def mean_and_sd(self, values: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the mean and the standard deviation of the population of every nucleus, each ``(K,)``."""
        mean = self.mean(values)
        return mean, np.sqrt(self.mean((values - mean[self.owner]) ** 2))

    def percentiles(self, values: NDArray[np.float32], percents: Sequence[float]) -> list[Floats]:
        """Return percentiles of every nucleus, each ``(K,)``, linear between values as :func:`numpy.percentile` has it.

        Args:
            values: From 0, in order.
            percents: Each in [0, 100].
        """
        # the bits of floats from 0 order as the floats do, so one sort of whole numbers orders within nuclei
        keys = self.owner.astype(np.uint64) << np.uint64(32)
        keys |= np.ascontiguousarray(values, np.float32).view(np.uint32)
        keys.sort()
        ordered = keys.astype(np.uint32).view(np.float32).astype(np.float64)
        found = []
        for percent in percents:
            place = self.starts + (self.sizes - 1) * (percent / 100)
            low = np.floor(place).astype(np.int64)
            high = np.minimum(low + 1, self.starts + self.sizes - 1)
            found.append(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
        return found


@dataclass(frozen=True)
class LabelledPixels:
    """An image and the nuclei in it.

    Attributes:
        labels: ``(H, W)`` int32, 0 is background; nucleus ``i`` of the table is label ``i + 1``.
        image: ``(H, W, 3)`` uint8 RGB.
        count: Nuclei of the table; some may have no pixel.
        mpp: ``(x, y)`` microns per pixel; None where not known.
        stains: How the stains absorb.

    Raises:
        DataError: If a label is larger than the number of nuclei, or the map is of another form.
        ImageError: If the image has another size or form.
    """

    labels: IntMap
    image: Rgb8
    count: int
    mpp: tuple[float, float] | None = None
    stains: Stains = RUIFROK

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype.kind not in "iu":
            raise DataError(f"labels are {self.labels.dtype} {self.labels.shape}; give integers (H, W)")
        if self.image.dtype != np.uint8 or self.image.shape != (*self.labels.shape, 3):
            raise ImageError(
                f"image is {self.image.dtype} {self.image.shape}; give uint8 {(*self.labels.shape, 3)} RGB, as large "
                "as the labels"
            )
        low, high = self.labels.min(initial=0), self.labels.max(initial=0)
        if low < 0 or high > self.count:
            raise DataError(f"labels span {low} to {high} for {self.count} nuclei; number them 1 to {self.count}")

    @property
    def unit(self) -> str:
        """Unit of lengths, the end of names: ``"um"``, or ``"px"`` where the resolution is not known."""
        return "px" if self.mpp is None else "um"

    @property
    def spacing(self) -> tuple[float, float]:
        """``(x, y)`` lengths of a pixel in that unit."""
        return (1.0, 1.0) if self.mpp is None else self.mpp

    def pixels_of(self, microns: float) -> float:
        """Return a length in pixels; where the resolution is not known, at the usual one."""
        across, down = (USUAL_MPP, USUAL_MPP) if self.mpp is None else self.mpp
        return float(microns / np.sqrt(across * down))

    @cached_property
    def place(self) -> NDArray[np.intp]:
        """``(P,)`` flat positions of the pixels of nuclei: nucleus after nucleus, each in reading order."""
        flat = np.flatnonzero(self.labels)
        label = self.labels.reshape(-1)[flat]
        if self.count < 2**16:
            label = label.astype(np.uint16)  # of these numpy sorts in linear time
        return flat[np.argsort(label, kind="stable")]

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """``(K,)`` rows of the table that have pixels."""
        return np.flatnonzero(self._sizes)

    @cached_property
    def groups(self) -> Groups:
        """The pixels of each of :attr:`rows`."""
        return Groups(self._sizes[self.rows])

    @cached_property
    def _sizes(self) -> Ints:
        return np.bincount(self.labels.reshape(-1), minlength=self.count + 1)[1:].astype(np.int64)

    @cached_property
    def stain_density(self) -> NDArray[np.float32]:
        """``(2, H, W)`` optical densities of haematoxylin and eosin, from 0."""
        return self.stains.separate(self.image)

    def spread(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return values ``(K,)`` of nuclei that have pixels as a column of the table ``(N,)``; NaN for the others."""
        column = np.full(self.count, np.nan, np.float32)
        column[self.rows] = values
        return column
