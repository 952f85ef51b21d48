"""What each stage of a slide can do on its own, and what all of them do behind a network that costs nothing."""

import os
from statistics import median
from unittest.mock import patch

import torch
from slide_models import NUCLEI_PER_TILE, OVERLAP, TILE, NanoOnDrawn, ReplayModel, noisy_block
from support.drawn_slides import drawn_block, drawn_pixels, truth, write_drawn_slide
from timing import timed

from cellvit import CellViT
from cellvit.inference import pipeline
from cellvit.inference.protocol import autocast_context
from cellvit.inference.settings import default_workers
from cellvit.inference.slide import segment_slide
from cellvit.model.build import start_transfer
from cellvit.slide.open import open_slide
from cellvit.slide.stitching import StreamingStitcher
from cellvit.slide.view import SlideView
from cellvit.types import EMBEDDING_MAP

DEMAND = {"tiles_per_second": 5, "nuclei_per_second": 5 * NUCLEI_PER_TILE}
"""What a GPU asks for, per two cores."""


def bench_stages(folder, *, quick, device, formats):
    """Return the numbers of all stages.

    Args:
        folder: For drawn slides and results.
        quick: Fewer tiles and repeats.
        device: ``"cpu"`` or ``"cuda"``: where the network of the whole run is.
        formats: To write beside the table.
    """
    repeats = 2 if quick else 5
    nano = CellViT.from_pretrained("nano")
    block = noisy_block()
    tiles = 2 if quick else 12
    slide = write_drawn_slide(folder / "noisy.tif", side_of(tiles), side_of(tiles), block=block)
    width = embedding_dim(nano)
    nano_side = side_of(1 if quick else 16 if device == "cuda" else 4)
    report = {
        "read": bench_read(slide, tiles=8 if quick else 40),
        "forward": {kind: bench_forward(nano, kind, repeats) for kind in dict.fromkeys(("cpu", device))},
        "postprocess": bench_postprocess(block, width, repeats),
        "behind_the_network": bench_behind(folder, block, width, formats, tiles=tiles),
        "with_nano": bench_nano(folder, nano, device, formats, side=nano_side),
    }
    report["post_seams_export"] = demand_met(report["postprocess"], report["behind_the_network"])
    return report


def bench_read(path, *, tiles):
    """Return the tiles per second that one thread reads of a drawn slide (deflate, RGB)."""
    with open_slide(path) as slide:
        view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.25)
        span = view.width - TILE
        seconds = [
            timed(lambda i=i: view.read(i * 347 % (span + 1), i * 211 % (span + 1), TILE, TILE), 1)[0][0]
            for i in range(tiles)
        ]
    return {"reader": slide.reader, "tiles_per_second_one_thread": rate(1, median(seconds))}


def bench_forward(network, kind, repeats):
    """Return the tiles per second of nano from pixels on the host to maps on the host, per batch and precision."""
    device = torch.device(kind)
    network.to(device)
    report = {}
    settings = [("32-true", 1)] if kind == "cpu" else [("32-true", 1), ("32-true", 8), ("bf16-mixed", 8)]
    for precision, batch in settings:
        pixels = torch.rand(batch, 3, TILE, TILE)

        def forward(pixels=pixels, precision=precision):
            with autocast_context(precision, device):
                maps = network.predict_maps(pixels.to(device))
            return start_transfer(maps, network.postprocessor)()

        forward()  # the first call warms up
        report[f"{precision}, batch {batch}"] = rate(batch, median(timed(forward, repeats)[0]))
    network.to("cpu")
    return {"tiles_per_second": report}


def bench_postprocess(block, width, repeats):
    """Return the tiles and nuclei per second of one process, maps as they come from the device."""
    model = ReplayModel(width)
    pixels = drawn_pixels(TILE, TILE, block)
    maps = model.decode(pixels)
    model.postprocess(maps)  # the first call pays for lazy imports
    wall, cpu, prediction = timed(lambda: model.postprocess(maps), 3 * repeats)
    found = len(prediction.nuclei)
    return {
        "nuclei_drawn": len(truth(TILE, TILE, block)),
        "nuclei_found": found,
        "tiles_per_second_one_process": rate(1, median(wall)),
        "nuclei_per_second_one_process": round(found / median(wall)),
        "cpu_seconds_per_tile": round(median(cpu), 4),
    }


def bench_behind(folder, block, width, formats, *, tiles):
    """Return what a whole run does with a network that costs nothing: reading, post-processing, seams, all files."""
    path, model, seams = folder / "noisy.tif", ReplayModel(width), []
    model.learn(block, tiles)
    workers = default_workers("cuda")  # the network costs no core, as beside a GPU
    step = StreamingStitcher.step

    def timed_step(*args, **kwargs):
        wall, cpu, result = timed(lambda: step(*args, **kwargs), 1)
        seams.append((wall[0], cpu[0]))
        return result

    def run(slide, out):
        return segment_slide(slide, out, model=model, tissue_filter=False, workers=workers, formats=formats)

    with (
        patch.object(pipeline, "start_transfer", lambda maps, _: lambda: maps),
        patch.object(StreamingStitcher, "step", timed_step),
    ):
        run(write_drawn_slide(folder / "warm.tif", TILE, TILE, block=block), folder / "warm")  # pays for imports
        seams.clear()
        (wall,), (cpu,), result = timed(lambda: run(path, folder / "behind"), 1)
    summary = result.summary
    seconds, nuclei, tiles = summary["seconds"], summary["nuclei"]["total"], summary["tiles"]["done"]
    alone = [round(sum(spent), 3) for spent in zip(*seams, strict=True)]
    return {
        "tiles": tiles,
        "nuclei": nuclei,
        "nuclei_drawn": len(truth(*size_of(result), block)),
        "workers": summary["workers"],
        "seconds": {**seconds, "seams_alone": alone[0], "wall": round(wall, 3)},
        "cpu_seconds": {"main_process": round(cpu, 3), "seams_alone": alone[1]},
        "tiles_per_second": {
            "until maps are nuclei": rate(tiles, seconds["elapsed"]),
            "seams": rate(tiles, alone[0]),
            "table": rate(tiles, seconds["seams"]),
            "export": rate(tiles, seconds["export"]),
            "all": rate(tiles, wall),
        },
        "nuclei_per_second": {
            "seams": rate(nuclei, alone[0]),
            "table": rate(nuclei, seconds["seams"]),
            "export": rate(nuclei, seconds["export"]),
            "all": rate(nuclei, wall),
        },
    }


def bench_nano(folder, nano, device, formats, *, side):
    """Return the seconds and the share of them in which the device was busy, of a run with nano on drawn nuclei."""
    path = write_drawn_slide(folder / "nano.tif", side, side, block=drawn_block())
    model = NanoOnDrawn(nano).to(device)
    precision = "32-true" if device == "cpu" else "bf16-mixed"
    result = segment_slide(
        path, folder / "nano", model=model, tissue_filter=False, precision=precision, formats=formats
    )
    summary = result.summary
    return {
        "device": device,
        "precision": precision,
        "tiles": summary["tiles"]["done"],
        "nuclei": summary["nuclei"]["total"],
        "workers": summary["workers"],
        "seconds": summary["seconds"],
        "device_busy_share_until_maps_are_nuclei": summary["seconds"]["device_busy_share"],
        "device_busy_share_of_the_whole_run": round(summary["seconds"]["forward"] / summary["seconds"]["total"], 4),
    }


def demand_met(postprocess, behind):
    """Return how post-processing, seams and all files together stand beside the demand.

    ``"wall"`` is the run on these cores with its start and its end, at which one core idles; ``"cpu"`` is what the work
    costs, steady on a machine that does other work too, reading and handing over of maps included.
    """
    tiles, nuclei = behind["tiles"], behind["nuclei"]
    files = behind["seconds"]["seams"] + behind["seconds"]["export"]
    cpu = behind["cpu_seconds"]["main_process"] + tiles * postprocess["cpu_seconds_per_tile"]
    return {
        "nuclei_per_second_one_core_post_seams_files": round(
            1 / (1 / postprocess["nuclei_per_second_one_process"] + files / nuclei)
        ),
        "nuclei_per_second_two_cores_wall": behind["nuclei_per_second"]["all"],
        "nuclei_per_second_two_cores_cpu": rate(2 * nuclei, cpu),
        "tiles_per_second_two_cores_cpu": rate(2 * tiles, cpu),
        "times_the_demand": {
            "wall": round(behind["tiles_per_second"]["all"] / DEMAND["tiles_per_second"], 2),
            "cpu": round(2 * tiles / cpu / DEMAND["tiles_per_second"], 2),
        },
    }


def embedding_dim(network):
    """Return the number of channels of a network's tokens."""
    return network.predict_maps(torch.zeros(1, 3, 64, 64))[EMBEDDING_MAP].shape[1]


def size_of(result):
    """Return width and height of the slide of a result."""
    return result.summary["slide"]["width"], result.summary["slide"]["height"]


def side_of(tiles):
    """Return the side of a slide that tiles, in a row, cover without overlapping more than they must."""
    return TILE + (tiles - 1) * (TILE - OVERLAP)


def rate(count, seconds):
    """Return a number per second."""
    return round(count / max(seconds, 1e-9), 2)


def use_cores(count):
    """Keep this process and its children to a number of cores; return how many it got."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
        count = len(os.sched_getaffinity(0))
    return count
