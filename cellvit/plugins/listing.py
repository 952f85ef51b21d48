"""Which plug-ins there are, and who brings them."""

import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from typing import Any

from cellvit.plugins.registry import Registry, RegistryEntry

REGISTRIES = {
    "encoder": ("cellvit.encoders.base", "ENCODERS"),
    "decoder": ("cellvit.decoders.base", "DECODERS"),
    "head": ("cellvit.heads.base", "HEADS"),
    "postprocessor": ("cellvit.postprocess.base", "POSTPROCESSORS"),
    "metric": ("cellvit.metrics.base", "METRICS"),
    "reader": ("cellvit.slide.readers.base", "READERS"),
    "format": ("cellvit.io.formats.base", "FORMATS"),
    "annotation": ("cellvit.io.annotations.base", "ANNOTATIONS"),
    "measurement": ("cellvit.measurement.base", "MEASUREMENTS"),
    "classifier": ("cellvit.classification.base", "CLASSIFIERS"),
}
"""Module and name of the registry of each kind, in the order of the data; imported when it is listed."""
OURS = "cellvit-lightning"
MARKUP = re.compile(r":\w+:`~?([^`]*)`|``([^`]*)``|`([^`]*)`")
CITATION = re.compile(r"\s*\[\d+\]")


def plugin_rows(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per plug-in, as plain data.

    Args:
        kinds: Keys of :data:`REGISTRIES`.

    Returns:
        Rows with ``kind``, ``name``, ``class`` (dotted path), ``distribution`` and ``version`` (None for a class that
        its module registers without an entry point), ``summary`` (first line of its docstring) and ``error`` (None if
        it can be used). Those of cellvit come first within a kind, then by name.
    """
    rows = []
    for kind in kinds:
        found = [_row(kind, entry) for entry in _entries(kind)]
        rows += sorted(found, key=lambda row: row["distribution"] != OURS)
    return rows


def _entries(kind: str) -> Sequence[RegistryEntry[Any]]:
    module, name = REGISTRIES[kind]
    with redirect_stdout(sys.stderr), warnings.catch_warnings():  # a plug-in may print while it is imported
        warnings.filterwarnings("ignore", r"\w+ plug-in .* cannot be used", RuntimeWarning)  # they are rows
        registry: Registry[Any] = getattr(import_module(module), name)
        return registry.entries()


def _row(kind: str, entry: RegistryEntry[Any]) -> dict[str, Any]:
    ours = entry.version is None and entry.origin.split(".")[0] == "cellvit"
    return {
        "kind": kind,
        "name": entry.name,
        "class": entry.class_path,
        "distribution": OURS if ours else entry.origin if entry.version else None,
        "version": version(OURS) if ours else entry.version,
        "summary": _summary(entry.cls),
        "error": entry.reason or None,
    }


def _summary(cls: type | None) -> str:
    """Return the first line of a class's own docstring, without marks of reStructuredText and of citations."""
    lines = ((cls.__doc__ if cls else None) or "").strip().splitlines()
    return CITATION.sub("", MARKUP.sub(lambda found: found[1] or found[2] or found[3], lines[0])) if lines else ""
