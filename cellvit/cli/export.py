"""``cellvit export``: a model becomes a folder for cellvit, or for programs that run it without cellvit."""

import argparse
from typing import Any

from cellvit.cli.console import Output
from cellvit.cli.options import DTYPES, add_trust
from cellvit.cli.verb import UsageError, command, verb_parser
from cellvit.export.base import EXPORTS, exporter
from cellvit.weights.locate import model_path

FOLDER, QUPATH = "folder", "qupath"
GRAPHS = ("onnx", "torch-export")

EPILOG = """\
targets:
  folder        model.safetensors + config.json, which cellvit opens
  onnx          the network for ONNX Runtime and others; nuclei are made of its maps, also without torch
  torch-export  the network as a program of torch.export
  qupath        network and post-processing for QuPath's InstanSeg extension
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("export", "Turn a checkpoint into safetensors + JSON, or into ONNX and others.", EPILOG)
    add = parser.add_argument
    add("checkpoint", help="a .ckpt file written by 'cellvit fit', or a model folder")
    add("--to", default=FOLDER, choices=(FOLDER, *EXPORTS), help="who is to open it (default: folder)")
    add("--out", required=True, metavar="DIR", help="folder to write")
    add("--dtype", choices=DTYPES, help="type of the stored weights, of a folder (default: float32)")
    add(
        "--size",
        type=_size,
        metavar="PX",
        help="one size of all images, 512 or 384x640 (height x width), for onnx and torch-export (default: any)",
    )
    add(
        "--class-names",
        metavar="NAME,...",
        help="names of the types in QuPath, without background (default: the model's)",
    )
    add("--no-verify", action="store_true", help="do not open the file again to compare its maps with the model's")
    add_trust(parser)
    add("--merge-adapters", action="store_true", help="add LoRA adapters to the weights they adapt")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    chosen = _settings(options)
    model_path(options.checkpoint)

    import torch

    from cellvit.model.cellvit import CellViT

    model = CellViT.from_pretrained(options.checkpoint, trust=options.trust)
    if options.merge_adapters:
        from cellvit.training.finetuning import merge_adapters

        model = merge_adapters(model)
    if options.to == FOLDER:
        model.save_pretrained(options.out, dtype=getattr(torch, options.dtype or DTYPES[0]))
    else:
        for remark in exporter(options.to)(model, options.out, **chosen):
            output.note(remark, "note")
    output.line(f"wrote {options.out}")
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the further arguments of the exporter.

    Raises:
        UsageError: If one is not for this target.
    """
    if options.dtype and options.to != FOLDER:
        raise UsageError(f"--dtype is for --to folder; what goes to {options.to} is float32")
    if options.class_names is not None and options.to != QUPATH:
        raise UsageError(f"--class-names is for --to {QUPATH}, not for {options.to}")
    if options.to in GRAPHS:
        return {"size": options.size, "verify": not options.no_verify}
    if options.size or options.no_verify:
        given = "--size" if options.size else "--no-verify"
        raise UsageError(f"{given} is for --to {' and '.join(GRAPHS)}, not for {options.to}")
    return {"class_names": options.class_names.split(",")} if options.class_names is not None else {}


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 512, or 384x640 for height x width")
    return int(sides[0]), int(sides[-1])


main = command(build_parser, _run)
