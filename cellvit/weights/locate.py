"""Where the files of the catalogue are looked for, and which are there; nothing is fetched."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellvit.errors import UnknownPluginError, did_you_mean
from cellvit.weights.catalogue import BUNDLED, MODEL, SUFFIXES, Entry, by_name, entries

WEIGHTS_VARIABLE = "CELLVIT_WEIGHTS"
"""Environment variable that names the folder of weight files."""

HUB_REVISION = "main"


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that is there.

    Attributes:
        path: The file.
        place: Where it was found: ``package``, ``CELLVIT_WEIGHTS``, ``hub cache`` or ``folder``.
        size: Bytes.
    """

    path: Path
    place: str
    size: int


def weights_folder() -> Path | None:
    """Return the folder that the environment variable names, or None if it is not set."""
    value = os.environ.get(WEIGHTS_VARIABLE)
    return Path(value).expanduser() if value else None


def hub_cache() -> Path:
    """Return the folder in which huggingface_hub keeps files, by the environment variables it reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return _expanded(os.environ[variable])
    home = os.environ.get("HF_HOME")
    if home:
        return _expanded(home) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def candidate_paths(entry: Entry) -> list[tuple[str, Path]]:
    """Return where an entry's file is looked for, in this order: what the place is called, and the path."""
    if entry.folder is not None:
        name = "package" if entry.folder.parent == BUNDLED else "folder"
        return [(name, entry.folder / file) for file in entry.files]
    folder = weights_folder()
    found = [(WEIGHTS_VARIABLE, path) for path in weights_paths(entry, folder)] if folder is not None else []
    if entry.hub:
        snapshot = _snapshot(entry.hub)
        found += [("hub cache", snapshot / file) for file in entry.files]
    return found


def weights_paths(entry: Entry, folder: Path) -> list[Path]:
    """Return where in a folder of weights the file of a published entry may lie.

    Files of hub repositories have general names, so they lie there under the entry's name, or as they are in a folder
    of the entry's or the repository's name.
    """
    if not entry.hub:
        return [folder / file for file in entry.files]
    inside = dict.fromkeys((entry.name, entry.hub.rpartition("/")[2]))
    return [folder / f"{entry.name}{suffix}" for suffix in SUFFIXES] + [
        folder / name / file for name in inside for file in entry.files
    ]


def find_weights(entry: Entry) -> WeightFile | None:
    """Return the file of an entry that is there, or None; nothing is fetched."""
    for place, path in candidate_paths(entry):
        try:
            if path.is_file():
                return WeightFile(path, place, path.stat().st_size)
        except OSError:  # a folder that may not be read holds nothing for us
            continue
    return None


def list_models() -> dict[str, Entry]:
    """Return the models that can be loaded here, by name, with what is known of each; nothing is fetched.

    These are the models that come with the package, and published ones whose file lies in the folder that the
    environment variable ``CELLVIT_WEIGHTS`` names or in the cache of the hub.

    Example:
        >>> list_models()["nano"].mpp
        0.25
    """
    return {entry.name: entry for entry in entries() if entry.kind == MODEL and find_weights(entry) is not None}


def model_path(name: str | Path) -> Path:
    """Return the folder or file of a model; nothing is fetched or opened.

    Args:
        name: Name of a model of the catalogue, or a path.

    Raises:
        UnknownPluginError: If there is neither such a model nor such a path, or the file of the model is not here.
    """
    models = {entry.name: entry for entry in entries() if entry.kind == MODEL}
    entry = models.get(str(name))
    if entry is not None and entry.folder is not None:
        return entry.folder
    if Path(name).exists():
        return Path(name)
    if entry is None:
        raise UnknownPluginError(_no_model(str(name), list(models)))
    found = find_weights(entry)
    if found is None:
        raise UnknownPluginError(f"model {entry.name!r} is not here; 'cellvit models {entry.name}' says how to get it")
    return found.path


def _no_model(name: str, known: Sequence[str]) -> str:
    """Return why a name stands for no model, and what may have been meant."""
    start = f"no model {name!r}: neither a path nor a bundled model"
    try:
        other = by_name(name)
    except UnknownPluginError:
        return f"{start}; {did_you_mean(name, known)}'cellvit models' lists them: {', '.join(known)}"
    if other.kind == MODEL:
        return f"{start}; did you mean {other.name!r}? 'cellvit models {other.name}' says how to get and use it"
    return f"{start}, but weights of an encoder; 'cellvit models {other.name}' says how to train with them"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _snapshot(repository: str) -> Path:
    """Return the folder of the main revision of a repository in the hub cache, else the latest; it need not exist."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        return folder / "snapshots" / (folder / "refs" / HUB_REVISION).read_text(encoding="utf-8").strip()
    except OSError:  # a revision that was asked for by its commit has no reference
        fetched = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
        return fetched[-1] if fetched else folder / "snapshots" / HUB_REVISION
