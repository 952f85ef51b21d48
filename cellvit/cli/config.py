"""Configuration files that build on others: a top-level ``base`` names the file, or files, a file starts from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cellvit.errors import ConfigError
from cellvit.plugins.former_names import current_names

BASE = "base"
_FLAGS = ("--config", "-c")


def expand_bases(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every ``--config FILE`` preceded by the files that FILE builds on.

    Dotted paths of classes that an earlier version had elsewhere are replaced by today's.

    Later configurations stand over earlier ones, so a file changes what its base says. A path in ``base`` is relative
    to the file that names it.

    Args:
        arguments: Verb and arguments of a training verb.

    Raises:
        ConfigError: If a base does not exist, is no YAML mapping, or builds on itself.
    """
    given = [part for argument in arguments for part in _split(argument)]
    result: list[str] = []
    i = 0
    while i < len(given):
        if given[i] in _FLAGS and i + 1 < len(given):
            for layer in config_layers(given[i + 1]):
                result += ["--config", layer]
            i += 2
        else:
            result.append(current_names(given[i]))
            i += 1
    return result


def config_layers(config: str) -> list[str]:
    """Return the layers of a configuration, bases first: paths of files, or the text of a file without its base.

    Args:
        config: Path of a YAML file, or YAML text.
    """
    return [text if changed else path for path, text, changed in _layers(config, ())]


def config_texts(config: str) -> list[str]:
    """Return the texts of the layers of a configuration, bases first.

    Args:
        config: Path of a YAML file, or YAML text.
    """
    return [text for _, text, _ in _layers(config, ())]


def _split(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _layers(config: str, above: tuple[Path, ...]) -> Iterator[tuple[str, str, bool]]:
    path = Path(config)
    if not _is_file(path):
        if above:
            raise ConfigError(f"'{above[-1]}' builds on '{config}', which does not exist; correct its 'base'")
        current = current_names(config)
        yield current, current, False
        return
    if path.resolve() in above:
        raise ConfigError(f"'{above[-1]}' builds on '{config}', which builds on it; break the circle")
    stored = path.read_text(encoding="utf-8")
    text = current_names(stored)
    content = _parse(text)
    bases = content.pop(BASE, None) if isinstance(content, dict) else None
    if bases is None:
        yield config, text, text != stored
        return
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _layers(str(path.parent / base), (*above, path.resolve()))
    yield config, yaml.safe_dump(content, sort_keys=False), True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # YAML text can be too long for a path
        return False


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # the parser of the command line says what is wrong
