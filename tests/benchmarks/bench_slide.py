"""Time the stages of a slide, and follow the memory of a slide with a million nuclei; print one JSON object.

Run as ``python tests/benchmarks/bench_slide.py [--quick] [--side 40000] [--part stages|whole|before]``. Everything runs
on two cores. The first part asks what reading, network, post-processing, seams and files can do per second, beside what
a GPU asks of two cores: 5 tiles of 400 nuclei. The second sends a drawn slide through ``segment_slide`` with a stand-in
for the network, samples the memory of all processes, and compares the nuclei found with the nuclei drawn. The third,
which needs ``CELLVIT_TEST_DATA`` and the repository, does real slides with an earlier commit and this code in turn.
Numbers and pictures go to ``build/bench``: ``slide.json``, ``slide_memory.png`` and ``slide_before.png``.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).parents[1]))
from slide_before import bench_before
from slide_memory import MemorySampler, draw_memory
from slide_stages import DEMAND, bench_stages, rate, size_of, use_cores
from support.drawn_slides import DrawnModel, drawn_block, truth, write_drawn_slide

from cellvit.inference.settings import DEFAULT_FORMATS
from cellvit.inference.slide import segment_slide
from cellvit.io import ParquetStream
from cellvit.io.atomic import atomic_text

SAME_PX = 1.5


def bench_whole(folder, picture, *, side, formats):
    """Return memory, seconds and nuclei of a drawn slide, and draw its memory over time.

    Args:
        folder: For the slide and the results.
        picture: PNG of the memory over time.
        side: Of the slide, in pixels.
        formats: To write beside the table.
    """
    torch.set_num_threads(1)  # the stand-in is no network, its threads would only wait for each other
    block = drawn_block()
    path = write_drawn_slide(folder / "drawn.tif", side, side, block=block)
    reports = []  # when, and how many tiles were done

    def progress(done, total):
        reports.append((sampler.now(), done))
        if total >= 10 and done % (total // 10) == 0:
            print(f"{sampler.now():7.0f} s  {done} of {total} tiles", file=sys.stderr)

    with MemorySampler() as sampler:
        result = segment_slide(
            path, folder / "whole", model=DrawnModel(), tissue_filter=False, formats=formats, progress=progress
        )
        ended = sampler.now()
    seconds = result.summary["seconds"]
    marks = {"opened": 0.0, "tiles": reports[0][0], "seams, table": reports[-1][0]}
    marks["files"] = marks["seams, table"] + seconds["seams"]
    draw_memory(sampler, marks, picture, title=f"{side:,} x {side:,} px, {result.summary['nuclei']['total']:,} nuclei")
    return {
        "side": side,
        "formats": list(formats),
        "slide_bytes": path.stat().st_size,
        "seconds": {"wall": round(ended, 1), **seconds},
        "tiles": result.summary["tiles"]["done"],
        "tiles_per_second": rate(result.summary["tiles"]["done"], ended),
        "nuclei_per_second": rate(result.summary["nuclei"]["total"], ended),
        "workers": result.summary["workers"],
        "nuclei": compare(result, block),
        "memory_mb": memory(sampler, marks),
        "result_bytes": {p.name: p.stat().st_size for p in sorted(result.out.iterdir()) if p.is_file()},
        "tiles_over_time": [(round(when, 1), done) for when, done in reports[:: max(1, len(reports) // 40)]],
    }


def memory(sampler, marks):
    """Return the peaks of all processes together, over the run and within each stage."""
    limits = [*marks.values(), float("inf")]
    stages = {name: limits[i : i + 2] for i, name in enumerate(marks)}
    return {
        "before": {"rss": round(sampler.rss[0] / 1e6, 1), "pss": round(sampler.pss[0] / 1e6, 1)},
        "peak": {name: sampler.peak(name) for name in ("rss", "pss")},
        "peak_of_stage": {
            stage: sampler.peak("pss" if any(sampler.pss) else "rss", *at) for stage, at in stages.items()
        },
        "processes": max(sampler.processes),
        "samples": len(sampler.seconds),
    }


def compare(result, block):
    """Return how the nuclei found agree with those drawn."""
    drawn = truth(*size_of(result), block)
    chunks = [(chunk.centroid, chunk.type) for chunk in ParquetStream(result.out / "nuclei.parquet", embedding=False)]
    centroid, kind = (np.concatenate(column) for column in zip(*chunks, strict=True))
    distance, nearest = cKDTree(drawn.centroid).query(centroid, distance_upper_bound=SAME_PX)
    same = np.isfinite(distance)
    times = np.bincount(nearest[same], minlength=len(drawn))
    edges = drawn.bbox[drawn.cut]
    x, y = centroid[~same].T[..., None]
    pieces = ((x > edges[:, 0] - 1) & (y > edges[:, 1] - 1) & (x < edges[:, 2]) & (y < edges[:, 3])).any(axis=1)
    return {
        "found": len(centroid),
        "drawn": len(drawn),
        "drawn_and_whole": int((~drawn.cut).sum()),
        "whole_and_missed": int((times[~drawn.cut] == 0).sum()),
        "found_twice": int((times > 1).sum()),
        "pieces_of_nuclei_that_the_slide_cuts": int(pieces.sum()),
        "found_but_not_drawn": int((~pieces).sum()),
        "wrong_type": int((kind[same] != drawn.type[nearest[same]]).sum()),
        "largest_shift_px": round(float(distance[same].max(initial=0)), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small slides and few repeats")
    parser.add_argument("--side", type=int, help="side of the slide in pixels (40000; with --quick 3000)")
    parser.add_argument("--part", choices=("stages", "whole", "before"), help="do only one part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--formats", nargs="*", default=DEFAULT_FORMATS, metavar="NAME", help="files to write")
    parser.add_argument("--cores", type=int, default=2, help="cores to use (2)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "build" / "bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": "slide",
        "cores": use_cores(options.cores),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "demand_per_two_cores": DEMAND,
    }
    formats = tuple(options.formats)
    with tempfile.TemporaryDirectory(dir=options.out) as temporary:
        folder = Path(temporary)
        if options.part in (None, "whole"):  # first, while nothing else has taken memory
            side = options.side or (3000 if options.quick else 40_000)
            report["whole"] = bench_whole(folder, options.out / "slide_memory.png", side=side, formats=formats)
        if options.part in (None, "before"):
            data = Path(os.environ["CELLVIT_TEST_DATA"]) if os.environ.get("CELLVIT_TEST_DATA") else None
            report["before"] = bench_before(folder, options.out / "slide_before.png", data=data, quick=options.quick)
        if options.part in (None, "stages"):
            torch.set_num_threads(report["cores"])
            report["stages"] = bench_stages(folder, quick=options.quick, device=options.device, formats=formats)
    with atomic_text(options.out / "slide.json") as file:
        json.dump(report, file, indent=2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
