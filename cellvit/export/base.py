"""Which programs a model can be exported to, and the function that does it."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from cellvit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:  # the command line asks for the names of targets before it loads anything
    from cellvit.model.network import CellViTNetwork

EXPORTS = {
    "onnx": "cellvit.export.programs.export_onnx",
    "torch-export": "cellvit.export.programs.export_torch",
    "qupath": "cellvit.export.qupath.export_qupath",
}
"""Where the function of each target is; it is imported when the target is asked for."""


class Exporter(Protocol):
    """Writes a model for another program; further arguments, if any, have defaults."""

    def __call__(self, model: "CellViTNetwork", out: str | Path, **settings: Any) -> Sequence[str]:
        """Write a new folder.

        Args:
            model: What is exported; it stays as it is.
            out: The folder, which must not exist; it is there when all of it is.
            **settings: Further arguments of this target.

        Returns:
            Remarks that the user should read: what the other program will do otherwise than this one.

        Raises:
            ConfigError: If this model cannot be exported to the target.
            OutputError: If the folder exists or cannot be written.
        """


def exporter(target: str) -> Exporter:
    """Return the function that exports to a target.

    Args:
        target: One of :data:`EXPORTS`.

    Raises:
        ConfigError: If there is no such target.
    """
    if target not in EXPORTS:
        hint = did_you_mean(target, EXPORTS)
        raise ConfigError(f"target {target!r} is unknown; {hint}choose from {', '.join(sorted(EXPORTS))}")
    module, _, name = EXPORTS[target].rpartition(".")
    return cast(Exporter, getattr(import_module(module), name))
