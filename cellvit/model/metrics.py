"""The metrics of a model: which there are, what each is given, and their results under one set of names."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cellvit.metrics.base import METRICS, NucleiMetric
from cellvit.model.build import build_metric, true_nuclei
from cellvit.plugins.components import ComponentSpec
from cellvit.types import NUCLEI_BINARY_MAP, TISSUE_TYPES, Batch, NucleiPrediction


class ModelScores(nn.Module):
    """Every metric of a model.

    Metrics on nuclei are the user's choice; the overlap of the binary map and the accuracy of the tissue are there
    where the model has the head.

    Args:
        metrics: Metrics on nuclei; see :data:`cellvit.plugins.components.ComponentSpec`.
        class_names: Names of the nucleus types, background first.
        tissue_names: Names of the tissues; may be empty.
        branches: Names of the model's heads.

    Raises:
        ConfigError: If one of them is no metric on nuclei.
    """

    def __init__(
        self,
        metrics: Sequence[ComponentSpec],
        *,
        class_names: Sequence[str],
        tissue_names: Sequence[str],
        branches: Collection[str],
    ) -> None:
        super().__init__()
        self.nuclei = nn.ModuleList(build_metric(spec, class_names, tissue_names) for spec in metrics)
        self.binary = METRICS.get("binary-overlap")() if NUCLEI_BINARY_MAP in branches else None
        self.tissue = METRICS.get("tissue-accuracy")() if TISSUE_TYPES in branches else None

    def update(self, batch: Batch, maps: Mapping[str, Tensor], predictions: Sequence[NucleiPrediction]) -> None:
        """Add one batch.

        Args:
            batch: The truth. Items whose ``valid`` is False only fill up a process's share and are left out.
            maps: Activated maps of the batch.
            predictions: Nuclei found, one per item.
        """
        tissues = batch["tissue_types"]
        valid = batch.get("valid", torch.ones_like(tissues, dtype=torch.bool))
        if self.binary is not None:
            nucleus = maps[NUCLEI_BINARY_MAP].argmax(1)
            self.binary.update(nucleus, batch["nuclei_binary_map"], valid=valid)
        if self.tissue is not None:
            self.tissue.update(maps[TISSUE_TYPES], tissues, valid=valid)
        rows = zip(predictions, true_nuclei(batch), tissues.tolist(), valid.tolist(), strict=True)
        for pred, target, tissue, counts in rows:
            if counts:
                for metric in self.nuclei:
                    cast(NucleiMetric, metric).update_nuclei(pred, target, tissue=tissue)

    def compute(self) -> dict[str, Tensor]:
        """Return all scores by name, over all processes, and start anew."""
        scores: dict[str, Tensor] = {}
        for metric in (*self.nuclei, self.binary, self.tissue):
            if metric is not None:
                scores |= {name: value.float() for name, value in metric.compute().items()}
                metric.reset()
        return scores
