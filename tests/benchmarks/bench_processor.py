"""Processor seconds of networks for the tissue of one 1024 px tile, turn by turn beside nano in one run; prints JSON.

Wall time on a shared machine says little; user time of the process says what the operations cost. Networks are those of
configuration files, with random weights: time does not depend on them. All run as ``cellvit segment`` runs them, from
the image to activated maps.

    python tests/benchmarks/bench_processor.py docs/configs/nano-experiments/c.yaml --precision bf16-mixed --threads 1
    python tests/benchmarks/bench_processor.py --peers --precision 32-true --threads 1 --repeats 3

With ``--peers`` also the networks of ``peers.py`` that are installed, network only, and seconds per square millimetre.
"""

import argparse
import json
import resource
from contextlib import ExitStack
from statistics import median

import torch
import yaml
from bench_network import SIZE, count_gflop, tissue
from peers import NETWORKS, installed
from timing import processor

from cellvit import CellViT
from cellvit.cli.config import config_texts
from cellvit.inference.acceleration import accelerated_inference
from cellvit.inference.image import autocast_context

SOURCES = ("weights", "pretrained")
TILE_MM2 = (SIZE * 0.25e-3) ** 2


def build(path):
    """Return the model of a configuration, from random weights."""
    settings = {}
    for text in config_texts(path):
        settings.update(yaml.safe_load(text).get("model", {}))
    for name in SOURCES:
        settings["encoder"].get("init_args", {}).pop(name, None)
    return CellViT(**settings).eval()


def user_seconds():
    """Return the user time of this process, all threads together."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def beside(options, tile, nano):
    """Return seconds of other networks for the tile and per square millimetre, turn by turn beside nano."""
    runs, missing = installed(NETWORKS, tile)
    seconds = {name: [] for name in ("nano", *runs)}
    for repeat in range(options.repeats + 1):
        for name in seconds:
            run, share, _ = (lambda: nano.predict_maps(tile), 1.0, "") if name == "nano" else runs[name]
            start = user_seconds()
            run()
            if repeat:  # the first round warms up
                seconds[name].append((user_seconds() - start) / share)
    result = {name: {"left out": reason} for name, reason in missing.items()}
    for name, values in seconds.items():
        result[name] = {
            "processor_seconds": round(median(values), 3),
            "per_mm2": round(median(values) / TILE_MM2, 1),
            "of nano": round(median(a / b for a, b in zip(values, seconds["nano"], strict=True)), 2),
        }
        if name in runs:
            result[name] |= {"version": runs[name][2], "share_of_tile": round(runs[name][1], 3)}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--peers", action="store_true", help="other networks, too")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {"nano": CellViT.from_pretrained("nano").eval(), **{path: build(path) for path in options.configs}}
    tile, seconds = tissue("cpu"), {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(accelerated_inference(model))
        for repeat in range(options.repeats + 1):
            for name, model in models.items():
                with autocast_context(options.precision, model.device):
                    start = user_seconds()
                    model.predict_maps(tile)
                    if repeat:  # the first round warms up
                        seconds[name].append(user_seconds() - start)
        with autocast_context(options.precision, models["nano"].device):
            others = {"peers": beside(options, tile, models["nano"])} if options.peers else {}
    result = {"size": SIZE, "precision": options.precision, "threads": options.threads, "torch": torch.__version__}
    result |= {"processor": processor(), **others}
    for name, model in models.items():
        shares = [a / b for a, b in zip(seconds[name], seconds["nano"], strict=True)]
        result[name] = {
            "processor_seconds": round(median(seconds[name]), 3),
            "of nano": round(median(shares), 3),
            "gflop": round(count_gflop(model), 1),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
