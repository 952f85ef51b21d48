"""Encoders: what turns an image into feature maps. Importing this package registers them."""

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.hybrid import HybridEncoder
from cellvit.encoders.timm import TimmEncoder
from cellvit.encoders.vit import ViTEncoder

__all__ = ["ENCODERS", "Encoder", "HybridEncoder", "TimmEncoder", "ViTEncoder"]
