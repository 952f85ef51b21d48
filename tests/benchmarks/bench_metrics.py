"""Time the metrics against the usual implementation with one mask per pair; print one JSON object.

Run as ``python tests/benchmarks/bench_metrics.py [--quick]``. The baseline, ``per_pair_masks``, holds a boolean mask
of every true nucleus against that of every prediction that overlaps it, over the whole image; for points it is the
full matrix of distances in Python. Both sides get the same arrays and give the same result, which is checked. One
thread; medians over the repeats, in wall seconds and, steadier under load, processor seconds.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import linear_sum_assignment

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn_nuclei import draw_ellipses
from timing import timed

from cellvit.metrics.functional import aggregated_jaccard, match_centroids, panoptic_quality, typed_panoptic_quality

NUM_CLASSES = 6
RADIUS = 12


def masks_of(labels):
    return {int(label): labels == label for label in np.unique(labels) if label}


def overlapping_pairs(pred, target):
    """Yield every true and predicted label that share pixels, with their intersection and union."""
    found = masks_of(pred)
    for label, mask in masks_of(target).items():
        for other in np.unique(pred[mask]).tolist():
            if other:
                yield label, other, (mask & found[other]).sum(), (mask | found[other]).sum()


def per_pair_quality(pred, target):
    ious = [shared / union for _, _, shared, union in overlapping_pairs(pred, target)]
    matched = [iou for iou in ious if iou > 0.5]
    tp, num_pred, num_target = len(matched), len(np.unique(pred)) - 1, len(np.unique(target)) - 1
    dq = tp / (tp + 0.5 * (num_pred - tp) + 0.5 * (num_target - tp) + 1e-6)
    return dq * sum(matched) / (tp + 1e-6)


def per_pair_typed_quality(pred, target, pred_types, target_types):
    kinds = [np.append(0, types) for types in (pred_types, target_types)]
    scores = [per_pair_quality(pred, target)]
    for kind in range(1, NUM_CLASSES):
        alone = [
            np.where(types[labels] == kind, labels, 0) for types, labels in zip(kinds, (pred, target), strict=True)
        ]
        scores.append(per_pair_quality(*alone))
    return scores


def per_pair_aggregated_jaccard(pred, target):
    best = {}
    for label, other, shared, union in overlapping_pairs(pred, target):
        score = (shared / union, shared, -other)
        if label not in best or score > best[label][0]:
            best[label] = (score, other, shared, union)
    shared = sum(entry[2] for entry in best.values())
    union = sum(entry[3] for entry in best.values())
    union += sum(m.sum() for label, m in masks_of(target).items() if label not in best)
    taken = {entry[1] for entry in best.values()}
    return shared / (union + sum(m.sum() for label, m in masks_of(pred).items() if label not in taken))


def per_pair_centroids(pred, target):
    distance = np.array([[math.dist(p, t) for t in target] for p in pred])
    rows, columns = linear_sum_assignment(distance)
    return sum(distance[i, j] <= RADIUS for i, j in zip(rows, columns, strict=True))


def predicted(target, rng):
    """Return the map as a network might find it: shifted by a pixel, some nuclei missed and some joined."""
    pred = np.roll(target, (1, 1), axis=(0, 1))
    renumbered = rng.permutation(target.max()) + 1
    renumbered[rng.random(len(renumbered)) < 0.1] = 0
    joined = np.flatnonzero(rng.random(len(renumbered)) < 0.05)
    renumbered[joined] = renumbered[joined - 1]
    present, labels = np.unique(np.append(0, renumbered)[pred], return_inverse=True)
    return labels.reshape(pred.shape).astype(np.int32), len(present) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 256 px image with 50 nuclei and few repeats")
    quick = parser.parse_args().quick
    size, num, repeats, slow_repeats = (256, 50, 3, 1) if quick else (1000, 800, 21, 3)

    rng = np.random.default_rng(0)
    target = draw_ellipses(num, (size, size), seed=0)
    pred, num_pred = predicted(target, rng)
    types = {"pred_types": rng.integers(1, NUM_CLASSES, num_pred), "target_types": rng.integers(1, NUM_CLASSES, num)}
    true_points = rng.random((num, 2)) * size
    points = true_points + rng.normal(0, 4, true_points.shape)

    def typed():
        score = typed_panoptic_quality(pred, target, **types, num_nuclei_classes=NUM_CLASSES)
        return [score.binary.pq, *(one.pq for one in score.types)]

    cases = {
        "panoptic_quality": (
            lambda: panoptic_quality(pred, target).pq,
            lambda: per_pair_quality(pred, target),
        ),
        "typed_panoptic_quality": (typed, lambda: per_pair_typed_quality(pred, target, *types.values())),
        "match_centroids": (
            lambda: len(match_centroids(points, true_points, radius=RADIUS).pairs),
            lambda: per_pair_centroids(points, true_points),
        ),
        "aggregated_jaccard": (
            lambda: aggregated_jaccard(pred, target),
            lambda: per_pair_aggregated_jaccard(pred, target),
        ),
    }
    report = {
        "benchmark": "metrics",
        "baseline": "per_pair_masks",
        "pixels": [size, size],
        "true_nuclei": int(target.max()),
        "predicted_nuclei": num_pred,
        "repeats": repeats,
        "baseline_repeats": slow_repeats,
    }
    for name, (ours, baseline) in cases.items():
        *seconds, result = timed(ours, repeats)
        *slow_seconds, expected = timed(baseline, slow_repeats)
        wall, cpu, slow_wall, slow_cpu = map(median, (*seconds, *slow_seconds))
        np.testing.assert_allclose(result, expected, rtol=1e-9)
        report[name] = {
            "seconds": round(wall, 5),
            "cpu_seconds": round(cpu, 5),
            "baseline_seconds": round(slow_wall, 4),
            "baseline_cpu_seconds": round(slow_cpu, 4),
            "ratio": round(slow_wall / wall, 1),
            "cpu_ratio": round(slow_cpu / cpu, 1),
        }
    report["results_agree"] = True
    print(json.dumps(report))


if __name__ == "__main__":
    main()
