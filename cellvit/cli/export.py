"""``cellvit export``: a training checkpoint becomes safetensors and JSON."""

import argparse
import sys
from collections.abc import Sequence

from cellvit.cli.console import add_model_output


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: Its arguments.

    Returns:
        0 on success.

    Raises:
        CellViTError: If the checkpoint cannot be read or the folder not be written.
    """
    parser = argparse.ArgumentParser("cellvit export", description="Turn a checkpoint into safetensors + JSON.")
    parser.add_argument("checkpoint", help="a .ckpt file written by 'cellvit fit', or a model folder")
    add_model_output(parser)
    parser.add_argument("--merge-adapters", action="store_true", help="add LoRA adapters to the weights they adapt")
    arguments = parser.parse_args(argv)

    import torch

    from cellvit.model.cellvit import CellViT

    model = CellViT.from_pretrained(arguments.checkpoint)
    if arguments.merge_adapters:
        from cellvit.training.finetuning import merge_adapters

        model = merge_adapters(model)
    model.save_pretrained(arguments.out, dtype=getattr(torch, arguments.dtype))
    sys.stdout.write(f"wrote {arguments.out}\n")
    return 0
