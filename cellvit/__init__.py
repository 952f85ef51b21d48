"""cellvit finds, outlines and types every cell nucleus in H&E-stained tissue.

Names are imported on first use, so ``import cellvit`` is quick and pulls in nothing that is not needed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
