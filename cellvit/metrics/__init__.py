"""Metrics: torchmetrics classes that keep sums, over the pure functions of :mod:`cellvit.metrics.functional`."""

from cellvit.metrics.base import METRICS, NucleiMetric
from cellvit.metrics.detection import CentroidDetection
from cellvit.metrics.overlap import AggregatedJaccard, BinaryOverlap
from cellvit.metrics.panoptic import PanopticQuality
from cellvit.metrics.tissue import TissueAccuracy

__all__ = [
    "METRICS",
    "AggregatedJaccard",
    "BinaryOverlap",
    "CentroidDetection",
    "NucleiMetric",
    "PanopticQuality",
    "TissueAccuracy",
]
