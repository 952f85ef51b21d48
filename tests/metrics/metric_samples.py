"""A small data set of drawn nuclei, every metric of the package, and how each is fed with parts of the data set."""

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cellvit.metrics import (
    AggregatedJaccard,
    BinaryOverlap,
    CentroidDetection,
    NucleiMetric,
    PanopticQuality,
    TissueAccuracy,
)
from cellvit.postprocess import nuclei_from_instances
from cellvit.types import NucleiPrediction

CLASSES = ("background", "tumour", "lymphocyte", "stroma")
TISSUES = ("breast", "colon", "liver")
SIZE = 48


@dataclass(frozen=True)
class Sample:
    """One image: the nuclei found and the true ones, the true tissue and the logits of the one found."""

    pred: NucleiPrediction
    target: NucleiPrediction
    tissue: int
    tissue_logits: Any = None


def prediction(instances, types, *, min_contour_points=1):
    """Return a map of labels 1..N and its table, of the given types."""
    made = nuclei_from_instances(instances, min_contour_points=min_contour_points)
    return replace(made, nuclei=replace(made.nuclei, type=np.asarray(types, np.int32)))


def draw_sample(rng, *, found=True, true=True, kinds=(1, 2, 3), unknown=False, tissue=0, tiny=0.16):
    """Return up to six nuclei, some of them single pixels or lines, and a prediction with every kind of mistake."""
    target, pred = np.zeros((SIZE, SIZE), np.int32), np.zeros((SIZE, SIZE), np.int32)
    target_types, pred_types = [], []
    for row, col in [(r, c) for r in (2, 26) for c in (1, 17, 33)]:
        height, width = rng.integers(4, 11, 2)
        top, left = row + rng.integers(0, 6), col + rng.integers(0, 4)
        kind = int(rng.choice(kinds))
        if true and rng.random() < 0.85:
            size = rng.random()
            shape = (1, 1) if size < tiny / 2 else (1, width) if size < tiny else (height, width)
            target_types.append(-1 if unknown and rng.random() < 0.5 else kind)
            target[top : top + shape[0], left : left + shape[1]] = len(target_types)
        if found and rng.random() < 0.85:
            move, grow = rng.integers(-1, 2, 2), rng.integers(-1, 3, 2)
            pred_types.append(kind if rng.random() < 0.6 else int(rng.integers(0, len(CLASSES))))
            rows = slice(top + move[0], top + move[0] + height + grow[0])
            pred[rows, left + move[1] : left + move[1] + width + grow[1]] = len(pred_types)
    if unknown and target_types:
        target_types[0] = -1
    logits = rng.normal(0, 1, len(TISSUES)).astype(np.float32)
    return Sample(prediction(pred, pred_types), prediction(target, target_types), tissue, logits)


def draw_data_set(seed, *, num=20):
    """Return images of three tissues, with those among them that are empty, untyped, of one type or of no tissue."""
    rng = np.random.default_rng(seed)
    special = [
        {"found": False},
        {"true": False},
        {"found": False, "true": False},
        {"unknown": True},
        {"kinds": (2,)},
        {"tissue": -1},
        {"found": False, "true": False, "tissue": -1},
    ]
    return [draw_sample(rng, **{"tissue": i % len(TISSUES), **kw}) for i, kw in enumerate(special + [{}] * (num - 7))]


def new_metrics():
    """Return one metric of every class, by its registered name; those with a choice appear with both."""
    return {
        "panoptic-quality": PanopticQuality(class_names=CLASSES, tissue_names=TISSUES),
        "panoptic-quality, all": PanopticQuality(class_names=CLASSES, ignore_background=False),
        "centroid-detection": CentroidDetection(class_names=CLASSES, radius=6),
        "centroid-detection, typed": CentroidDetection(class_names=CLASSES, radius=6, ignore_background=True),
        "aggregated-jaccard": AggregatedJaccard(),
        "binary-overlap": BinaryOverlap(),
        "tissue-accuracy": TissueAccuracy(),
    }


def feed(metric, samples, *, batch=1):
    """Update a metric with samples, so many at a time."""
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        if isinstance(metric, NucleiMetric):
            for sample in part:
                metric.update_nuclei(sample.pred, sample.target, tissue=sample.tissue)
        elif isinstance(metric, BinaryOverlap):
            metric.update(*(torch.stack([binary(getattr(s, side)) for s in part]) for side in ("pred", "target")))
        else:
            logits = torch.stack([torch.from_numpy(s.tissue_logits) for s in part])
            metric.update(logits, torch.tensor([s.tissue for s in part]))


def binary(nuclei):
    """Return where nuclei are, 0 or 1."""
    return torch.from_numpy(nuclei.instance_map > 0).long()


def states(metric):
    return {name: getattr(metric, name).clone() for name in metric._defaults}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def score_on_two_processes(rank, rendezvous, folder, splits, seed):
    """Score parts of a data set as one of two processes; store the results of every split in a file per process."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    data, results = draw_data_set(seed), []
    for parts in splits:
        metrics = new_metrics()
        for metric in metrics.values():
            feed(metric, [data[i] for i in parts[rank]], batch=3)
        results.append({name: metric.compute() for name, metric in metrics.items()})
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
