"""The contract of measurements and their registry."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from cellvit.measurement.pixels import LabelledPixels
from cellvit.plugins.registry import Registry

Columns = dict[str, NDArray[np.float32]]


class Measurement(ABC):
    """Measures all nuclei of an image at once; a group of columns of the table."""

    @abstractmethod
    def __call__(self, pixels: LabelledPixels) -> Columns:
        """Measure nuclei.

        Args:
            pixels: The image and its nuclei.

        Returns:
            ``(N,)`` float32 by name, the same names for any image of the same unit, also without nuclei. NaN is a value
            that is not known. Names of lengths and areas end in the unit.
        """


OWN = {"shape": "shape", "stain": "stain", "texture": "texture"}
"""Module that registers each name of ours; it is imported when the name is asked for."""

MEASUREMENTS: Registry[Measurement] = Registry("measurement", Measurement, package="cellvit.measurement", own=OWN)
"""Kinds of measurements by name."""
