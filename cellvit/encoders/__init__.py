"""Encoders: what turns an image into feature maps.

Names are imported on first use; :data:`ENCODERS` finds an encoder of ours by its short name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
