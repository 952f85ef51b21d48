"""Processor seconds of networks for the tissue of one 1024 px tile, turn by turn beside nano in one run; prints JSON.

Wall time on a shared machine says little; user time of the process says what the operations cost. Networks are those of
configuration files, with random weights: time does not depend on them. All run as ``cellvit segment`` runs them, from
the image to activated maps.

    python tests/benchmarks/bench_processor.py docs/configs/nano3.yaml --precision bf16-mixed --threads 1
"""

import argparse
import json
import resource
from contextlib import ExitStack
from statistics import median

import torch
import yaml
from bench_network import SIZE, count_gflop, tissue

from cellvit import CellViT
from cellvit.cli.config import config_texts
from cellvit.inference.acceleration import accelerated_inference
from cellvit.inference.image import autocast_context

SOURCES = ("weights", "pretrained")


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
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
    result = {"size": SIZE, "precision": options.precision, "threads": options.threads, "torch": torch.__version__}
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
