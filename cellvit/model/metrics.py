"""The metrics of a model: which there are, what each is given, and their results under one set of names."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cellvit.errors import ConfigError
from cellvit.metrics.base import METRICS, NucleiMetric
from cellvit.model.build import true_nuclei
from cellvit.plugins.components import ComponentSpec, build, keyword_names, normalise_spec, resolve
from cellvit.types import NUCLEI_BINARY_MAP, TISSUE_TYPES, Batch, NucleiPrediction


class ModelScores(nn.Module):
    """Every metric of a model.

    Metrics on nuclei are the user's choice; the overlap of the binary map and the accuracy of the tissue are there
    where the model has the head.

    Args:
        metrics: Name, dotted path, ``{"class_path", "init_args"}``, class or instance of each metric on nuclei.
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


def build_metric(spec: ComponentSpec, class_names: Sequence[str], tissue_names: Sequence[str] = ()) -> NucleiMetric:
    """Return a metric, told the names of classes and tissues if it takes them and its spec does not state its own.

    Args:
        spec: Name, dotted path, ``{"class_path", "init_args"}``, class or instance of the metric.
        class_names: Names of the nucleus types, background first.
        tissue_names: Names of the tissues by id; may be empty.

    Raises:
        ConfigError: If it is no metric on nuclei, or takes no such argument.
        UnknownPluginError: If there is no such class.
    """
    plain = normalise_spec(spec, what="metric")
    cls = resolve(METRICS, plain["class_path"])
    if not issubclass(cls, NucleiMetric):
        raise ConfigError(f"metric {plain['class_path']!r} does not compare nuclei: derive it from NucleiMetric")
    accepted = keyword_names(cls) or set()
    told = {"class_names": class_names, "tissue_names": tissue_names}
    named = {name: value for name, value in told.items() if name in accepted}
    built = build(METRICS, {"class_path": plain["class_path"], "init_args": {**named, **plain["init_args"]}})
    return cast(NucleiMetric, built)
