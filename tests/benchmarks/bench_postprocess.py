"""Time the HV watershed against its literal implementation on one drawn tile; print one JSON object.

Run as ``python tests/benchmarks/bench_postprocess.py [--quick]``. Both sides start from the same maps and end with
the same nuclei, which is checked. One thread; medians over the repeats, in wall seconds and, steadier under load,
processor seconds.
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from unittest.mock import patch

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import hovernet_postprocess
from support.drawn_nuclei import draw_ellipses, noisy_maps
from support.reference_postprocess import assert_same, literal_instances, literal_nuclei
from timing import timed

from cellvit.model.build import image_arrays
from cellvit.postprocess import HVPostprocessor, HVTorchPostprocessor, hv


def literal(maps, magnification):
    instances = literal_instances(maps["nuclei_binary_map"], maps["hv_map"], magnification)
    return literal_nuclei(instances, maps["nuclei_type_map"].argmax(axis=0))


def stage_seconds(postprocess, maps, repeats):
    """Return the median processor seconds spent in each stage, measured by wrapping its function."""
    names = ["_read_binary", "_read_hv", "_drop_small", "_tile_edge", "_fill_holes", "_opened", "marker_watershed"]
    names.append("nuclei_from_instances")
    spent = {name: [] for name in names}

    def wrap(name, function):
        def measured(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[name][-1] += time.process_time() - start
            return result

        return measured

    with patch.multiple(hv, **{name: wrap(name, getattr(hv, name)) for name in names}):
        for _ in range(repeats):
            for values in spent.values():
                values.append(0.0)
            postprocess(maps)
    return {name.strip("_"): round(median(values), 5) for name, values in spent.items()}


def beside(postprocess, maps, repeats):
    """Return processor seconds of TIAToolbox's post-processing on the same maps, turn by turn beside ours."""
    try:
        other = hovernet_postprocess(maps)
    except ImportError as error:
        return {"left out": str(error)}
    ours, theirs = [], []
    for _ in range(repeats):
        ours += timed(lambda: postprocess(maps), 1)[1]
        theirs += timed(other, 1)[1]
    return {
        "version": version("tiatoolbox"),
        "cpu_seconds": round(median(theirs), 4),
        "of ours": round(median(a / b for a, b in zip(theirs, ours, strict=True)), 2),
    }


def in_torch(maps, repeats):
    """Return what ``hv-torch`` takes and finds beside ``hv-watershed``, turn by turn; wall seconds on a GPU too."""
    ours, other = HVPostprocessor(normalisation="fixed"), HVTorchPostprocessor(normalisation="fixed")
    expected, found = ours(maps), other(maps)
    here, there = [], []
    for _ in range(repeats):
        here += timed(lambda: ours(maps), 1)[1]
        there += timed(lambda: other(maps), 1)[1]
    report = {
        "pixels_equal": round(float((found.instance_map == expected.instance_map).mean()), 6),
        "nuclei": [len(expected.nuclei), len(found.nuclei)],
        "cpu_seconds": round(median(there), 4),
        "of hv-watershed": round(median(b / a for a, b in zip(here, there, strict=True)), 2),
        "gpu": "none",
    }
    if torch.cuda.is_available():
        batch = {name: torch.from_numpy(value)[None].cuda() for name, value in maps.items()}
        report["gpu"] = torch.cuda.get_device_name()
        report["gpu_wall_seconds"] = {
            name: round(median(timed(lambda p=post: [p(m) for m in image_arrays(batch, p)], repeats)[0]), 4)
            for name, post in (("hv-torch", other), ("hv-watershed", ours))
        }
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 256 px tile with 50 nuclei and few repeats")
    quick = parser.parse_args().quick
    size, num, repeats = (256, 50, 3) if quick else (1024, 800, 15)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    instances = draw_ellipses(num, (size, size), seed=0)
    maps = noisy_maps(instances)
    maps_of_labels = {
        "nuclei_binary_map": maps["nuclei_binary_map"].argmax(axis=0).astype(np.uint8),
        "nuclei_type_map": maps["nuclei_type_map"].argmax(axis=0).astype(np.uint8),
        "hv_map": maps["hv_map"],
    }
    with_tokens = maps | {"embedding_map": np.random.default_rng(0).random((384, size // 16, size // 16), np.float32)}
    postprocess, fixed = HVPostprocessor(), HVPostprocessor(normalisation="fixed")
    postprocess(maps)  # the first call pays for lazy imports

    ours_wall, ours_cpu, prediction = timed(lambda: postprocess(maps), repeats)
    literal_wall, literal_cpu, expected = timed(lambda: literal(maps, 40), max(3, repeats // 3))
    assert_same(prediction, *expected)
    variants = {
        "label_maps": (postprocess, maps_of_labels),
        "with_384_channel_embedding": (postprocess, with_tokens),
        "fixed_normalisation": (fixed, maps),
    }
    report = {
        "benchmark": "postprocess",
        "pixels": [size, size],
        "nuclei_drawn": int(instances.max()),
        "nuclei_found": len(prediction.nuclei),
        "foreground": round(float((prediction.instance_map > 0).mean()), 3),
        "identical": True,
        "seconds": round(median(ours_wall), 4),
        "seconds_best": round(min(ours_wall), 4),
        "cpu_seconds": round(median(ours_cpu), 4),
        "literal_seconds": round(median(literal_wall), 4),
        "literal_cpu_seconds": round(median(literal_cpu), 4),
        "ratio": round(median(literal_wall) / median(ours_wall), 2),
        "cpu_ratio": round(median(literal_cpu) / median(ours_cpu), 2),
        "variants_cpu_seconds": {
            name: round(median(timed(lambda p=p, m=m: p(m), repeats)[1]), 4) for name, (p, m) in variants.items()
        },
        "stages_cpu_seconds": stage_seconds(postprocess, maps, repeats),
    }
    report["hv-torch"] = in_torch(maps, repeats)
    report["tiatoolbox"] = beside(postprocess, maps, max(3, repeats // 3))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
