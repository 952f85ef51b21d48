"""The command ``cellvit``: training verbs are LightningCLI's, the others are ours."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

USAGE = """\
usage: cellvit VERB ...

Find, outline and type every cell nucleus in H&E-stained tissue.

on slides and images:
  segment         find nuclei in slides and images: cellvit segment INPUT... --out DIR
  plan            tell what a slide would take, before it is segmented: cellvit plan SLIDE...

on data:
  prepare         check and convert a data set: cellvit prepare pannuke|pannuke-like|monuseg ROOT

on models:
  fit             train a model: cellvit fit --config docs/configs/nano.yaml
  validate        score a model on the validation data
  test            score a model on the test data
  predict         run a model on a data module's prediction data
  cross-validate  train and test on every fold, and report the tables of the paper
  export          turn a training checkpoint into safetensors + JSON
  convert         turn a checkpoint of the published implementation into safetensors + JSON
  models          list models and weights: size, cost, licence, whether they are here
  plugins         list encoders, decoders, heads, post-processors and metrics, and who brings them

on results:
  evaluate        score instance maps or GeoJSON, also of other tools, against a ground truth
  card            measure a model for its model card: scores with intervals, calibration, failures

on this installation:
  doctor          check packages, devices, readers, models and worker processes, and say what to repair

options:
  -h, --help      show this text; 'cellvit VERB --help' shows a verb's
  --version       show the version
"""
TRAINING_VERBS = ("fit", "validate", "test", "predict")
VERBS = {
    "segment": "cellvit.cli.segment",
    "plan": "cellvit.cli.plan",
    "prepare": "cellvit.cli.prepare",
    **dict.fromkeys(TRAINING_VERBS, "cellvit.cli.train"),
    "cross-validate": "cellvit.cli.cross_validate",
    "export": "cellvit.cli.export",
    "convert": "cellvit.cli.convert",
    "models": "cellvit.cli.models",
    "plugins": "cellvit.cli.plugins",
    "evaluate": "cellvit.cli.evaluate",
    "card": "cellvit.cli.card",
    "doctor": "cellvit.cli.doctor",
}
"""Module of each verb, imported when it is asked for; its ``main`` takes the arguments and returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 on success, 1 if something failed, 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if verb == "--version":
        sys.stdout.write(f"cellvit {version('cellvit-lightning')}\n")
        return 0
    if verb not in VERBS:
        sys.stderr.write(f"cellvit: no verb {verb!r}; choose one of: {', '.join(VERBS)}\n")
        return 2
    from cellvit.errors import CellViTError
    from cellvit.weights.licences import plain_notices

    try:
        run = import_module(VERBS[verb]).main
        with plain_notices():
            return int(run(arguments if verb in TRAINING_VERBS else arguments[1:]))  # LightningCLI wants the verb
    except CellViTError as error:
        if os.environ.get("CELLVIT_DEBUG"):
            raise
        sys.stderr.write(f"cellvit {verb}: {error}\n")
        return 1
