"""``cellvit export``: a training checkpoint becomes safetensors and JSON."""

import argparse

from cellvit.cli.console import Output
from cellvit.cli.options import add_model_output, add_trust
from cellvit.cli.verb import command, verb_parser
from cellvit.weights.locate import model_path


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("export", "Turn a checkpoint into safetensors + JSON.")
    parser.add_argument("checkpoint", help="a .ckpt file written by 'cellvit fit', or a model folder")
    add_model_output(parser)
    add_trust(parser)
    parser.add_argument("--merge-adapters", action="store_true", help="add LoRA adapters to the weights they adapt")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    model_path(options.checkpoint)

    import torch

    from cellvit.model.cellvit import CellViT

    model = CellViT.from_pretrained(options.checkpoint, trust=options.trust)
    if options.merge_adapters:
        from cellvit.training.finetuning import merge_adapters

        model = merge_adapters(model)
    model.save_pretrained(options.out, dtype=getattr(torch, options.dtype))
    output.line(f"wrote {options.out}")
    return 0


main = command(build_parser, _run)
