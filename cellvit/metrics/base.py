"""The registry of metrics."""

from torchmetrics import Metric

from cellvit.registry import Registry

METRICS: Registry[Metric] = Registry("metric", Metric, package="cellvit.metrics")
