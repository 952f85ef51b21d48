"""Errors of the library name arguments of Python; users of the command line read options instead."""

import argparse
import re
from collections.abc import Iterator, Mapping


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the option of each Python name that a parser knows, those of its subcommands included."""
    flags = {}
    for action in _actions(parser):
        long = [option for option in action.option_strings if option.startswith("--")]
        if long:
            flags[long[0][2:].replace("-", "_")] = long[0]
    return flags


def as_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a message with options in place of Python names.

    ``name=value`` always stands for an option. A bare name does if it holds an underscore, or if a value follows and
    no article: then it is no word of the sentence.

    Args:
        text: Message of an error or a warning.
        flags: From :func:`flags_of`.

    Example:
        >>> flags = {"tile_size": "--tile-size", "mpp": "--mpp", "no_tissue_filter": "--no-tissue-filter"}
        >>> as_flags("tile_size 30 is too small; use 256 or more", flags)
        '--tile-size 30 is too small; use 256 or more'
        >>> as_flags("no resolution; pass mpp=0.25, or tissue_filter=False to search everything", flags)
        'no resolution; pass --mpp 0.25, or --no-tissue-filter to search everything'
    """
    names = {name.removeprefix("no_") for name in flags} | set(flags)
    if not names:
        return text
    name = rf"(?<![\w./'\"=-])({'|'.join(sorted(names, key=len, reverse=True))})"

    def assigned(found: re.Match[str]) -> str:
        flag = flags.get(f"no_{found[1]}" if found[2] == "False" else found[1])
        if flag is None:
            return found[0]
        if found[2] in ("True", "False"):
            return flag
        values = re.findall(r"[^][(),'\s]+", found[2]) if found[2][0] in "[(" else [found[2]]
        return " ".join([flag, *values])

    def bare(found: re.Match[str]) -> str:
        return found[0] if found[1] == "to" else flags.get(found[1], found[0])  # a word of nearly every sentence

    text = re.sub(name + r"=(\[[^\]]*\]|\([^)]*\)|'[^']*'|[\w.:-]*\w)", assigned, text)
    text = re.sub(rf"(?<!\bno )(?<!\ba )(?<!\bthe )(?<!\bsuch ){name}(?= (?:-?\d|'))", bare, text)
    return re.sub(rf"{name}(?![\w=])", lambda found: bare(found) if "_" in found[1] else found[0], text)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
