"""``cellvit card``: the measurements of a model card by one command."""

import argparse
import time
from pathlib import Path

from cellvit.cli.console import Output
from cellvit.cli.inputs import not_there
from cellvit.cli.options import add_trust, add_tta, check_out_is_no_input, positive
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser
from cellvit.errors import DataError
from cellvit.io.paths import SPLITS
from cellvit.weights.locate import model_path

EPILOG = """\
DATA is a folder as 'cellvit fit' reads it: manifest.csv, or train/, val/ and test/ with images/ and labels/ each.
'--split all' takes every row of manifest.csv, or the images/ and labels/ in DATA itself.
Every image is given to the model at each --mpp: reduced where it is finer, and as it is where it is coarser.

exit status: 0 done; 1 something cannot be used (nothing is written); 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "card", "Measure a model on a data folder: scores with confidence intervals, calibration, failures.", EPILOG
    )
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="name, folder or checkpoint of a model")
    add_trust(parser)
    add("--data", required=True, type=Path, metavar="DATA", help="data folder")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; made if missing")
    add("--split", choices=(*SPLITS, "all"), default="val", help="part of the data (default: val)")
    add("--datasets", nargs="+", metavar="NAME", help="data sets of the folder (default: all)")
    add("--mpp", nargs="+", type=positive(float), default=[0.25, 0.5], metavar="UM", help="(default: 0.25 0.5)")
    add_tta(parser)
    add("--resamples", type=positive(int), default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    add("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (default: 0)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    add("--pictures", type=int, default=4, metavar="N", help="failures to draw (default: 4)")
    add("--outlines-only", action="store_true", help="draw them without tissue, for images that must not be passed on")
    add_limit_option(parser)
    add_output_options(parser, json="print one JSON object per line of the table")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    check_out_is_no_input(options.out, [options.data])
    model_path(options.model)
    if reason := not_there(options.data):
        raise DataError(reason)
    from cellvit.evaluation import results
    from cellvit.evaluation.model_card import files as card_files
    from cellvit.evaluation.model_card import measure as card
    from cellvit.evaluation.model_card import tables as card_tables
    from cellvit.inference.protocol import load_model

    settings = card.CardSettings(
        root=options.data,
        split=options.split,
        datasets=None if options.datasets is None else tuple(options.datasets),
        mpp=tuple(options.mpp),
        tta=options.tta,
        resamples=options.resamples,
        seed=options.seed,
        pictures=options.pictures,
        tissue=not options.outlines_only,
    )
    started = time.monotonic()
    model = load_model(options.model, device=options.device, trust=options.trust)
    records = card.find_images(settings, model)
    results.make_folder(options.out)
    if options.pictures:
        results.make_folder(options.out / card_files.FAILURES)
    with output.progress("images") as advance:
        found = card.measure(model, records, settings, progress=advance)
        advance("", len(records), len(records))
    groups = card_tables.group_scores(found.images, model.classes.names, settings)
    facts = card_files.model_facts(options.model, model)
    seconds = time.monotonic() - started
    card_files.write_card(options.out, found, groups, model=facts, settings=settings, seconds=seconds)
    if found.calibration is None:
        output.note(f"calibration of types: {card_files.NO_CALIBRATION}")
    output.scores(card_tables.score_table(groups, intervals=False))
    output.line(f"wrote {options.out}")
    return 0


main = command(build_parser, _run)
