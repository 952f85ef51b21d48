"""The command ``cellvit segment``: slides and images in; tables, outlines and pictures of nuclei out."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from cellvit.cli.console import Output
from cellvit.cli.inputs import Inputs, check_network, not_there, slide_settings, sort_inputs
from cellvit.cli.options import (
    IMAGE_FORMATS,
    add_network_options,
    add_slide_options,
    check_out_is_no_input,
    image_suffix,
)
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser
from cellvit.errors import ConfigError, ImageError, OutputError
from cellvit.inference.settings import DEFAULT_FORMATS, FORMATS
from cellvit.io.formats.base import FORMATS as NUCLEI_FORMATS
from cellvit.io.remote import is_address
from cellvit.weights.locate import model_path

EPILOG = f"""\
A slide (a scanner's format, a pyramid, a tiled TIFF, or more than 67 million pixels) gets a folder of its own in DIR,
with nuclei.parquet, tissue.png, summary.json and the formats {", ".join(FORMATS)}
(by default {", ".join(DEFAULT_FORMATS)}). Its resolution is --mpp or --magnification, else what it
states; without any of these it is refused. Stopped or killed, the same command goes on where it was. DIR gets
summary.csv and report.html for the slides of the call.

An image named a.png gives a.geojson (QuPath), a.json (layout of the released tools), a.parquet (all columns, with
embeddings) and a.png (the image with outlines); other formats, such as csv or imagej, where --formats names them. Two
images of one name get longer names. The resolution is --mpp or --magnification, else what the file states, else 0.25
microns per pixel.

A CSV file lists slides, one per line: column path, and optionally mpp, magnification, roi, scene.
An address (https://, s3://, gs://) names a TIFF, an OME-Zarr or an image; results are written here.
Of several images in a file the largest is read; of several large ones (scenes) --scene says which.

exit status: 0 all inputs done; 1 some failed (each with a line that says why); 2 nothing was started.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = verb_parser(
        "segment", "Find, outline and type the nuclei of whole slides and of images (PNG, JPEG, TIFF, ...).", EPILOG
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="slides, images, folders, 'scans/*.svs', addresses, CSV lists",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; made if missing")
    add("--formats", metavar="LIST", help="what to write, separated by commas (default: see below)")
    add("--simplify", type=float, default=0.0, metavar="UM", help="fewer points in GeoJSON: microns they may be off")
    add("--as", dest="kind", choices=("auto", "slide", "image"), default="auto", help="what the inputs are")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--debug", action="store_true", help="stop at the first error and show where it came from")
    add_limit_option(parser)
    add_output_options(parser, json="print one JSON object per image or slide, each in a line, instead of tables")
    add_network_options(parser)
    add = add_slide_options(parser).add_argument
    add("--keep-parts", action="store_true", help="keep the working folder of finished slides")
    add("--cluster", metavar="ADDRESS", help="spread slides over the workers of a Dask scheduler")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    if not options.cluster:  # its workers have models of their own
        model_path(options.model)
    inputs = sort_inputs(options)
    _check_inputs(inputs, options)
    _check_folder(options.out, options.inputs)
    formats = _parse_formats(options.formats, inputs)
    settings = slide_settings(options, tuple(name for name in formats if name in FORMATS))
    absent = [] if options.cluster else [reason for row in inputs.slides if (reason := not_there(row.path))]
    reasons = [*(reason for _, reason in inputs.missing), *absent]
    if reasons and options.debug:
        raise ImageError(reasons[0])
    for reason in reasons:
        output.error(reason)
    for text, reason in inputs.missing:
        output.row({"path": text, "error": reason})
    failed, devices = bool(reasons), [str(options.device)]
    if inputs.images or len(inputs.slides) > len(absent):
        devices = _devices(options, len(inputs.slides))
    if inputs.images:
        from cellvit.cli.segment_images import segment_images

        wanted = formats if options.formats else IMAGE_FORMATS
        chosen = tuple(name for name in wanted if image_suffix(name) is not None)
        failed |= segment_images(inputs, options, chosen, device=devices[0], output=output)
    if inputs.slides:
        from cellvit.cli.segment_slides import segment_slides

        failed |= segment_slides(inputs.slides, options, settings, devices, output=output)
    return 1 if failed else 0


def _devices(options: argparse.Namespace, slides: int) -> list[str]:
    if options.cluster:  # its workers have devices of their own
        return [options.device]
    from cellvit.inference.cohort.run import choose_devices

    devices = choose_devices(options.device, slides)
    check_network(options, devices[0])
    if options.postprocessor and slides:
        from cellvit.inference.postprocessing import with_postprocessor
        from cellvit.inference.protocol import load_model

        # told once, not of every slide
        with_postprocessor(load_model(options.model, device="cpu", trust=options.trust), dict(options.postprocessor))
    return list(devices)


def _check_inputs(inputs: Inputs, options: argparse.Namespace) -> None:
    if options.roi is not None and inputs.images:
        raise ConfigError(
            f"--roi is for slides, and {str(inputs.images[0])!r} is an image; add --as slide, or leave it out"
        )
    if options.cluster and not inputs.slides:
        raise ConfigError(
            "--cluster spreads slides, but there is none among the inputs; leave it out, or add --as slide"
        )


def _check_folder(out: Path, inputs: Sequence[str]) -> None:
    """Make the output folder and try to write into it, before anything is computed."""
    check_out_is_no_input(out, (Path(text) for text in inputs if not is_address(text)))
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {str(out)!r} is a file, not a folder; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write into {str(out)!r} ({reason}); choose another --out") from error


def _parse_formats(text: str | None, inputs: Inputs) -> tuple[str, ...]:
    """Return the formats to write; each kind of input takes those it knows."""
    if text is None:
        return tuple(dict.fromkeys([*IMAGE_FORMATS, *DEFAULT_FORMATS]))
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = list(dict.fromkeys([*IMAGE_FORMATS, *FORMATS]))
    unknown = [name for name in formats if name not in known]
    if unknown or not formats:
        raise ConfigError(
            f"--formats {text!r}: {unknown or 'nothing'} cannot be written; choose from {','.join(known)}"
        )
    if inputs.images and not any(map(image_suffix, formats)):
        raise ConfigError(
            f"--formats {text!r}: none of these is written for images such as {str(inputs.images[0])!r}; add one of "
            f"{','.join(name for name in known if image_suffix(name))}, or treat them as slides with --as slide"
        )
    for name in (name for name in formats if inputs.images and name in NUCLEI_FORMATS):
        NUCLEI_FORMATS.get(name)().check_packages()
    return formats


main = command(build_parser, _run, failure=2, resumes=True)
