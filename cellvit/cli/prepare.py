"""``cellvit prepare``: data sets as distributed become folders that training reads."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from cellvit.cli.console import Output
from cellvit.cli.inputs import not_there
from cellvit.cli.options import positive
from cellvit.cli.verb import add_limit_option, add_output_options, class_map, command, verb_parser
from cellvit.errors import DataError
from cellvit.io.tables import console_text

if TYPE_CHECKING:
    from cellvit.data.datasets.annotated import PreparedLabels
    from cellvit.data.pannuke.convert import FoldSummary
    from cellvit.data.pannuke.prepare import Prepared

EPILOG = """\
A run that was stopped is continued by the same command; finished folds and images are kept. Nothing is written into
the source folder but 'prepared' (choose another place with --out). 'cellvit prepare DATASET --help' shows the options.
"""


CHECKS = "checks"
"""Folder of pictures in a data set that was made from annotations."""


class _Faults:
    """Names of the faults that can be accepted; the module that knows them is loaded when they are asked for."""

    def __iter__(self) -> Iterator[str]:
        from cellvit.data.pannuke.convert import ACCEPTABLE

        return iter(ACCEPTABLE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("prepare", "Check a data set and write it in the form that training reads.", EPILOG)
    kinds = parser.add_subparsers(required=True, metavar="DATASET")
    pannuke = kinds.add_parser("pannuke", help="the folds of PanNuke as they are distributed")
    pannuke.add_argument("root", type=Path, metavar="ROOT", help="folder with 'Fold 1', 'Fold 2', 'Fold 3'")
    pannuke.add_argument("--mpp", type=float, metavar="UM", help="microns per pixel to make (default: as the source)")
    pannuke.add_argument(
        "--folds", nargs="+", type=int, metavar="K", help="folds to prepare (default: all); earlier ones stay"
    )
    pannuke.add_argument("--accept", nargs="+", choices=_Faults(), default=[], metavar="FAULT", help="%(choices)s")
    pannuke.set_defaults(run=_pannuke)
    like = kinds.add_parser("pannuke-like", help="CoNSeP, cut into patches in the layout of PanNuke, and prepared")
    like.add_argument("root", type=Path, metavar="ROOT", help="folder 'consep', or the one it lies in")
    like.set_defaults(run=_pannuke_like)
    monuseg = kinds.add_parser("monuseg", help="MoNuSeg: images with outlines in XML")
    monuseg.add_argument("root", type=Path, metavar="ROOT", help="folder with .tif images and .xml outlines")
    monuseg.set_defaults(run=_monuseg)
    labels = kinds.add_parser(
        "labels", help="your own annotations: outlines with classes, in images or regions of slides"
    )
    _add_labels(labels)
    for kind, default in (
        (labels, "./annotated"),
        (pannuke, "ROOT/prepared[-mppUM]"),
        (like, "./pannuke-like"),
        (monuseg, "ROOT/prepared"),
    ):
        kind.add_argument("--out", type=Path, metavar="DIR", help=f"folder to write (default: {default})")
        add_limit_option(kind)
        add_output_options(kind, json="print one JSON object per fold or image instead of tables")
    return parser


def _add_labels(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "annotations",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="GeoJSON, COCO, LabelMe, label images, or folders of them",
    )
    add(
        "--images", nargs="+", type=Path, default=[], metavar="PATH", help="images, slides or folders (default: beside)"
    )
    add(
        "--region-class",
        nargs="+",
        metavar="NAME",
        help="class of rectangles in which all is outlined (default: Region*)",
    )
    add("--class-map", "--class", action="append", default=[], metavar="OLD=NEW", help="call class OLD by the name NEW")
    add("--class-names", nargs="+", metavar="NAME", help="classes in their order, without background (default: all)")
    for split, share in (("val", 0.2), ("test", 0.0)):
        add(
            f"--{split}",
            nargs="+",
            default=[str(share)],
            metavar="X",
            help=f"share or names of slides (default: {share})",
        )
    add("--patch-size", type=int, default=1024, metavar="PX", help="cut larger regions into pieces (default: 1024)")
    add("--mpp", type=positive(float), metavar="UM", help="microns per pixel of all images")
    add("--pictures", type=int, default=24, metavar="N", help="patches to draw with their outlines (default: 24)")
    parser.set_defaults(run=_labels, root=None)


def _run(options: argparse.Namespace, output: Output) -> int:
    if options.root is not None and (reason := not_there(options.root)):
        raise DataError(reason)
    return int(options.run(options, output) or 0)


def _pannuke(options: argparse.Namespace, output: Output) -> None:
    from cellvit.data.pannuke.prepare import prepare_pannuke

    with output.progress("patches") as advance:
        prepared = prepare_pannuke(
            options.root,
            options.out,
            mpp=options.mpp,
            folds=options.folds,
            accept=options.accept,
            report=advance,
        )
    _show_folds(prepared, output)
    _say_next(output, _training(prepared), prepared.out)


def _pannuke_like(options: argparse.Namespace, output: Output) -> None:
    from cellvit.data.datasets.consep import cut_folds
    from cellvit.data.pannuke.prepare import prepare_pannuke

    out = options.out or Path("pannuke-like")
    with output.progress("images") as advance:
        cut = cut_folds(options.root, out, report=lambda done, total: advance("cut", done, total))
    with output.progress("patches") as advance:
        prepared = prepare_pannuke(out, report=advance)
    state = "were there" if cut.kept else "written"
    output.line(f"folds as PanNuke distributes them {state}: {out}")
    for number, names in cut.images.items():
        output.line(f"  fold {number}: {cut.patches[number]} patches of {', '.join(names)}")
    if cut.left_out:
        output.line(f"  left out, no label or no types: {', '.join(cut.left_out)}")
    _show_folds(prepared, output)
    _say_next(output, _training(prepared), out)


def _monuseg(options: argparse.Namespace, output: Output) -> None:
    from cellvit.data.datasets.monuseg import prepare_monuseg

    out = options.out or options.root / "prepared"
    with output.progress("images") as advance:
        made = prepare_monuseg(options.root, out, report=advance)
    table = Table(title=console_text(f"MoNuSeg in {str(out)!r}"))
    table.add_column("image", overflow="fold")
    for heading in ("nuclei", "wholly under others", "outlines of < 3 points", ""):
        table.add_column(heading, justify="right")
    for one in made:
        output.row({"image": one.name, "nuclei": one.nuclei, "kept": one.kept, "out": out})
        numbers = ("", "", "kept") if one.kept else (f"{one.occluded:,}", f"{one.dropped:,}", "")
        table.add_row(console_text(one.name), f"{one.nuclei:,}", *numbers)
    table.add_section()
    table.add_row(f"{len(made)} images", f"{sum(one.nuclei for one in made):,}")
    output.show(table)
    if excluded := sum(one.excluded for one in made):
        output.note(f"{excluded} regions marked as excluded (NegativeROA) were left out.")
    if layers := sorted({name for one in made for name in one.layers}):
        output.note(f"the annotations {', '.join(layers)} were taken together; types are not kept.")
    _say_next(output, "cellvit segment --out results", out / "images")


def _labels(options: argparse.Namespace, output: Output) -> int:
    from cellvit.data.datasets.annotated import CLASSES_FILE, REGIONS, prepare_annotated

    names = class_map(options.class_map)
    with output.progress("images") as advance:
        made = prepare_annotated(
            options.annotations,
            options.out or Path("annotated"),
            images=options.images,
            region_class=options.region_class or REGIONS,
            class_map=names,
            class_names=options.class_names,
            val=_share_or_names(options.val),
            test=_share_or_names(options.test),
            patch_size=options.patch_size,
            mpp=options.mpp,
            report=advance,
        )
    _draw_checks(made, options.pictures)
    for problem in made.problems:
        output.error(problem)
    for note in made.notes:
        output.note(note, "warning")
    _show_patches(made, output)
    output.line(f"look at {made.out / CHECKS}: outlines on every patch shown must be where nuclei are")
    _say_next(output, "cellvit fit --config docs/configs/finetune.yaml --config", made.out / CLASSES_FILE)
    return 1 if made.problems else 0


def _share_or_names(values: list[str]) -> float | list[str]:
    """Return a share if one number is given, else names."""
    try:
        (share,) = map(float, values)
    except ValueError:
        return values
    return share


def _draw_checks(made: "PreparedLabels", count: int) -> None:
    """Draw the outlines and types of some patches, spread over all, as training reads them."""
    from cellvit.io.atomic import make_folder
    from cellvit.io.formats.label_maps import nuclei_of_map
    from cellvit.io.images import read_image
    from cellvit.io.labels import read_label
    from cellvit.plotting import write_overlay

    make_folder(made.out / CHECKS)
    names = dict(enumerate(made.class_names[1:], start=1))
    folder = made.out / made.dataset
    for patch in made.patches[:: max(1, -(-len(made.patches) // max(count, 1)))][:count]:
        instances, types = read_label(folder / "labels" / f"{patch.name}.npz")
        kinds = {} if types is None else {label: max(kind, 0) for label, kind in enumerate(types.tolist())}
        nuclei = nuclei_of_map(instances, source=patch.name, types=kinds, names=names)
        image = read_image(folder / "images" / f"{patch.name}.png")
        write_overlay(image, nuclei, made.out / CHECKS / f"{patch.split}_{patch.name}.png", mpp=patch.mpp)


def _show_patches(made: "PreparedLabels", output: Output) -> None:
    """Print what each split holds."""
    from cellvit.data.datasets.annotated import SPLITS

    table = Table(title=console_text(f"{made.dataset} in {str(made.out)!r}"))
    table.add_column("split")
    for heading in ("slides", "patches", "nuclei", *made.class_names[1:], "unknown"):
        table.add_column(console_text(heading), justify="right")
    for split in SPLITS:
        patches = [one for one in made.patches if one.split == split]
        counts = {name: sum(one.nuclei.get(name, 0) for one in patches) for name in (*made.class_names[1:], "")}
        slides = len({one.slide for one in patches})
        numbers = (slides, len(patches), sum(counts.values()), *counts.values())
        table.add_row(split, *(f"{number:,}" for number in numbers))
        facts = {"slides": slides, "patches": len(patches), "nuclei": counts, "out": made.out}
        output.row({"split": split, **facts, "problems": made.problems, "notes": made.notes})
    output.show(table)


def _show_folds(prepared: "Prepared", output: Output) -> None:
    """Print what each fold holds."""
    dataset = prepared.dataset
    title = f"{dataset.name}: {dataset.patch_size} px patches at {dataset.mpp:g} µm/px in {str(prepared.out)!r}"
    table = Table(title=console_text(title))
    table.add_column("fold", justify="right")
    for heading in ("patches", "without nuclei", "tissues", "nuclei", *dataset.class_names[1:]):
        table.add_column(console_text(heading), justify="right")
    for fold in prepared.folds:
        kinds = fold.nuclei.values()
        numbers = (fold.patches, fold.without_nuclei, len(fold.tissues), sum(kinds), *kinds)
        table.add_row(str(fold.number), *(f"{number:,}" for number in numbers))
        facts = {"patches": fold.patches, "without_nuclei": fold.without_nuclei, "nuclei": fold.nuclei}
        output.row({"fold": fold.number, **facts, "notes": _notes(fold), "out": prepared.out})
    output.show(table)
    if len(dataset.tissue_names) > 1:
        output.show(_tissue_table(prepared))
    for fold in prepared.folds:
        for note in _notes(fold):
            output.show(f"fold {fold.number}: {note}", markup=False, highlight=False, soft_wrap=True)
    if prepared.kept:
        kept = ", ".join(map(str, prepared.kept))
        output.show(f"finished before and kept: fold {kept}", highlight=False, soft_wrap=True)


def _tissue_table(prepared: "Prepared") -> Table:
    table = Table(title="Patches per tissue")
    table.add_column("tissue")
    for fold in prepared.folds:
        table.add_column(f"fold {fold.number}", justify="right")
    for tissue in prepared.dataset.tissue_names:
        counts = [fold.tissues.get(tissue, 0) for fold in prepared.folds]
        if any(counts):
            table.add_row(console_text(tissue), *(f"{count:,}" for count in counts))
    return table


def _notes(fold: "FoldSummary") -> list[str]:
    from cellvit.data.pannuke.convert import ACCEPTABLE

    counted = (
        (fold.occluded, "nuclei lie wholly under nuclei of another type and are not in the maps"),
        (fold.vanished, "nuclei are too small for this resolution and are not in the maps"),
        (fold.repeated_images, "patches have the same image as an earlier patch of the fold"),
    )
    notes = [f"{count:,} {text}" for count, text in counted if count]
    accepted = [f"accepted: {count:,} patches, each {ACCEPTABLE[name]}" for name, count in fold.accepted.items()]
    return notes + accepted


def _training(prepared: "Prepared") -> str:
    """Return the command that trains on a data set, up to the folder."""
    dataset = prepared.dataset
    if dataset.name == "pannuke":
        name, mpp = ("cellvit-256-x20", 0.5) if dataset.mpp == 0.5 else ("cellvit-256", 0.25)
        config = f"docs/configs/pannuke/{name}.yaml"
    else:
        name, mpp, config = "pannuke-like", 0.25, "docs/configs/pannuke-like.yaml"
    resolution = "" if dataset.mpp == mpp else f"--model.mpp {dataset.mpp:g} "
    return f"cellvit cross-validate {config} --out runs/{name} {resolution}--data.root"


def _say_next(output: Output, command: str, path: Path) -> None:
    output.line(f"next: {command} {shlex.quote(str(path))}")


main = command(build_parser, _run, resumes=True)
