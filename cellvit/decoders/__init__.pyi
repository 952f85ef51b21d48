from .base import DECODERS as DECODERS
from .base import Decoder as Decoder
from .pyramid import PyramidDecoder as PyramidDecoder
from .subpixel import SubpixelDecoder as SubpixelDecoder
from .unetr import UNETRDecoder as UNETRDecoder
