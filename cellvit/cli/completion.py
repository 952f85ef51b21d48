"""What a shell reads to complete verbs, options and files of the command."""

import argparse
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import shtab

if TYPE_CHECKING:
    from cellvit.cli import Verb

FOLDERS = frozenset({"DIR", "DATA", "ROOT"})
"""Metavariables of options whose values are folders."""

FILES = frozenset({"FILE", "INPUT", "SLIDE"})


def completion(verbs: "Iterable[Verb]", shell: str) -> str:
    """Return the completion script of the command.

    Args:
        verbs: All of them; of those of LightningCLI only the name and ``--config`` are completed.
        shell: One of those that shtab knows.
    """
    from cellvit.cli import TRAINING_VERBS

    known = {verb.name: verb for verb in verbs}

    def parser_of(prog: str, **settings: Any) -> argparse.ArgumentParser:
        verb = known[prog.split()[-1]]
        if verb.name in TRAINING_VERBS:
            parser = argparse.ArgumentParser(prog)
            parser.add_argument("--config", metavar="FILE", help="YAML file")
        else:
            parser = import_module(verb.module).build_parser()
        _complete_files(parser)
        return parser

    root = argparse.ArgumentParser("cellvit")
    below = root.add_subparsers(metavar="VERB", parser_class=cast("type[argparse.ArgumentParser]", parser_of))
    for verb in known.values():
        below.add_parser(verb.name, help=verb.text)
    return shtab.complete(root, shell)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Mark the arguments that are files or folders; all others that take any text are left to the user."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_files(each)
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
