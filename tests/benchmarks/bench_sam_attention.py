"""Time and weigh the attention of SAM-B, ours and segment-anything's own, on one image; prints JSON.

Both have the same random weights and run turn by turn in one process, so that the ratio holds on a noisy machine. Peak
memory is what a forward pass adds: to the process (Linux, CPU), or as torch counts it (CUDA).
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import nn

from cellvit.encoders import SAMEncoder

KINDS = ("ours", "segment-anything")


def build(device):
    """Return a function per kind that maps an image to the neck's mean."""
    ours = SAMEncoder().eval()
    torch.manual_seed(0)
    for parameter in ours.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    theirs = ImageEncoderViT(
        **ours.size._asdict(),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(2, 5, 8, 11),
    ).eval()
    theirs.load_state_dict(ours.net.state_dict())
    ours, theirs = ours.to(device), theirs.to(device)
    full = theirs.pos_embed

    def reference(image):
        side = image.shape[-1] // 16
        theirs.pos_embed = nn.Parameter(full[:, :side, :side], requires_grad=False)
        return theirs(image).mean((2, 3))

    return dict(zip(KINDS, (lambda image: ours(image).pooled, reference), strict=True))


def seconds(run, image):
    """Return the duration of one forward pass."""
    start = time.perf_counter()
    with torch.inference_mode():
        run(image).sum().item()
    return time.perf_counter() - start


def peak_mib(run, image):
    """Return the memory that a forward pass adds."""
    if image.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(run, image)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    seconds(run, image)
    return resident("VmHWM") - before


def resident(field):
    """Return a memory figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def compare(size, device, repeats):
    """Return times, their ratio and the largest difference for one image size."""
    runs = build(device)
    image = torch.randn(1, 3, size, size, device=device)
    with torch.inference_mode():
        difference = (runs["ours"](image) - runs[KINDS[1]](image)).abs().max().item()
    times = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, run in runs.items():
            times[kind].append(seconds(run, image))
    ratios = [slow / fast for slow, fast in zip(times[KINDS[1]], times["ours"], strict=True)]
    return {
        "ms_median": {kind: round(1e3 * statistics.median(values), 1) for kind, values in times.items()},
        "segment-anything over ours": round(statistics.median(ratios), 2),
        "largest difference": difference,
        "peak_mib": {kind: round(peak_mib(run, image)) for kind, run in runs.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    result = {"device": options.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for size in options.sizes:
        result[f"{size} px"] = compare(size, options.device, options.repeats)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
