"""``cellvit convert-nuclei``: from one format of nuclei to another."""

import argparse
import warnings
from contextlib import ExitStack
from pathlib import Path

from cellvit.cli.console import Output
from cellvit.cli.options import positive
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser

EPILOG = """\
The name of TARGET says the format: nuclei.geojson, nuclei.csv, nuclei.coco.json, nuclei.rois.zip, nuclei.dcm, ...;
'cellvit plugins format' lists all. What a format cannot hold, such as a million regions of ImageJ or coordinates beyond
its numbers, is refused, and nothing is written.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("convert-nuclei", "Write the nuclei of a file in another format.", EPILOG)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a file of nuclei of any format, or the result folder of a slide")
    add("target", metavar="TARGET", help="the new file")
    add("--format", metavar="NAME", help="its format (default: as its name says)")
    add("--mpp", type=positive(float), metavar="UM", help="microns per pixel (default: as SOURCE says)")
    add("--image-size", nargs=2, type=positive(int), metavar=("W", "H"), help="of the image (default: as SOURCE says)")
    add("--slide", metavar="FILE", help="the image, for formats that refer to it (DICOM) or hold it (SpatialData)")
    add("--overwrite", action="store_true", help="replace TARGET if it exists")
    add_limit_option(parser)
    add_output_options(parser, json="print a JSON object instead of a sentence")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    from cellvit.io.convert import convert_nuclei, format_name
    from cellvit.slide.open import open_slide

    with ExitStack() as stack:
        advance = stack.enter_context(output.progress("nuclei"))
        heard = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", UserWarning)
        slide = options.slide
        if slide is not None and (options.format or format_name(Path(options.target))) == "spatialdata":
            slide = stack.enter_context(open_slide(slide))
        made = convert_nuclei(
            options.source,
            options.target,
            format=options.format,
            mpp=options.mpp,
            image_size=tuple(options.image_size) if options.image_size else None,
            slide=slide,
            overwrite=options.overwrite,
            progress=lambda done, total: advance("", done, total),
        )
    for text in dict.fromkeys(str(one.message) for one in heard if one.category is UserWarning):
        output.note(text, "warning")
    left_out = f"; left out: {', '.join(made.left_out)}" if made.left_out else ""
    output.line(f"wrote {made.path}: {made.nuclei:,} nuclei ({made.format}){left_out}")
    output.row({"path": made.path, "format": made.format, "nuclei": made.nuclei, "left_out": made.left_out})
    return 0


main = command(build_parser, _run)
