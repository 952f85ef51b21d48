"""Metrics: torchmetrics classes that keep sums, over the pure functions of :mod:`cellvit.metrics.functional`.

Names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
