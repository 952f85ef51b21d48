"""``cellvit label``: what people call nuclei, kept beside the nuclei of a slide."""

import argparse
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import Output
from cellvit.cli.options import positive
from cellvit.cli.verb import add_limit_option, add_output_options, class_map, command, verb_parser

if TYPE_CHECKING:
    from cellvit.labels.importing import ImportedLabels
    from cellvit.labels.table import Labels

EPILOG = """\
'import' matches annotations to nuclei and adds them to labels.parquet beside nuclei.parquet; 'list' counts what there
is; 'export' writes it as points that QuPath opens. 'cellvit label import --help' shows the options.

exit status: 0 done; 1 failed, or a file could not be used; 2 wrong usage.
"""
IMPORT_EPILOG = """\
FILE is GeoJSON of QuPath, CSV with columns for x, y and class, CSV of a points or shapes layer of napari, COCO,
LabelMe, regions of ImageJ (.zip, .roi), or typed nuclei of another tool. A point means the nucleus it lies in, else
the nearest within the radius; an area means all nuclei whose centroid lies inside. In a table, x and y are pixels of
full resolution, x_um and y_um micrometres. What was left out is listed in labels-left-out.csv.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("label", "Take in, count or write labels of nuclei.", EPILOG)
    kinds = parser.add_subparsers(required=True, metavar="import|list|export")
    shape = argparse.RawDescriptionHelpFormatter
    take = kinds.add_parser("import", help="match annotations to nuclei", epilog=IMPORT_EPILOG, formatter_class=shape)
    add = take.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="annotations")
    _add_nuclei(take)
    add("--radius", type=float, metavar="UM", help="microns beside an outline that still mean the nucleus (default: 2)")
    add("--radius-px", type=float, metavar="PX", help="the same in pixels (default: 4, where no resolution is known)")
    add("--who", metavar="NAME", help="who gave the labels (default: the user)")
    add(
        *("--class-map", "--class"),
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="call class OLD by the name NEW; 'OLD=' withdraws labels",
    )
    add("--class-name", default="", metavar="NAME", help="class of annotations that have none")
    add("--objects", choices=("auto", "drawn", "found", "all"), default="auto", help=_OBJECTS)
    add("--unit", choices=("px", "um"), help="of the coordinates (default: as the file says, else px)")
    add("--scale", type=positive(float), default=1.0, metavar="F", help="multiply coordinates, as of a smaller level")
    add("--shift", nargs=2, type=float, default=(0.0, 0.0), metavar=("X", "Y"), help="level-0 pixels, added after that")
    add("--mpp", type=positive(float), metavar="UM", help="microns per pixel, where the nuclei do not state them")
    take.set_defaults(run=_import)
    count = kinds.add_parser("list", help="count the labels of a slide by class, person and file")
    count.set_defaults(run=_list)
    write = kinds.add_parser("export", help="write the labels of a slide as GeoJSON points for QuPath")
    write.add_argument("--out", type=Path, required=True, metavar="FILE", help="GeoJSON to write")
    write.set_defaults(run=_export)
    for kind in (count, write):
        _add_nuclei(kind)
    for kind in (take, count, write):
        add_limit_option(kind)
        add_output_options(kind, json="print what was done as a JSON object")
    return parser


_OBJECTS = "objects of QuPath that count (default: those people drew where some have a class, else detections)"


def _add_nuclei(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nuclei", type=Path, required=True, metavar="RESULT", help="result folder of the slide, or a file of nuclei"
    )


def _run(options: argparse.Namespace, output: Output) -> int:
    return int(options.run(options, output))


def _import(options: argparse.Namespace, output: Output) -> int:
    names = class_map(options.class_map)

    from cellvit.labels.importing import import_labels

    done = import_labels(
        options.files,
        options.nuclei,
        radius=options.radius,
        radius_px=options.radius_px,
        who=options.who,
        class_map=names,
        class_name=options.class_name,
        objects=options.objects,
        unit=options.unit,
        scale=options.scale,
        shift=tuple(options.shift),
        mpp=options.mpp,
    )
    for name, reason in done.failed.items():
        output.error(f"{name!r} was not used: {reason}")
    for text in done.notes:
        output.note(text, "warning")
    _show_import(done, output)
    return 1 if done.failed else 0


def _show_import(done: "ImportedLabels", output: Output) -> None:
    from cellvit.labels.importing import LEFT_OUT_FILE

    current = done.labels.current()
    output.row(
        {
            "out": done.path,
            "added": done.added,
            "known": done.known,
            "changed": done.changed,
            "outranked": done.outranked,
            "left_out": done.reasons(),
            "radius_px": done.radius,
            "classes": _counts(current),
            "failed": dict(done.failed),
            "notes": list(done.notes),
        }
    )
    output.line(f"{done.added:,} labels added, {done.known:,} were known; radius {done.radius:.3g} px")
    if done.changed:
        output.line(f"{done.changed:,} nuclei have another class than before; the former label is kept as history")
    if done.outranked:
        output.line(f"{done.outranked:,} nuclei in areas of another class keep the label that means them alone")
    for reason, count in done.reasons().items():
        output.line(f"{count:,} left out: {reason}")
    if done.left_out:
        output.line(f"they are listed in {LEFT_OUT_FILE}")
    _show_classes(current, output)
    output.line(f"wrote {done.path}")


def _counts(labels: "Labels") -> dict[str, int]:
    return dict(Counter(labels.class_name.tolist()).most_common())


def _show_classes(current: "Labels", output: Output) -> None:
    for name, count in _counts(current).items():
        alone = "; one label is too few to train and to test with" if count == 1 else ""
        output.line(f"  {name}: {count:,}{alone}")


def _labels(options: argparse.Namespace, output: Output) -> "Labels":
    """Return the labels of a slide; what the library warns of is printed as ours."""
    from cellvit.labels.match import labels_of

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        labels = labels_of(options.nuclei)
    for one in told:
        output.note(str(one.message), "warning")
    return labels


def _list(options: argparse.Namespace, output: Output) -> int:
    labels = _labels(options, output)
    current, unmatched = labels.current(), int((labels.nucleus < 0).sum())
    by = {name: dict(Counter(getattr(current, name).tolist()).most_common()) for name in ("who", "source")}
    facts = {"labels": len(labels), "nuclei": len(current), "unmatched": unmatched, "classes": _counts(current), **by}
    output.row(facts)
    output.line(f"{len(current):,} nuclei have a label; {len(labels):,} labels in all, {unmatched:,} without a nucleus")
    _show_classes(current, output)
    for name, counts in by.items():
        output.line(f"{name}: " + ", ".join(f"{text or 'unknown'} {count:,}" for text, count in counts.items()))
    return 0


def _export(options: argparse.Namespace, output: Output) -> int:
    from cellvit.labels.export import write_points

    current = _labels(options, output).current()
    write_points(current, options.out)
    output.row({"out": options.out, "labels": len(current)})
    output.line(f"wrote {len(current):,} points to {options.out}")
    return 0


main = command(build_parser, _run, failure=1)
