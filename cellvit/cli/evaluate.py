"""``cellvit evaluate``: results of any tool against ground truth, and the MoNuSeg protocol for models."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import check_out_is_no_input, print_scores, progress_bar
from cellvit.errors import ConfigError

if TYPE_CHECKING:
    from cellvit.evaluation.scoring import ImageScores

EPILOG = """\
PRED and TRUTH are a file each, or a folder each whose files are paired by stem: label maps (.npz with inst_map and
perhaps inst_type, .npy, .png, .tif), .mat files with inst_map and inst_type, outlines (.geojson, .geojson.gz, .json of
the released tools, .parquet). TRUTH may also be a data folder: manifest.csv, or images/ and labels/.

exit status: 0 done; 1 something cannot be scored (nothing is written); 2 wrong usage.
"""
WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Its arguments; None takes those of the process.

    Returns:
        0 on success, 2 for wrong usage.

    Raises:
        CellViTError: If something cannot be read, scored or written.
    """
    parser = build_parser()
    try:
        options = parser.parse_args(argv)
        _check_usage(parser, options)
    except SystemExit as stop:  # argparse has printed why, or the help
        return int(stop.code or 0)
    check_out_is_no_input(options.out, [options.pred, options.truth, options.monuseg])
    if options.monuseg is not None:
        _monuseg(options)
    else:
        _score(options)
    sys.stdout.write(f"wrote {options.out}\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = argparse.ArgumentParser(
        "cellvit evaluate",
        description="Score nuclei that any tool found against ground truth, or models by the MoNuSeg protocol.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pred", nargs="?", type=Path, metavar="PRED", help="file or folder of predictions")
    add("--truth", type=Path, metavar="TRUTH", help="file or folder of the ground truth")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; made if missing")
    add("--split", metavar="NAME", help="train, val or test of a data folder (default: all)")
    add("--datasets", nargs="+", metavar="NAME", help="data sets of a data folder (default: all)")
    results = parser.add_argument_group("results of a tool")
    add = results.add_argument
    add("--class-names", nargs="+", default=[], metavar="NAME", help="the truth's types by number, background first")
    add("--class-map", action="append", default=[], metavar="A=B", help="call predicted class A by the truth's name B")
    add("--binary", action="store_true", help="score outlines only; leave types out")
    add("--magnification", type=int, choices=(40, 20), help="detection within 12 px (40, default) or 6 px (20)")
    add("--radius", type=float, metavar="PX", help="detection within this distance instead")
    add("--iou-threshold", type=float, default=0.5, metavar="IOU", help="that a match must exceed (default: 0.5)")
    add("--pixel-corners", action="store_true", help="predicted outlines count from pixel corners, as QuPath draws")
    add("--skip-missing", action="store_true", help="leave out images without a prediction")
    add("--workers", type=int, default=0, metavar="N", help="processes that share the images (default: none)")
    protocol = parser.add_argument_group("MoNuSeg protocol")
    add = protocol.add_argument
    add("--monuseg", type=Path, metavar="DATA", help="data folder: images/ and labels/, or manifest.csv")
    add("--model", nargs="+", default=[], metavar="MODEL", help="names or folders of models, such as one per fold")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    add("--precision", default="32-true", metavar="NAME", help="32-true, bf16-mixed or 16-mixed (default: 32-true)")
    add("--batch-size", type=int, default=4, metavar="N", help="patches at once (default: 4)")
    add("--pictures", type=int, default=3, metavar="N", help="images to draw with truth and prediction (default: 3)")
    return parser


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.monuseg is not None:
        if options.pred is not None or options.truth is not None:
            parser.error("--monuseg runs models on DATA: leave out PRED and --truth")
        if not options.model:
            parser.error("--monuseg needs --model")
    elif options.pred is None or options.truth is None:
        parser.error("give PRED and --truth, or --monuseg and --model")
    elif options.model:
        parser.error("--model goes with --monuseg; 'cellvit segment' makes predictions of a model")
    if options.magnification is not None and options.radius is not None:
        parser.error("--magnification and --radius both set the radius: give one")
    if options.binary and (options.class_names or options.class_map):
        parser.error("--binary leaves types out: drop --class-names and --class-map")
    for name, lowest in (("workers", 0), ("batch_size", 1), ("pictures", 0)):
        if getattr(options, name) < lowest:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be {lowest} or more")


def _score(options: argparse.Namespace) -> None:
    from cellvit.evaluation import results, scoring

    with progress_bar("images") as advance:
        found = scoring.evaluate(
            options.pred,
            options.truth,
            class_names=options.class_names,
            class_map=_class_map(options.class_map),
            binary=options.binary,
            magnification=options.magnification or 40,
            radius=options.radius,
            iou_threshold=options.iou_threshold,
            pixel_corners=options.pixel_corners,
            split=options.split,
            datasets=options.datasets,
            skip_missing=options.skip_missing,
            workers=options.workers,
            progress=partial(advance, ""),
            out=options.out,
        )
    for note in found.notes:
        sys.stderr.write(f"note: {note}\n")
    title = f"{len(found.images)} images, {sum(i.true for i in found.images):,} true and "
    title += f"{sum(i.predicted for i in found.images):,} predicted nuclei"
    print_scores(results.score_rows(found.scores), title=title)
    if groups := found.groups():
        print_scores(groups)


def _monuseg(options: argparse.Namespace) -> None:
    from cellvit.evaluation import monuseg, results
    from cellvit.inference.protocol import autocast_context, choose_device, load_model
    from cellvit.io.labels import find_records

    repeated = sorted({name for name in options.model if options.model.count(name) > 1})
    if repeated:
        raise ConfigError(f"model {repeated[0]!r} is given twice; name every model once")
    autocast_context(options.precision, choose_device(options.device))
    records = find_records(options.monuseg, split=options.split, datasets=options.datasets)
    odd = monuseg.check_records(records, where=options.monuseg)
    for name in options.model[1:]:
        load_model(name, device="cpu")  # the last model should not turn out to be unusable after hours
    scores: dict[str, dict[str, list[ImageScores]]] = {}
    pictures = options.out / "pictures"
    results.make_folder(pictures if options.pictures else options.out)
    with progress_bar("images and forms") as advance:
        total = len(options.model) * len(records) * len(monuseg.FORMS)
        done = 0

        def seen(index: int, result: monuseg.FormResult) -> None:
            nonlocal done
            done += 1
            advance("", done, total)
            if not scores and index < options.pictures and result.form == monuseg.FORMS[0]:
                monuseg.write_picture(pictures, result)

        advance("", 0, total)
        for name in options.model:
            model = load_model(name, device=options.device)
            settings = {"batch_size": options.batch_size, "precision": options.precision}
            scores[name] = monuseg.evaluate_model(model, records, **settings, seen=seen)
    notes = monuseg.untyped_notes(scores)
    if odd:
        notes.append(
            f"{len(odd)} images change their proportions by more than 5 %, such as {odd[0]}: {monuseg.NOT_MEANT}"
        )
    inputs = {
        "data": options.monuseg,
        "split": options.split,
        "datasets": options.datasets,
        "models": options.model,
        "precision": options.precision,
    }
    rows = monuseg.write_monuseg(options.out, scores, inputs=inputs, notes=notes)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    print_scores(rows, title=f"{len(records)} images, scores averaged over images")


def _class_map(entries: Sequence[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries]
    wrong = [entry for entry, (old, _, new) in zip(entries, pairs, strict=True) if not old.strip() or not new.strip()]
    if wrong:
        raise ConfigError(f"--class-map {wrong[0]!r} is not of the form 'predicted name=true name'")
    return {old.strip(): new.strip() for old, _, new in pairs}
