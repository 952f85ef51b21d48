"""Paths as configurations give them, with environment variables and ``~``."""

import os
import re
from pathlib import Path

from cellvit.errors import ConfigError

SPLITS = ("train", "val", "test")
"""Folders of a data folder, or values of the column ``split`` of its manifest."""


def expand_path(path: str | Path) -> Path:
    """Return a path with its environment variables and ``~`` expanded.

    Raises:
        ConfigError: If a variable in it is not set.
    """
    unset = unset_variables(path)
    if unset:
        raise ConfigError(f"'{path}' names ${{{unset[0]}}}, which is not set; set it first: export {unset[0]}=FOLDER")
    return Path(os.path.expandvars(path)).expanduser()


def unset_variables(path: str | Path) -> list[str]:
    """Return the names of the environment variables in a path that are not set."""
    return [name for name in re.findall(r"\$\{?(\w+)", str(path)) if name not in os.environ]


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ``cellvit`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "cellvit"
