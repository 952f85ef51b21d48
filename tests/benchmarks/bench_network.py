"""Time and count nano and the published ViT-256 network on one 1024 px tile; prints JSON.

All run in one process, turn by turn, so that ratios hold on a noisy machine. The published network has random weights:
its time does not depend on them. Each network runs as it is (``plain``) and as ``segment_image`` and ``cellvit
segment`` run it (``accelerated``: batch norms and activations in the convolutions, channels last), nano in bfloat16
too, and through ``torch.compile`` with ``--compile``. On a CPU times are processor seconds. How far the maps of each
are from the plain ones is printed beside the times.
"""

import argparse
import copy
import json
import time
from contextlib import ExitStack
from statistics import median

import torch
from skimage import data
from torch.utils.flop_counter import FlopCounterMode

from cellvit import CellViT
from cellvit.inference.acceleration import accelerated_inference, compile_for_inference
from cellvit.inference.protocol import autocast_context

SIZE = 1024
BASELINE = "vit-256 plain"


def count_gflop(model):
    """Return the floating-point operations of one tile in 10^9, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.to("meta")(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return counter.get_total_flops() / 1e9


def tissue(device):
    """Return a tile of real tissue, ``(1, 3, SIZE, SIZE)`` in [0, 1]."""
    image = torch.from_numpy(data.immunohistochemistry()).permute(2, 0, 1)[None].float() / 255
    return image.repeat(1, 1, 2, 2)[..., :SIZE, :SIZE].to(device)


def variants(name, model, *, compiled):
    """Return the same network in all the ways it is run, by name."""
    found = {f"{name} plain": model, f"{name} accelerated": copy.deepcopy(model)}
    if name == "nano":
        found |= {f"{way} bf16": network for way, network in found.items()}
    if compiled:
        found[f"{name} compiled"] = compile_for_inference(copy.deepcopy(model).to(memory_format=torch.channels_last))
    return found


def distances(maps, baseline):
    """Return the largest difference of each map from that of the baseline."""
    return {name: float(f"{(maps[name] - values).abs().max():.1e}") for name, values in baseline.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also time nano through torch.compile (a minute more)")
    options = parser.parse_args()
    nano = CellViT.from_pretrained("nano").eval().to(options.device)
    published = CellViT("vit-256", 6, 19).eval().to(options.device)
    runs = variants("nano", nano, compiled=options.compile) | variants("vit-256", published, compiled=False)
    tile = tissue(options.device)
    seconds, maps = {name: [] for name in runs}, {}
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    with ExitStack() as stack:
        for name, model in runs.items():
            if "accelerated" in name:
                stack.enter_context(accelerated_inference(model))
        for repeat in range(options.repeats + 1):
            for name, model in runs.items():
                start = clock()
                with autocast_context("bf16-mixed" if name.endswith("bf16") else "32-true", model.device):
                    found = {key: value.float().cpu() for key, value in model.predict_maps(tile).items()}
                if repeat:
                    seconds[name].append(clock() - start)
                else:  # the first round warms up
                    maps[name] = found
    result = {"device": options.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in runs:
        result[name] = {
            "ms_median": round(1e3 * median(seconds[name])),
            f"{BASELINE} over it": round(
                median(a / b for a, b in zip(seconds[BASELINE], seconds[name], strict=True)), 2
            ),
            "largest differences from plain": distances(maps[name], maps[f"{name.split()[0]} plain"]),
        }
    for name, model in (("nano", nano), ("vit-256", published)):
        facts = {"parameters": sum(p.numel() for p in model.parameters()), "gflop": round(count_gflop(model), 1)}
        result[f"{name} plain"] |= facts
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
