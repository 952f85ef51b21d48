"""Postprocessors: from the maps of the network to nuclei.

Importing this package registers our own postprocessors, ``hv-watershed`` and ``star-nms``.
:func:`nuclei_from_instances` measures any instance map, also a ground truth, so that both sides of a comparison are
made by the same rules.
"""

from cellvit.postprocess.base import POSTPROCESSORS, Postprocessor
from cellvit.postprocess.hv import HVPostprocessor
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.postprocess.star import StarPostprocessor

__all__ = ["POSTPROCESSORS", "HVPostprocessor", "Postprocessor", "StarPostprocessor", "nuclei_from_instances"]
