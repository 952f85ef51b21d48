from .base import DECODERS as DECODERS
from .base import Decoder as Decoder
from .subpixel import SubpixelDecoder as SubpixelDecoder
from .unetr import UNETRDecoder as UNETRDecoder
