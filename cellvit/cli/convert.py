"""``cellvit convert``: a checkpoint of the published implementation becomes safetensors and JSON."""

import argparse
from pathlib import Path

from cellvit.cli.console import Output
from cellvit.cli.options import add_model_output
from cellvit.cli.verb import command, verb_parser
from cellvit.errors import WeightsError

EPILOG = """\
Every tensor of the file must find its place, and nothing in the file is run. The folder then works wherever a model is
asked for: cellvit segment IMAGE --model DIR --out RESULTS, CellViT.from_pretrained("DIR").
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "convert",
        "Turn a checkpoint of the published implementation of CellViT (.pth) into safetensors + JSON.",
        EPILOG,
    )
    parser.add_argument("checkpoint", help="such as CellViT-256-x40.pth or CellViT-SAM-H-x40.pth")
    add_model_output(parser)
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    if not Path(options.checkpoint).is_file():
        raise WeightsError(f"no file {options.checkpoint!r}; give a checkpoint of the published implementation")

    import torch

    from cellvit.model.cellvit import CellViT

    model = CellViT.from_pretrained(options.checkpoint)
    source = model.about.get("source", {})
    if "arch" not in source:
        raise WeightsError(
            f"{options.checkpoint!r} is a checkpoint of cellvit itself; 'cellvit export' turns it into a folder"
        )
    state, encoder = model.state_dict(), model.settings["encoder"]["class_path"]
    model.save_pretrained(options.out, dtype=getattr(torch, options.dtype))
    lines = [
        f"{source['file']}: {source['arch']} with encoder {encoder}, {len(state)} tensors, "
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters",
        f"types: {', '.join(model.classes.names)}",
        f"resolution: {model.mpp:g} µm/px ({model.about['resolution']})",
        f"sha256 of the file: {source['sha256']}",
        *([f"left out: {model.about['left_out']}"] if "left_out" in model.about else []),
        f"wrote {options.out}",
    ]
    output.line("\n".join(lines))
    return 0


main = command(build_parser, _run)
