"""The command ``cellvit``: training verbs are LightningCLI's, the others are ours."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

USAGE = """\
usage: cellvit VERB ...

Find, outline and type every cell nucleus in H&E-stained tissue.

on images:
  segment       find nuclei in images: cellvit segment IMAGE... --out DIR

on models:
  fit           train a model: cellvit fit --config docs/configs/nano.yaml
  validate      score a model on the validation data
  test          score a model on the test data
  predict       run a model on a data module's prediction data
  export        turn a training checkpoint into safetensors + JSON

options:
  -h, --help    show this text; 'cellvit VERB --help' shows a verb's
  --version     show the version
"""
TRAINING_VERBS = ("fit", "validate", "test", "predict")


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
    run = _verbs().get(verb)
    if run is None:
        sys.stderr.write(f"cellvit: no verb {verb!r}; choose one of: {', '.join(_verbs())}\n")
        return 2
    from cellvit.errors import CellViTError

    try:
        return run(arguments)
    except CellViTError as error:
        if os.environ.get("CELLVIT_DEBUG"):
            raise
        sys.stderr.write(f"cellvit {verb}: {error}\n")
        return 1


def _verbs() -> dict[str, Callable[[list[str]], int]]:
    return {"segment": _segment, **dict.fromkeys(TRAINING_VERBS, _train), "export": _export}


def _segment(arguments: list[str]) -> int:
    from cellvit.cli_segment import main as segment

    return segment(arguments[1:])


def _train(arguments: list[str]) -> int:
    from cellvit.cli_train import main as train

    return train(arguments)


def _export(arguments: list[str]) -> int:
    from cellvit.cli_export import main as export

    return export(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
