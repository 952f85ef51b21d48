"""What a shell reads to complete verbs, options and files of the command."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import shtab

FOLDERS = frozenset({"DIR", "DATA", "ROOT"})
"""Metavariables of options whose values are folders."""

FILES = frozenset({"FILE", "INPUT", "SLIDE"})


def completion(verbs: Mapping[str, tuple[str, str | None]], shell: str) -> str:
    """Return the completion script of the command.

    Args:
        verbs: Help and module of each verb by name; None for one of LightningCLI, where ``--config`` is completed.
        shell: One of those that shtab knows.
    """

    def parser_of(prog: str, **settings: Any) -> argparse.ArgumentParser:
        module = verbs[prog.split()[-1]][1]
        if module is None:
            parser = argparse.ArgumentParser(prog)
            parser.add_argument("--config", metavar="FILE", help="YAML file")
        else:
            parser = import_module(module).build_parser()
        _complete_files(parser)
        return parser

    root = argparse.ArgumentParser("cellvit")
    below = root.add_subparsers(metavar="VERB", parser_class=cast("type[argparse.ArgumentParser]", parser_of))
    for name, (text, _) in verbs.items():
        below.add_parser(name, help=text)
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
