"""Time the measurements of nuclei against scikit-image on one drawn tile; print one JSON object.

Run as ``python tests/benchmarks/bench_measure.py [--quick]``. Processor seconds of one thread, medians over the
repeats; both sides measure the same nuclei, and what both know is compared by the tests. On two cores twice as many
nuclei are measured per second, as tiles go through processes of their own.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import skimage.measure

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn_nuclei import draw_ellipses

from cellvit.geometry.raster import draw_rings
from cellvit.measurement.base import MEASUREMENTS
from cellvit.measurement.measure import measure_pixels
from cellvit.measurement.neighbors import measure_neighbors
from cellvit.measurement.pixels import LabelledPixels
from cellvit.measurement.stains import RUIFROK
from cellvit.postprocess import nuclei_from_instances

PROPERTIES = (
    "area",
    "perimeter",
    "equivalent_diameter_area",
    "axis_major_length",
    "axis_minor_length",
    "orientation",
    "eccentricity",
    "solidity",
    "feret_diameter_max",
)


def processor_seconds(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return median(times)


def percentiles(mask, values):
    return np.percentile(values[mask], (10, 50, 90), axis=0).ravel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 256 px tile with 50 nuclei and few repeats")
    quick = parser.parse_args().quick
    size, count, repeats, slide = (256, 50, 3, 2_000) if quick else (1024, 800, 15, 100_000)
    cv2.setNumThreads(1)
    found = nuclei_from_instances(draw_ellipses(count, (size, size)))
    labels, nuclei = found.instance_map, found.nuclei
    rng = np.random.default_rng(0)
    colour = np.where((labels > 0)[..., None], [90, 60, 140], [220, 160, 200]) + rng.normal(0, 12, (size, size, 3))
    image = np.clip(colour, 1, 255).astype(np.uint8)

    def pixels():
        return LabelledPixels(labels, image, len(nuclei), (0.25, 0.25))

    groups = {name: MEASUREMENTS.get(name)() for name in MEASUREMENTS.own}
    seconds = {name: processor_seconds(lambda group=group: group(pixels()), repeats) for name, group in groups.items()}
    seconds["all"] = processor_seconds(lambda: measure_pixels(pixels()), repeats)
    rings = nuclei.contour_points, nuclei.contour_offsets, labels.shape
    seconds["outlines drawn"] = processor_seconds(lambda: draw_rings(*rings), repeats)
    density = np.ascontiguousarray(RUIFROK.separate(image).transpose(1, 2, 0))
    theirs = max(1, repeats // 5)
    reference = {
        "shape": processor_seconds(lambda: skimage.measure.regionprops_table(labels, properties=PROPERTIES), theirs),
        "densities": processor_seconds(
            lambda: skimage.measure.regionprops_table(
                labels,
                density,
                properties=("intensity_mean", "intensity_std"),
                extra_properties=(percentiles,),
            ),
            theirs,
        ),
    }
    points = rng.uniform(0, (slide / 5000) ** 0.5 * 4000, (slide, 2))
    neighbors = processor_seconds(lambda: measure_neighbors(points, np.ones(slide, np.int32), mpp=(0.25, 0.25)), 1)
    rate = {name: round(len(nuclei) / value) for name, value in seconds.items()}
    result = {
        "nuclei": len(nuclei),
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "nuclei_per_second_and_core": {**rate, "neighbors": round(slide / neighbors)},
        "nuclei_per_second_on_two_cores": {name: 2 * value for name, value in rate.items()},
        "skimage_seconds": {name: round(value, 5) for name, value in reference.items()},
        "times_as_fast": {
            "shape": round(reference["shape"] / seconds["shape"], 1),
            "shape and densities": round(sum(reference.values()) / (seconds["shape"] + seconds["stain"]), 1),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
