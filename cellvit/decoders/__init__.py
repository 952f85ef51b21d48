"""Decoders: what turns feature maps into one full-resolution map per branch. Importing registers them."""

from cellvit.decoders.base import DECODERS, Decoder
from cellvit.decoders.subpixel import SubpixelDecoder
from cellvit.decoders.unetr import UNETRDecoder

__all__ = ["DECODERS", "Decoder", "SubpixelDecoder", "UNETRDecoder"]
