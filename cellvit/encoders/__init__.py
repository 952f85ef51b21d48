"""Encoders: what turns an image into feature maps. Importing this package registers them."""

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.foundation import FOUNDATION, FoundationEncoder, FoundationModel
from cellvit.encoders.hybrid import HybridEncoder
from cellvit.encoders.lora import LoRAEncoder
from cellvit.encoders.pretrained import load_encoder_weights
from cellvit.encoders.sam import SAMEncoder, SAMHugeEncoder, SAMLargeEncoder
from cellvit.encoders.timm import TimmEncoder
from cellvit.encoders.vit import ViTEncoder

__all__ = [
    "ENCODERS",
    "FOUNDATION",
    "Encoder",
    "FoundationEncoder",
    "FoundationModel",
    "HybridEncoder",
    "LoRAEncoder",
    "SAMEncoder",
    "SAMHugeEncoder",
    "SAMLargeEncoder",
    "TimmEncoder",
    "ViTEncoder",
    "load_encoder_weights",
]
