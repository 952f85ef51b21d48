"""The contract of metrics on nuclei and its registry."""

from abc import abstractmethod

from torchmetrics import Metric

from cellvit.plugins.registry import Registry
from cellvit.types import NucleiPrediction


class NucleiMetric(Metric):
    """A metric that compares the nuclei found in one image with the true ones.

    States are sums, so that the result does not depend on batch size or number of processes. ``compute`` returns
    a flat ``dict[str, Tensor]`` of named scores.
    """

    full_state_update = False

    @abstractmethod
    def update_nuclei(self, pred: NucleiPrediction, target: NucleiPrediction, *, tissue: int = -1) -> None:
        """Add one image.

        Args:
            pred: Nuclei found.
            target: True nuclei; type -1 marks a nucleus whose type is unknown.
            tissue: Tissue id of the image; -1 if unknown.
        """


OWN = {
    "aggregated-jaccard": "overlap",
    "binary-overlap": "overlap",
    "centroid-detection": "detection",
    "panoptic-quality": "panoptic",
    "tissue-accuracy": "tissue",
}
"""Module that registers each name of ours; it is imported when the name is asked for."""

METRICS: Registry[Metric] = Registry("metric", Metric, package="cellvit.metrics", own=OWN)
"""Metrics by name."""
