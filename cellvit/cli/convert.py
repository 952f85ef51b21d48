"""``cellvit convert``: a checkpoint of the published implementation becomes safetensors and JSON."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellvit.cli.console import add_model_output

EPILOG = """\
Every tensor of the file must find its place, and nothing in the file is run. The folder then works wherever a model is
asked for: cellvit segment IMAGE --model DIR --out RESULTS, CellViT.from_pretrained("DIR").
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: Its arguments.

    Returns:
        0 on success.

    Raises:
        CellViTError: If the file is no such checkpoint or cannot be read, its values do not fit the type, or the folder
            cannot be written.
    """
    parser = argparse.ArgumentParser(
        "cellvit convert",
        description="Turn a checkpoint of the published implementation of CellViT (.pth) into safetensors + JSON.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="such as CellViT-256-x40.pth or CellViT-SAM-H-x40.pth")
    add_model_output(parser)
    arguments = parser.parse_args(argv)

    import torch

    from cellvit.errors import WeightsError
    from cellvit.model.cellvit import CellViT

    if not Path(arguments.checkpoint).is_file():
        raise WeightsError(f"no file {arguments.checkpoint!r}; give a checkpoint of the published implementation")
    model = CellViT.from_pretrained(arguments.checkpoint)
    source = model.about.get("source", {})
    if "arch" not in source:
        raise WeightsError(
            f"{arguments.checkpoint!r} is a checkpoint of cellvit itself; 'cellvit export' turns it into a folder"
        )
    state, encoder = model.state_dict(), model.settings["encoder"]["class_path"]
    model.save_pretrained(arguments.out, dtype=getattr(torch, arguments.dtype))
    lines = [
        f"{source['file']}: {source['arch']} with encoder {encoder}, {len(state)} tensors, "
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters",
        f"types: {', '.join(model.classes.names)}",
        f"resolution: {model.mpp:g} µm/px ({model.about['resolution']})",
        f"sha256 of the file: {source['sha256']}",
        *([f"left out: {model.about['left_out']}"] if "left_out" in model.about else []),
        f"wrote {arguments.out}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
