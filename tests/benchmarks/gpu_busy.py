"""Print how busy a graphics card is while one process does a slide, as one JSON object.

Run as ``python tests/benchmarks/gpu_busy.py [SLIDE] [--batch-size 8] [--precision bf16-mixed] [--mpp 0.25]`` where
there is a card. Without a slide a drawn one of 6,000 x 6,000 px is done. Busy is the share of the time from the first
to the last batch in which a kernel or a copy ran on the card; one process should reach 0.85.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn_slides import drawn_block, write_drawn_slide

from cellvit.inference.slide import segment_slide


def busy(intervals):
    """Return the length of the union of intervals ``(N, 2)``, and the time from the first start to the last end."""
    starts, ends = np.asarray(sorted(intervals), float).T
    reached = np.maximum.accumulate(ends)
    fresh = np.maximum(ends - np.maximum(starts, np.concatenate([[-np.inf], reached[:-1]])), 0)
    return float(fresh.sum()), float(reached[-1] - starts[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--mpp", type=float)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"benchmark": "gpu_busy", "left_out": "there is no graphics card"}))
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or write_drawn_slide(Path(folder) / "drawn.tif", 6000, 6000, block=drawn_block())
        settings = {name: getattr(options, name) for name in ("model", "batch_size", "precision", "mpp")}
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            result = segment_slide(slide, Path(folder) / "out", device="cuda", formats=(), **settings)
    on_card = [event for event in watched.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    worked, passed = busy([(event.time_range.start, event.time_range.end) for event in on_card])
    report = {
        "benchmark": "gpu_busy",
        "gpu": torch.cuda.get_device_name(),
        "tiles": result.summary["tiles"]["done"],
        "workers": result.summary["workers"],
        "seconds": result.summary["seconds"],
        "busy_share": round(worked / passed, 4),
        "copies": sum("memcpy" in event.name.lower() for event in on_card),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
