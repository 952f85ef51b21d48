"""Heads: one branch each, with its output layer, activation and losses. Importing this package registers them."""

from cellvit.heads.base import HEADS, Head, HeadSizes, MapHead
from cellvit.heads.binary import BinaryHead
from cellvit.heads.hv import HVHead
from cellvit.heads.nuclei_type import NucleiTypeHead
from cellvit.heads.star import ObjectProbabilityHead, RadialDistancesHead
from cellvit.heads.tissue import TissueHead

__all__ = [
    "HEADS",
    "BinaryHead",
    "HVHead",
    "Head",
    "HeadSizes",
    "MapHead",
    "NucleiTypeHead",
    "ObjectProbabilityHead",
    "RadialDistancesHead",
    "TissueHead",
]
