"""Detection of nuclei over a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.outlines import turning_points
from cellvit.geometry.polygons import MIN_CONTOUR_POINTS, ring_bounds
from cellvit.io.frames import find_border
from cellvit.metrics._shared import ArrayOrTensor, as_array, fixed_mean, to_fixed, unique_names
from cellvit.metrics.base import METRICS, NucleiMetric
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
from cellvit.plugins.components import Configurable
from cellvit.types import UNKNOWN_TYPE, Nuclei, NucleiPrediction

_SCORES = ("F1_d", "P_d", "R_d")


@METRICS.register("centroid-detection")
class CentroidDetection(Configurable, NucleiMetric):
    """F1, precision and recall of the nuclei found, from centroids, of all nuclei and per type.

    The unit is the nucleus: counts are pooled over all images, unless the name says otherwise. Points are paired per
    image by least total distance, pairs farther apart than the radius are dropped.

    * ``F1_d``, ``P_d``, ``R_d``: all nuclei, as published for PanNuke. An image without nuclei on one side counts
      the other side's nuclei as missed or wrong; an image without any counts nothing.
    * ``F1_d_image_mean``, ``P_d_image_mean``, ``R_d_image_mean``: mean over the images of the scores of each, as
      published for MoNuSeg. The unit is the image; one whose score is 0 / 0 is left out of that mean.
    * ``F1_d_within``, ``F1_d_within_image_mean``: F1 of the most pairs that there can be within the radius, pooled and
      averaged. In the published order a point far from all others can pull near ones apart, so that ``F1_d`` moves by
      0.01 when centroids move by a tenth of a pixel; this one stands beside it and is never lower.
    * ``F1/<type>``, ``P/<type>``, ``R/<type>``: a pair of different types is one wrong and one missed nucleus and
      weighs double. An image with true nuclei of unknown type (-1) is left out of these. Only with class names.

    Predicted nuclei of type 0 found no type at all: the published evaluation of PanNuke counts them, that of MoNuSeg
    leaves them out. Where predictions come without types none is left out. Nuclei in :meth:`update_nuclei` whose
    outline has only one or two points are left out as published; nuclei without any outline are points and count.
    Of a nucleus in several pieces the largest has the outline; the authors' program asks the piece that OpenCV lists
    first, which may be a speck, and then does not count the nucleus at all. In the published run on twelve images
    that is so of 3 of 272 true nuclei, which count here.

    0 / 0 is nan. States are integer sums: batches and processes do not change the result.

    Args:
        class_names: Names by type id, background first; empty does not tell types apart.
        radius: Largest distance of a pair in pixels; 12 at x40, 6 at x20.
        ignore_background: Leave predicted nuclei of type 0 out: False as published for PanNuke, True for MoNuSeg.

    Example:
        >>> metric = CentroidDetection(radius=12)
        >>> metric.update(torch.tensor([[5.0, 5.0], [90.0, 90.0]]), torch.tensor([[5.0, 9.0]]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items() if "mean" not in name}
        {'F1_d': 0.667, 'P_d': 0.5, 'R_d': 1.0, 'F1_d_within': 0.667}
    """

    is_differentiable = False
    higher_is_better = True

    counts: Tensor
    image_sum: Tensor
    image_count: Tensor
    within_pairs: Tensor
    within_image_sum: Tensor
    type_counts: Tensor

    def __init__(
        self, *, class_names: Sequence[str] = (), radius: float = 12.0, ignore_background: bool = False
    ) -> None:
        super().__init__()
        if not radius >= 0:
            raise ConfigError(f"radius {radius} matches nothing; pass a distance in pixels, 12 at x40")
        self.radius = radius
        self.ignore_background = ignore_background
        self.class_names = unique_names(class_names, what="class name")
        shape = (len(TypeCounts._fields), len(self.class_names))
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")  # pairs, wrong, missed
        self.add_state("image_sum", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")  # F1, precision, recall
        self.add_state("image_count", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("within_pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("within_image_sum", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")  # F1
        self.add_state("type_counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        pred_centroids: ArrayOrTensor,
        target_centroids: ArrayOrTensor,
        *,
        pred_types: ArrayOrTensor | None = None,
        target_types: ArrayOrTensor | None = None,
    ) -> None:
        """Add one image.

        Args:
            pred_centroids: Predicted centroids ``(N, 2)`` in pixels.
            target_centroids: True centroids ``(M, 2)``, same axis order.
            pred_types: Type of every prediction ``(N,)``, 0..C-1 (0: none); None if they have none.
            target_types: Type of every true nucleus ``(M,)``, 1..C-1 or -1 if unknown; None if all are unknown.

        Raises:
            DataError: If the points are not ``(N, 2)`` and finite, or types do not fit points and classes.
        """
        found = as_array(pred_centroids)
        if self.ignore_background and pred_types is not None:
            found, pred_types = _without_background(found, as_array(pred_types))
        truth = as_array(target_centroids)
        match = match_centroids(found, truth, radius=self.radius)
        counts = [len(match.pairs), len(match.unmatched_pred), len(match.unmatched_target)]
        self.counts += torch.tensor(counts, device=self.device)
        scores = np.array(detection_scores(*counts))
        self.image_sum += to_fixed(np.nan_to_num(scores), device=self.device)
        self.image_count += torch.from_numpy(~np.isnan(scores)).to(self.device)
        pairs = pairs_within(found, truth, radius=self.radius)
        self.within_pairs += pairs
        self.within_image_sum += to_fixed(np.nan_to_num([_f1(counts, pairs)]), device=self.device)
        if self.class_names and pred_types is not None and target_types is not None:
            self._update_types(match, pred_types, target_types)

    def update_nuclei(self, pred: NucleiPrediction, target: NucleiPrediction, *, tissue: int = -1) -> None:
        """Add one image; see :class:`NucleiMetric`."""
        found, true = detectable(pred), detectable(target)
        self.update(found.centroid, true.centroid, pred_types=found.type, target_types=true.type)

    def _update_types(self, match: CentroidMatch, pred_types: ArrayOrTensor, target_types: ArrayOrTensor) -> None:
        truth = as_array(target_types)
        if (truth == UNKNOWN_TYPE).any():
            return
        added = type_counts(
            match, pred_types=as_array(pred_types), target_types=truth, num_nuclei_classes=len(self.class_names)
        )
        self.type_counts += torch.stack([torch.from_numpy(c) for c in added]).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return all scores by name, scalars in [0, 1] or nan; see the class."""
        counts = self.counts.tolist()
        result = _named(detection_scores(*counts), _SCORES)
        result["F1_d_within"] = _f1(counts, int(self.within_pairs))
        image_means = fixed_mean(self.image_sum, self.image_count)
        result |= {f"{name}_image_mean": float(mean) for name, mean in zip(_SCORES, image_means, strict=True)}
        result["F1_d_within_image_mean"] = float(fixed_mean(self.within_image_sum, self.image_count[:1])[0])
        if self.class_names:
            scores = type_detection_scores(TypeCounts(*as_array(self.type_counts)))
            for kind, name in enumerate(self.class_names[1:], start=1):
                one = DetectionScore(*(values[kind] for values in scores))
                result |= _named(one, (f"F1/{name}", f"P/{name}", f"R/{name}"))
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in result.items()}


def _f1(counts: Sequence[int], pairs: int) -> float:
    """Return F1 of another number of pairs of the points that counts (pairs, wrong, missed) are of."""
    before, wrong, missed = counts
    return float(detection_scores(pairs, before + wrong - pairs, before + missed - pairs).f1)


def _named(score: DetectionScore, names: tuple[str, str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, score, strict=True)}


def _without_background(points: NDArray[Any], types: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the points whose type is not 0, and their types."""
    if types.shape != (len(points),):
        raise DataError(f"{len(points)} predicted points have types of shape {types.shape}; pass one type per point")
    return points[types != 0], types[types != 0]


def detectable(prediction: NucleiPrediction) -> Nuclei:
    """Return the nuclei without those whose border OpenCV gives fewer than three points: single pixels and lines.

    Published detection leaves these out. A nucleus without outline is a point and stays.

    Args:
        prediction: Map and table; labels of the table are those of the map.
    """
    nuclei = prediction.nuclei
    bounds = ring_bounds(nuclei.contour_points, nuclei.contour_offsets)
    # their outlines are a rectangle one pixel wide, that of a diagonal line its first pixel; so are others' at most
    thin = np.flatnonzero((bounds[:, 2:] - bounds[:, :2]).min(axis=1) == 1)
    keep = np.ones(len(nuclei), bool)
    for row in thin.tolist():
        left, top, right, bottom = nuclei.bbox[row].astype(int).tolist()
        border = find_border((prediction.instance_map[top:bottom, left:right] == nuclei.label[row]).view(np.uint8))
        turns = turning_points(border.astype(np.int64), np.array([0, len(border)]))[0]
        keep[row] = len(turns) >= MIN_CONTOUR_POINTS
    return nuclei if keep.all() else nuclei.select(keep)
