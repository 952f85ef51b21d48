"""``cellvit evaluate``: results of any tool against ground truth, and the MoNuSeg protocol for models."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import Output
from cellvit.cli.inputs import not_there
from cellvit.cli.options import add_trust, check_out_is_no_input
from cellvit.cli.verb import UsageError, add_limit_option, add_output_options, command, verb_parser
from cellvit.errors import ConfigError, DataError
from cellvit.inference.settings import PRECISIONS
from cellvit.weights.locate import model_path

if TYPE_CHECKING:
    from cellvit.evaluation.scoring import ImageScores

EPILOG = """\
PRED and TRUTH are a file each, or a folder each whose files are paired by stem. What a file is, its content says:
  label maps    .npz with inst_map and perhaps inst_type, .npy, .png, .tif; a mask is taken apart into its pieces
  .mat          of HoVer-Net, CoNSeP (inst_type) or Lizard (class, id), also of MATLAB 7.3
  outlines      .geojson, .json of QuPath, the released tools, HoVer-Net, COCO or LabelMe, each also compressed
                (.geojson.gz, .json.gz); .parquet;
                .xml of ImageScope (MoNuSeg); .zip or .roi of ImageJ
  several       COCO with several images, .npy of PanNuke's masks: against one of the kind, or COCO against a folder
TRUTH may also be a data folder: manifest.csv, or images/ and labels/. What of a file was not used is a note.

exit status: 0 done; 1 something cannot be scored (nothing is written); 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "evaluate", "Score nuclei that any tool found against ground truth, or models by the MoNuSeg protocol.", EPILOG
    )
    add = parser.add_argument
    add("pred", nargs="?", type=Path, metavar="PRED", help="file or folder of predictions")
    add("--truth", type=Path, metavar="TRUTH", help="file or folder of the ground truth")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; made if missing")
    add("--split", metavar="NAME", help="train, val or test of a data folder (default: all)")
    add("--datasets", nargs="+", metavar="NAME", help="data sets of a data folder (default: all)")
    add_limit_option(parser)
    add_output_options(parser, json="print one JSON object per image (MoNuSeg: per row of the table) instead of tables")
    results = parser.add_argument_group("results of a tool")
    add = results.add_argument
    add("--class-names", nargs="+", default=[], metavar="NAME", help="the truth's types by number, background first")
    add("--class-map", action="append", default=[], metavar="A=B", help="call predicted class A by the truth's name B")
    add("--binary", action="store_true", help="score outlines only; leave types out")
    add("--magnification", type=int, choices=(40, 20), help="detection within 12 px (40, default) or 6 px (20)")
    add("--radius", type=float, metavar="PX", help="detection within this distance instead")
    add("--iou-threshold", type=float, default=0.5, metavar="IOU", help="that a match must exceed (default: 0.5)")
    add("--pixel-corners", action="store_true", help="others' outlines count from pixel corners, as in QuPath")
    add("--skip-missing", action="store_true", help="leave out images without a prediction")
    add("--workers", type=int, default=0, metavar="N", help="processes that share the images (default: none)")
    protocol = parser.add_argument_group("MoNuSeg protocol")
    add = protocol.add_argument
    add("--monuseg", type=Path, metavar="DATA", help="data folder: images/ and labels/, or manifest.csv")
    add("--model", nargs="+", default=[], metavar="MODEL", help="names or folders of models, such as one per fold")
    add_trust(protocol)
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    add("--precision", default="32-true", metavar="NAME", help=f"{', '.join(PRECISIONS[1:])} (default: 32-true)")
    add("--batch-size", type=int, default=4, metavar="N", help="patches at once (default: 4)")
    add("--pictures", type=int, default=3, metavar="N", help="images to draw with truth and prediction (default: 3)")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    _check_usage(options)
    check_out_is_no_input(options.out, [options.pred, options.truth, options.monuseg])
    for path in (options.pred, options.truth, options.monuseg):
        if path is not None and (reason := not_there(path)):
            raise DataError(reason)
    for name in options.model:
        model_path(name)
    if options.monuseg is not None:
        _monuseg(options, output)
    else:
        _score(options, output)
    output.line(f"wrote {options.out}")
    return 0


def _check_usage(options: argparse.Namespace) -> None:
    if options.monuseg is not None:
        if options.pred is not None or options.truth is not None:
            raise UsageError("--monuseg runs models on DATA: leave out PRED and --truth")
        if not options.model:
            raise UsageError("--monuseg needs --model")
    elif options.pred is None or options.truth is None:
        raise UsageError("give PRED and --truth, or --monuseg and --model")
    elif options.model:
        raise UsageError("--model goes with --monuseg; 'cellvit segment' makes predictions of a model")
    if options.magnification is not None and options.radius is not None:
        raise UsageError("--magnification and --radius both set the radius: give one")
    if options.binary and (options.class_names or options.class_map):
        raise UsageError("--binary leaves types out: drop --class-names and --class-map")
    for name, lowest in (("workers", 0), ("batch_size", 1), ("pictures", 0)):
        if getattr(options, name) < lowest:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)} must be {lowest} or more")


def _score(options: argparse.Namespace, output: Output) -> None:
    from cellvit.evaluation import results, scoring

    with output.progress("images") as advance:
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
        output.note(note)
    for row in results.image_rows(found.images):
        output.row(row)
    title = f"{len(found.images)} images, {sum(i.true for i in found.images):,} true and "
    title += f"{sum(i.predicted for i in found.images):,} predicted nuclei"
    output.scores(results.score_rows(found.scores), title=title)
    if groups := found.groups():
        output.scores(groups)


def _monuseg(options: argparse.Namespace, output: Output) -> None:
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
        # the last model should not turn out to be unusable after hours
        load_model(name, device="cpu", trust=options.trust)
    scores: dict[str, dict[str, list[ImageScores]]] = {}
    pictures = options.out / "pictures"
    results.make_folder(pictures if options.pictures else options.out)
    with output.progress("images and forms") as advance:
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
            model = load_model(name, device=options.device, trust=options.trust)
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
        output.note(note)
    for row in rows:
        output.row(row)
    # the title says what the suffix says, and eight columns of it would not fit a terminal
    narrow = [{name.removesuffix("_image_mean"): value for name, value in row.items()} for row in rows]
    output.scores(narrow, title=f"{len(records)} images, scores averaged over images")


def _class_map(entries: Sequence[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries]
    wrong = [entry for entry, (old, _, new) in zip(entries, pairs, strict=True) if not old.strip() or not new.strip()]
    if wrong:
        raise ConfigError(f"--class-map {wrong[0]!r} is not of the form 'predicted name=true name'")
    return {old.strip(): new.strip() for old, _, new in pairs}


main = command(build_parser, _run)
