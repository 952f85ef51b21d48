"""Metrics as pure functions on numpy arrays of one image."""

from cellvit.metrics.functional.detection import (
    CentroidMatch,
    DetectionScore,
    TypeCounts,
    detection_scores,
    match_centroids,
    pairs_within,
    type_counts,
    type_detection_scores,
)
from cellvit.metrics.functional.instances import InstanceOverlaps, drop_background, instance_overlaps
from cellvit.metrics.functional.overlap import aggregated_jaccard, dice, jaccard
from cellvit.metrics.functional.panoptic import (
    InstanceMatch,
    PanopticScore,
    TypedPanopticScore,
    label_iou,
    match_instances,
    panoptic_quality,
    typed_panoptic_quality,
)

__all__ = [
    "CentroidMatch",
    "DetectionScore",
    "InstanceMatch",
    "InstanceOverlaps",
    "PanopticScore",
    "TypeCounts",
    "TypedPanopticScore",
    "aggregated_jaccard",
    "detection_scores",
    "dice",
    "drop_background",
    "instance_overlaps",
    "jaccard",
    "label_iou",
    "match_centroids",
    "match_instances",
    "pairs_within",
    "panoptic_quality",
    "type_counts",
    "type_detection_scores",
    "typed_panoptic_quality",
]
