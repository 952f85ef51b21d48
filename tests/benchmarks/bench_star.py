"""Time targets and suppression of star-convex shapes on drawn nuclei; print one JSON object.

Run as ``python tests/benchmarks/bench_star.py [--quick]``. One thread; medians over the repeats, in wall seconds and,
steadier under load, processor seconds. On the quick tile the result of the suppression is checked against the rule
applied one by one with shapely, whose seconds are stated too.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn_nuclei import draw_ellipses
from support.drawn_stars import noisy_star_maps, suppress_one_by_one
from timing import timed

from cellvit.geometry.star import object_probability, radial_distances
from cellvit.postprocess import StarPostprocessor
from cellvit.postprocess.nms import Shapes, non_maximum_suppression


def seconds(function, repeats):
    wall, cpu, result = timed(function, repeats)
    return {"seconds": round(median(wall), 4), "cpu_seconds": round(median(cpu), 4)}, result


def checked_suppression():
    """Compare with the literal rule on a tile small enough for it."""
    maps = noisy_star_maps(draw_ellipses(12, (96, 96), seed=0))
    prob = maps["object_probability"][0]
    y, x = np.nonzero(prob >= 0.5)
    shapes = Shapes(x, y, maps["radial_distances"][:, y, x].T)
    ours, (kept, _) = seconds(lambda: non_maximum_suppression(shapes, prob[y, x], threshold=0.4), 3)
    literal, expected = seconds(lambda: suppress_one_by_one(*shapes, prob[y, x], 0.4), 1)
    assert kept.tolist() == expected
    ratio = round(literal["cpu_seconds"] / ours["cpu_seconds"], 1)
    return {"candidates": len(x), "kept": len(kept), "identical": True, "literal": literal, **ours, "cpu_ratio": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 256 px tile with 25 nuclei and few repeats")
    quick = parser.parse_args().quick
    size, num, repeats = (256, 25, 3) if quick else (1024, 400, 7)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    batch = torch.stack([torch.from_numpy(draw_ellipses(40, (256, 256), seed=seed)) for seed in range(8)])
    probability, _ = seconds(lambda: object_probability(batch), repeats)
    distances, _ = seconds(lambda: radial_distances(batch), repeats)

    instances = draw_ellipses(num, (size, size), seed=0)
    maps = noisy_star_maps(instances)
    postprocess = StarPostprocessor()
    postprocess(maps)  # the first call pays for lazy imports and tables
    found, prediction = seconds(lambda: postprocess(maps), repeats)
    report = {
        "benchmark": "star",
        "targets": {
            "batch": list(batch.shape),
            "foreground": round(float((batch > 0).float().mean()), 3),
            "object_probability": probability,
            "radial_distances": distances,
        },
        "postprocess": {
            "pixels": [size, size],
            "nuclei_drawn": int(instances.max()),
            "nuclei_found": len(prediction.nuclei),
            "candidates": int((maps["object_probability"] >= postprocess.prob_threshold).sum()),
            **found,
        },
        "suppression": checked_suppression(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
