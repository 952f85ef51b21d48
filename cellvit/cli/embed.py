"""``cellvit embed``: embeddings for nuclei that another tool has found."""

import argparse
from pathlib import Path

from cellvit.cli.console import Output
from cellvit.cli.options import add_trust, positive
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser
from cellvit.inference.settings import DEVICES, PRECISIONS

EPILOG = """\
FILE holds outlines or centroids in pixels of the full resolution of SLIDE: GeoJSON of QuPath and others, Parquet or a
result folder, CSV with columns x and y, label images (TIFF, PNG, NPY, NPZ) such as those of Cellpose and StarDist, JSON
of HoVer-Net, COCO or LabelMe, regions of ImageJ. They, their types and their labels stay as they are. A nucleus without
outline is embedded as a disc (--radius). DIR becomes a result folder as of 'cellvit segment': nuclei.parquet with
embeddings and measurements, summary.json, and the formats asked for. Stopped or killed, the same command goes on.

exit status: 0 done; 1 failed (with a line that says why); 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("embed", "Give nuclei that another tool has found the embeddings of a model.", EPILOG)
    add = parser.add_argument
    add("slide", type=Path, metavar="SLIDE", help="the slide or image")
    add("--outlines", type=Path, required=True, metavar="FILE", help="the nuclei: outlines or centroids of any tool")
    add("--out", type=Path, required=True, metavar="DIR", help="result folder; made if missing")
    add("--model", default="nano", metavar="NAME", help="name, folder, or released .pth of a model (default: nano)")
    add_trust(parser)
    add("--classifier", type=Path, metavar="DIR", help="types of this classifier of 'cellvit classify', not FILE's")
    add("--radius", type=positive(float), default=4.0, metavar="UM", help="of discs for bare centroids (default: 4)")
    add("--mpp", type=positive(float), metavar="UM", help="microns per pixel (default: as SLIDE, else FILE states)")
    add("--magnification", type=positive(float), metavar="X", help="objective power instead: 40 is 0.25 microns")
    add("--scene", metavar="N", help="number or name of the image to read, where a file holds several")
    add("--device", default="auto", metavar="NAME", help=f"{', '.join(DEVICES)}, or cuda:1 (default: auto)")
    add("--precision", default="32-true", choices=PRECISIONS[1:], help="of the network (default: 32-true)")
    add("--batch-size", type=positive(int), metavar="N", help="tiles at once (default: 1, or as it was begun)")
    add("--tile-size", default=1024, type=positive(int), metavar="PX", help="side of a tile (default: 1024)")
    add("--overlap", default=64, type=int, metavar="PX", help="overlap of tiles (default: 64)")
    add("--formats", default="geojson", metavar="LIST", help="files beside the table, by commas (default: geojson)")
    add("--overwrite", action="store_true", help="replace results that exist")
    add_limit_option(parser)
    add_output_options(parser, json="print what was done as a JSON object")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    from cellvit.inference.embed import embed_slide
    from cellvit.plugins.trust import trusted_packages

    trust = trusted_packages(options.trust)
    if options.classifier:
        from cellvit.classification import TypeClassifier

        TypeClassifier.load(options.classifier, trust=trust)  # told before anything is written
    with output.bars() as bars:
        task = bars.add_task("tiles", total=None)
        done = embed_slide(
            options.slide,
            options.outlines,
            options.out,
            model=options.model,
            device=options.device,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
            mpp=options.mpp,
            magnification=options.magnification,
            scene=options.scene,
            radius=options.radius,
            tile_size=options.tile_size,
            overlap=options.overlap,
            batch_size=options.batch_size,
            precision=options.precision,
            formats=tuple(name for name in options.formats.split(",") if name),
            overwrite=options.overwrite,
            trust=trust,
        )
    for text in done.summary["warnings"]:
        output.note(f"{str(options.slide)!r}: {text}", "warning")
    nuclei = done.summary["nuclei"]
    types = nuclei["by_type"]
    if options.classifier:
        from cellvit.classification import apply_types

        typed = apply_types(options.classifier, options.out, trust=trust)
        types = dict(typed.counts)
        for text in typed.notes:
            output.note(text, "warning")
    output.row({"out": options.out, "nuclei": nuclei["total"], "types": types})
    output.line(
        f"{nuclei['total']:,} nuclei of {options.outlines.name} have embeddings of {done.summary['model']['name']}"
    )
    output.line(f"wrote {options.out}")
    return 0


main = command(build_parser, _run, failure=1, resumes=True)
