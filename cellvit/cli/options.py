"""Options that several verbs share, and what their values may be; nothing heavy is imported for them."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cellvit.errors import OutputError
from cellvit.geometry.symmetry import VIEWS
from cellvit.inference.settings import AUTO, DEVICES, PRECISIONS
from cellvit.io.formats.base import FORMATS as NUCLEI_FORMATS

IMAGE_FORMATS = {"geojson": ".geojson", "json": ".json", "parquet": ".parquet", "overlay": ".png"}
"""Formats that an image gets unless others are asked for, and the suffix of each."""
DTYPES = ("float32", "float16", "bfloat16")


def image_suffix(name: str) -> str | None:
    """Return the suffix of the files of images in a format, or None if it is for slides only."""
    if name in IMAGE_FORMATS:
        return IMAGE_FORMATS[name]
    if name == "geojson-plain" or name not in NUCLEI_FORMATS:  # "geojson" of an image is plain
        return None
    return NUCLEI_FORMATS.get(name).suffixes[0]


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """Return a parser of numbers greater than 0, for the ``type`` of an argument."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Add how many views are averaged."""
    parser.add_argument(
        "--tta",
        default=1,
        type=int,
        choices=VIEWS,
        help="average over so many mirrored and turned views of each tile, so many times as slow (default: 1, off)",
    )


def add_postprocessor(parser: argparse._ActionsContainer) -> None:
    """Add other settings for the post-processing."""
    parser.add_argument(
        "--postprocessor",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="another setting for the post-processing; min_prob=0.5 finds more with nano; may be repeated",
    )


def _setting(text: str) -> tuple[str, Any]:
    """Return name and value of ``NAME=VALUE``, the value as YAML has it."""
    import yaml

    name, equals, value = text.partition("=")
    try:
        if not (equals and name.strip().isidentifier()):
            raise ValueError
        try:
            number = float(value)
        except ValueError:
            return name.strip(), yaml.safe_load(value)
        return name.strip(), int(number) if number == int(number) and "." not in value else number
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE, such as min_prob=0.5") from error


def add_trust(parser: argparse._ActionsContainer) -> None:
    """Add whose classes the file of a model may name."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="import classes of this package if the model's file names them; may be repeated (default: $CELLVIT_TRUST)",
    )


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how tiles go through a network: model, resolution, which image, device, tiles."""
    add = parser.add_argument
    add("--model", default="nano", metavar="NAME", help="name, folder, or released .pth of a model (default: nano)")
    add_trust(parser)
    add("--mpp", type=positive(float), metavar="UM", help="microns per pixel (default: see below)")
    add("--magnification", type=positive(float), metavar="X", help="objective power instead: 40 is 0.25 microns")
    add("--scene", metavar="N", help="number or name of the image to read, where a file holds several (see docs)")
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(DEVICES)}, cuda:1, or several as cuda:0,cuda:1 (default: auto, all GPUs)",
    )
    add("--precision", default=AUTO, choices=PRECISIONS, help="of the network (default: auto, bf16-mixed if faster)")
    add_tta(parser)
    add_postprocessor(parser)
    add("--batch-size", type=positive(int), metavar="N", help="tiles at once (default: 1, or as it was begun)")
    add("--tile-size", default=1024, type=positive(int), metavar="PX", help="side of a tile (default: 1024)")
    add("--overlap", default=64, type=int, metavar="PX", help="overlap of tiles (default: 64)")
    add("--no-measurements", action="store_true", help="do not measure size, form, stain and neighbours of nuclei")


def add_slide_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add, in a group of its own, what is for whole slides only, and return the group."""
    group = parser.add_argument_group("slides")
    add = group.add_argument
    add("--workers", type=int, metavar="N", help="post-processing processes (default: by cores and device)")
    add("--roi", type=Path, metavar="FILE", help="GeoJSON polygons, level-0 pixels: keep nuclei inside only")
    add("--no-tissue-filter", action="store_true", help="search everything (with --roi: all of the region)")
    add("--work", type=Path, metavar="DIR", help="folder for unfinished work, such as a fast disk (default: in --out)")
    add("--no-embeddings", action="store_true", help="leave out the embeddings, most of the bytes")
    add(
        "--origin",
        choices=("slide", "bounds"),
        default="slide",
        help="coordinates: of the file, or of its scanned part",
    )
    return group


def add_model_output(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--out`` and ``--dtype`` of a verb that writes a model folder."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the stored weights")


def check_out_is_no_input(out: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to write results into a folder that is read.

    Raises:
        OutputError: If one of the inputs is that folder.
    """
    for path in inputs:
        if path is not None and path.is_dir() and out.exists() and out.samefile(path):
            message = f"--out {str(out)!r} is also an input folder; choose another, or its results become inputs"
            raise OutputError(message)
