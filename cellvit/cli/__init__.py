"""The command ``cellvit``: training verbs are LightningCLI's, the others are ours."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import groupby
from typing import NamedTuple

PROGRAM = "cellvit"
SHELLS = ("bash", "zsh", "tcsh")
COMPLETION = "--print-completion"


TRAINING_VERBS = ("fit", "validate", "test", "predict")
"""They are LightningCLI's, which wants the verb among the arguments."""


class Verb(NamedTuple):
    """A verb of the command.

    Attributes:
        name: What the user writes.
        group: What it is about.
        text: What it does, in a line.
    """

    name: str
    group: str
    text: str

    @property
    def module(self) -> str:
        """The module whose ``main`` takes the arguments and returns the exit code; imported when it is asked for."""
        return f"cellvit.cli.{'train' if self.name in TRAINING_VERBS else self.name.replace('-', '_')}"


_SLIDES, _DATA, _MODELS = "on slides and images", "on data", "on models"
_RESULTS, _HERE = "on results", "on this installation"
_ROWS = (
    Verb("segment", _SLIDES, "find nuclei in slides and images: cellvit segment INPUT... --out DIR"),
    Verb("plan", _SLIDES, "tell what a slide would take, before it is segmented: cellvit plan SLIDE..."),
    Verb("info", _SLIDES, "tell what files are: reader, levels, resolution, pixels, doubts: cellvit info FILE..."),
    Verb("prepare", _DATA, "check and convert a data set: cellvit prepare labels|pannuke|pannuke-like|monuseg ..."),
    Verb("fit", _MODELS, "train a model: cellvit fit --config docs/configs/nano.yaml"),
    Verb("validate", _MODELS, "score a model on the validation data"),
    Verb("test", _MODELS, "score a model on the test data"),
    Verb("predict", _MODELS, "run a model on a data module's prediction data"),
    Verb("cross-validate", _MODELS, "train and test on every fold, and report the tables of the paper"),
    Verb("export", _MODELS, "turn a checkpoint into safetensors + JSON, or a model into ONNX and others: --to"),
    Verb("convert", _MODELS, "turn a checkpoint of the published implementation into safetensors + JSON"),
    Verb("models", _MODELS, "list models and weights: size, cost, licence, whether they are here"),
    Verb("plugins", _MODELS, "list parts of models, readers of slides and formats of nuclei, and who brings them"),
    Verb("verify", _RESULTS, "tell whether result folders still hold what was written: cellvit verify DIR..."),
    Verb("convert-nuclei", _RESULTS, "turn a file of nuclei into another format: cellvit convert-nuclei SOURCE TARGET"),
    Verb("evaluate", _RESULTS, "score instance maps or GeoJSON, also of other tools, against a ground truth"),
    Verb("measure", _RESULTS, "measure nuclei, also of other tools: size, form, stain, texture, neighbours"),
    Verb(
        "label", _RESULTS, "labels of nuclei from QuPath, tables and others: cellvit label import FILE... --nuclei DIR"
    ),
    Verb("view", _RESULTS, "look at slides and nuclei in the browser, and label them: cellvit view INPUT..."),
    Verb("classify", _RESULTS, "types of your own: cellvit classify train|apply|suggest"),
    Verb("embed", _RESULTS, "give nuclei of other tools our embeddings: cellvit embed SLIDE --outlines FILE"),
    Verb("card", _RESULTS, "measure a model for its model card: scores with intervals, calibration, failures"),
    Verb("doctor", _HERE, "check packages, devices, readers, models and workers, and say what to repair"),
    Verb("demo", _HERE, "find the nuclei of a real tissue image, with the model that ships with the package"),
)
VERBS = {verb.name: verb for verb in _ROWS}
"""All verbs by name; usage, completion and dispatch come from here."""


def usage() -> str:
    """Return what ``cellvit --help`` prints."""
    lines = [f"usage: {PROGRAM} VERB ...", "", "Find, outline and type every cell nucleus in H&E-stained tissue.", ""]
    for group, verbs in groupby(VERBS.values(), key=lambda verb: verb.group):
        lines += [f"{group}:", *(f"  {verb.name:<14}  {verb.text}" for verb in verbs), ""]
    options = {
        "-h, --help": "show this text; 'cellvit VERB --help' shows a verb's",
        "--version": "show the version",
        COMPLETION: f"SHELL: print what completes the command in {', '.join(SHELLS)}",
    }
    return "\n".join([*lines, "options:", *(f"  {name:<18}  {text}" for name, text in options.items()), ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 on success, 1 if something failed, 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if arguments else 2
    if name == "--version":
        sys.stdout.write(f"{PROGRAM} {version('cellvit-lightning')}\n")
        return 0
    if name == COMPLETION:
        return _print_completion(arguments[1:])
    if name not in VERBS:
        return _no_verb(name)
    return _run(VERBS[name], arguments)


def _run(verb: Verb, arguments: Sequence[str]) -> int:
    from cellvit.errors import CellViTError
    from cellvit.weights.licences import plain_notices

    if verb.name not in TRAINING_VERBS:
        # Idle threads of the network would spin while those that read and post-process want the core; read by torch
        # when it is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        run = import_module(verb.module).main
        with plain_notices():
            return int(run(arguments if verb.name in TRAINING_VERBS else arguments[1:]))
    except CellViTError as error:
        if os.environ.get("CELLVIT_DEBUG"):
            raise
        from cellvit.io.format import visible

        # further lines are set back, so that none in a name looks like a message of its own
        text = visible(error, keep="\n").replace("\n", "\n  ")
        sys.stderr.write(f"{PROGRAM} {verb.name}: {text}\n")
        return 1


def _no_verb(name: str) -> int:
    from cellvit.errors import did_you_mean

    sys.stderr.write(
        f"{PROGRAM}: no verb {name!r}; {did_you_mean(name, list(VERBS))}choose one of: {', '.join(VERBS)}\n"
    )
    return 2


def _print_completion(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        sys.stderr.write(f"{PROGRAM} {COMPLETION}: name one shell of: {', '.join(SHELLS)}\n")
        return 2
    from cellvit.cli.completion import completion

    verbs = {v.name: (v.text, None if v.name in TRAINING_VERBS else v.module) for v in VERBS.values()}
    sys.stdout.write(completion(verbs, arguments[0]) + "\n")
    return 0
