"""Time and count nano and the published ViT-256 network on one 1024 px tile; prints JSON.

Both run in one process, turn by turn, so that the ratio holds on a noisy machine. The published network has random
weights: its time does not depend on them.
"""

import argparse
import json
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from cellvit import CellViT

SIZE = 1024


def count_gflop(model):
    """Return the floating-point operations of one tile in 10^9, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.to("meta")(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return counter.get_total_flops() / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    models = {
        "nano": CellViT.from_pretrained("nano"),
        "vit-256": CellViT("vit-256", 6, 19).eval(),
    }
    tile = torch.rand(1, 3, SIZE, SIZE, device=options.device)
    seconds = {name: [] for name in models}
    for model in models.values():
        model.to(options.device)
    for repeat in range(options.repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.predict_maps(tile)["hv_map"].cpu()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    result = {"device": options.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name, model in models.items():
        result[name] = {
            "ms_median": round(1e3 * statistics.median(seconds[name])),
            "parameters": sum(p.numel() for p in model.parameters()),
            "gflop": round(count_gflop(model), 1),
        }
    ratios = [slow / fast for slow, fast in zip(seconds["vit-256"], seconds["nano"], strict=True)]
    result["vit-256 over nano"] = round(statistics.median(ratios), 1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
