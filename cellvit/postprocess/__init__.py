"""Postprocessors: from the maps of the network to nuclei. Names are imported on first use.

:func:`nuclei_from_instances` measures any instance map, also a ground truth, so that both sides of a comparison are
made by the same rules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
