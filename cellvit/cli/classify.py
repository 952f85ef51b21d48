"""``cellvit classify``: types of one's own from labels, applied to results, and what to label next."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import Output
from cellvit.cli.options import add_trust, positive
from cellvit.cli.verb import UsageError, add_output_options, command, verb_parser
from cellvit.errors import CellViTError

if TYPE_CHECKING:
    from cellvit.classification.apply import AppliedTypes
    from cellvit.classification.train import TrainedClassifier
    from cellvit.io.tables import Row

EPILOG = """\
RESULTS are result folders of 'cellvit segment', or folders of these. Labels are taken in with 'cellvit label import'.

exit status: 0 done; 1 failed (with a line that says why); 2 wrong usage.
"""
_FEATURES = "embedding, neighborhood, kinds of measurements (shape, stain, texture), or single ones as area_um2"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    text = "Train a classifier of nuclei on labels, apply it to results, and choose what to label next."
    parser = verb_parser("classify", text, EPILOG)
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    train = tasks.add_parser("train", help="train on labels, and report how good it is")
    add = train.add_argument
    add("--labels", nargs="+", type=Path, required=True, metavar="RESULTS", help="result folders with labels")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the classifier and its report")
    add("--estimator", default="logistic", metavar="NAME", help="logistic, gradient-boosting, knn, or a dotted path")
    add("--features", nargs="+", default=["embedding"], metavar="NAME", help=_FEATURES)
    add("--unsure-below", type=float, default=0.0, metavar="P", help="less probable types are 'unsure' (default: 0)")
    add("--no-class-weight", action="store_true", help="let frequent types count more")
    add("--calibration", choices=("temperature", "sigmoid", "none"), default="temperature", help="of probabilities")
    add("--without", nargs="+", default=[], metavar="TYPE", help="types to leave out")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn by chance")
    train.set_defaults(task=_train)
    apply = tasks.add_parser("apply", help="give nuclei the types of a classifier, in all files of their results")
    add = apply.add_argument
    add(
        "paths",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="the classifier, then results or tables (with --undo: results)",
    )
    add("--undo", action="store_true", help="bring back the types of the model; then no classifier is named")
    add("--no-pictures", action="store_true", help="remove pictures instead of drawing them anew from the slide")
    apply.set_defaults(task=_apply)
    suggest = tasks.add_parser("suggest", help="choose the nuclei whose labels would teach most")
    add = suggest.add_argument
    add("results", nargs="+", type=Path, metavar="RESULTS", help="result folders")
    add("--count", "-n", type=positive(int), default=50, metavar="N", help="nuclei per slide (default: 50)")
    add("--classifier", type=Path, metavar="DIR", help="choose those that it is not sure of")
    add("--out", type=Path, metavar="DIR", help="folder for the suggestions (default: in RESULTS)")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn by chance")
    suggest.set_defaults(task=_suggest)
    for task in (train, apply, suggest):
        task.add_argument("--slides", type=Path, metavar="DIR", help="where the slides are, if they were moved")
        add_output_options(task, json="print what was done as JSON objects")
    for task in (apply, suggest):
        add_trust(task)
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    task: Callable[[argparse.Namespace, Output], int] = options.task
    return task(options, output)


def _train(options: argparse.Namespace, output: Output) -> int:
    from cellvit.classification import train_classifier

    found = train_classifier(
        options.labels,
        options.out,
        estimator=options.estimator,
        features=options.features,
        unsure_below=options.unsure_below,
        class_weight=None if options.no_class_weight else "balanced",
        calibration=None if options.calibration == "none" else options.calibration,
        without=options.without,
        slides=options.slides,
        seed=options.seed,
    )
    for text in found.notes:
        output.note(text, "warning")
    _show_scores(found, output)
    output.line(f"classifier: {options.out}, report: {found.report}")
    return 0


def _show_scores(found: "TrainedClassifier", output: Output) -> None:
    from dataclasses import asdict

    scores = found.validation
    types = [asdict(score) for score in scores.types]
    output.row({"macro_f1": scores.macro_f1, "types": types, "report": found.report})
    low, high = scores.macro_interval
    interval = f" (95 % interval {low:.3f} to {high:.3f})" if low == low else ""
    rows: list[Row] = [
        {
            "type": s.name,
            "labels": s.labels,
            "precision": s.precision,
            "recall": s.recall,
            "F1": s.f1,
            "unsure": s.unsure,
        }
        for s in scores.types
    ]
    output.scores(rows, title=f"Labels that were held out: macro F1 {scores.macro_f1:.3f}{interval}")


def _apply(options: argparse.Namespace, output: Output) -> int:
    if not options.undo and len(options.paths) < 2:
        raise UsageError("name the classifier and results: cellvit classify apply my-types/ results/")
    from cellvit.classification import TypeClassifier, apply_types, undo_types
    from cellvit.classification.apply import tables_of, update_cohorts
    from cellvit.plugins.trust import trusted_packages

    given = options.paths if options.undo else options.paths[1:]
    trust = trusted_packages(options.trust)
    classifier = None if options.undo else TypeClassifier.load(options.paths[0], trust=trust)
    settings = {"slides": options.slides, "pictures": not options.no_pictures}
    folders = list(dict.fromkeys(folder for path in given for folder in tables_of(path)))
    failed = False
    with output.progress("nuclei") as advance:
        for folder in folders:
            progress = partial(advance, folder.name)
            try:
                if classifier is None:
                    found = undo_types(folder, progress=progress, **settings)
                else:
                    found = apply_types(options.paths[0], folder, trust=trust, progress=progress, **settings)
            except CellViTError as error:  # the others are done all the same
                output.error(str(error))
                failed = True
                continue
            _show_counts(found, output)
    for page in update_cohorts([*given, *folders]):
        output.line(f"all slides: {page}")
    return int(failed)


def _show_counts(found: "AppliedTypes", output: Output) -> None:
    for text in found.notes:
        output.note(text, "warning")
    output.row({"folder": found.folder, "types": dict(found.counts), "changed": found.changed})
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items() if count)
    output.line(f"{found.folder}: {counts or 'no nuclei'}{'' if found.changed else ' (as it was)'}")


def _suggest(options: argparse.Namespace, output: Output) -> int:
    from cellvit.classification import suggest_nuclei
    from cellvit.classification.apply import tables_of
    from cellvit.plugins.trust import trusted_packages

    for folder in dict.fromkeys(folder for path in options.results for folder in tables_of(path)):
        out = None if options.out is None else options.out / folder.name
        found = suggest_nuclei(
            folder,
            count=options.count,
            classifier=options.classifier,
            out=out,
            slides=options.slides,
            trust=trusted_packages(options.trust),
            seed=options.seed,
        )
        for text in found.notes:
            output.note(text, "warning")
        if len(found.files) == 1:
            output.note(f"{str(folder)!r}: its slide is not there, so there are no crops; see slides=DIR", "warning")
        output.row({"folder": folder, "nuclei": found.nucleus.tolist(), "files": list(found.files)})
        output.line(f"{folder}: {len(found.nucleus)} nuclei: {', '.join(str(file) for file in found.files)}")
    return 0


main = command(build_parser, _run, failure=1)
