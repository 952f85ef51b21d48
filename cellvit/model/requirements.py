"""Which packages of others a model needs."""

from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions, version
from typing import Any

from cellvit.decoders.base import DECODERS
from cellvit.encoders.base import ENCODERS
from cellvit.heads.base import HEADS
from cellvit.plugins.registry import Registry
from cellvit.postprocess.base import POSTPROCESSORS

OURS = "cellvit"


def required_packages(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the distributions that bring the parts of a model, ours left out, with their versions.

    Args:
        settings: Settings of a model, with every part in its long form.

    Returns:
        Version by name. A class that no distribution brings, such as one of a script, is under its module with an
        empty version.
    """
    return dict(sorted(found for found in map(_origin, *zip(*_parts(settings), strict=True)) if found is not None))


def _parts(settings: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
    """Yield the registry and the name of every part, those inside others too."""
    from cellvit.metrics.base import METRICS  # here, for it imports torchmetrics, which reading a model need not

    listed: list[tuple[Registry[Any], Any]] = [
        (ENCODERS, settings["encoder"]),
        (DECODERS, settings["decoder"]),
        (POSTPROCESSORS, settings["postprocessor"]),
        *((HEADS, spec) for spec in settings["heads"].values()),
        *((METRICS, spec) for spec in settings["metrics"]),
    ]
    for registry, spec in listed:
        yield registry, spec["class_path"]
        inside = [value for value in spec["init_args"].values() if isinstance(value, Mapping) and "class_path" in value]
        yield from ((registry, value["class_path"]) for value in inside)


def _origin(registry: Registry[Any], class_path: str) -> tuple[str, str] | None:
    if "." not in class_path or class_path in registry:
        entry = next(entry for entry in registry.entries() if entry.name == class_path)
        if entry.version is not None:
            return entry.origin, entry.version
        class_path = entry.class_path
    package = class_path.partition(".")[0]
    if package == OURS:
        return None
    owners = packages_distributions().get(package)
    return (owners[0], version(owners[0])) if owners else (class_path.rpartition(".")[0], "")
