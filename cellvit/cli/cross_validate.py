"""``cellvit cross-validate``: train and test a configuration on all folds, and report the tables of the paper."""

import argparse
import sys
from pathlib import Path

from cellvit.cli.config import config_texts
from cellvit.cli.console import Output
from cellvit.cli.verb import command, verb_parser
from cellvit.errors import ConfigError
from cellvit.evaluation.cross_validation.published import known_names
from cellvit.evaluation.cross_validation.scores import ROTATIONS

OURS = ("--config", "-c", "--data.train_folds", "--data.val_folds", "--data.test_folds", "--ckpt_path")
WAY = "put further settings into the file (its 'base' may name others), choose folds with --rotation"
EPILOG = """\
Arguments that are not listed go to 'cellvit fit' and 'cellvit test', so --trainer.max_epochs 5 or --data.root DIR
change the configuration. The same command goes on where it was interrupted: finished runs are kept, a half-trained
one resumes at its last epoch.

exit status: 0 all runs done and reported; 1 a run failed (what was finished is kept); 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "cross-validate",
        "Train and test a configuration on every fold and write one report.",
        EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML file as for 'cellvit fit', with a data module of folds")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and the report")
    parser.add_argument(
        "--rotation",
        choices=tuple(ROTATIONS),
        default="published",
        help="folds of the runs: as published, where fold 3 is tested twice, or every fold tested once",
    )
    parser.add_argument(
        "--published",
        choices=[*known_names(), "none"],
        metavar="NAME",
        help=f"published results to compare with: {', '.join(known_names())} or none; default: the file's name",
    )
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    others = options.others
    if not Path(options.config).is_file():
        raise ConfigError(f"configuration '{options.config}' does not exist; give a YAML file")
    refused = sorted({name for name in map(_flag, others) if name in OURS})
    if refused:
        raise ConfigError(f"a cross-validation takes no {', '.join(refused)}; {WAY}")
    from cellvit.evaluation.cross_validation.report import write_report
    from cellvit.evaluation.cross_validation.run import CrossValidation, run_all

    layers = config_texts(options.config)
    name = Path(options.config).stem
    rotation = ROTATIONS[options.rotation]
    plan = CrossValidation(name, tuple(layers), tuple(others), rotation, options.out)
    run_all(plan, say=_say)
    wanted = options.published or name
    report = write_report(options.out, published=wanted if wanted in known_names() else None, title=name)
    output.line(f"report: {report}")
    return 0


def _flag(argument: str) -> str:
    return argument.split("=", 1)[0].replace(".init_args.", ".")


def _say(line: str) -> None:
    sys.stderr.write(f"cross-validate: {line}\n")
    sys.stderr.flush()


main = command(build_parser, _run, resumes=True, rest=True)
