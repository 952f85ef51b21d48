"""``cellvit fit``, ``validate``, ``test`` and ``predict`` on LightningCLI."""

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

import cellvit.callbacks  # noqa: F401  its classes can then be named in YAML without their module
from cellvit.cli.config import expand_bases
from cellvit.cli.verb import terminable
from cellvit.data import FolderDataModule, PanNukeDataModule  # noqa: F401  likewise
from cellvit.decoders.base import DECODERS
from cellvit.encoders.base import ENCODERS
from cellvit.errors import CellViTError, WeightsError
from cellvit.evaluation.cross_validation.run import SUPERVISED
from cellvit.heads.base import HEADS
from cellvit.metrics.base import METRICS
from cellvit.model.cellvit import CellViT
from cellvit.model.checkpoint import read_checkpoint
from cellvit.plugins.components import RawSpec
from cellvit.postprocess.base import POSTPROCESSORS

KEYWORDS = ("best", "last", "hpc", "registry")
"""What the Trainer takes for a checkpoint beside a path."""


def _read_part(value: Any) -> RawSpec:
    if isinstance(value, RawSpec):
        return value
    plain = yaml.safe_load(value) if isinstance(value, str) else value
    plain = plain.as_dict() if hasattr(plain, "as_dict") else plain
    if not isinstance(plain, str | dict):
        raise ValueError(f"{value!r} is neither a name nor {{class_path: NAME, init_args: {{...}}}}")
    return RawSpec(plain)


def _write_part(part: Any) -> Any:
    return part.value if isinstance(part, RawSpec) else part


register_type(
    RawSpec,
    serializer=_write_part,
    deserializer=_read_part,
    type_check=lambda value, _: isinstance(value, RawSpec),
    deserializer_exceptions=(ValueError, yaml.YAMLError),
)


class CellViTCLI(LightningCLI):
    """LightningCLI for CellViT; the optimiser is one of the model's settings, so its own way is switched off.

    With ``--ckpt_path`` the configuration stands and only weights and training state come from the checkpoint.
    LightningCLI would lay the checkpoint's settings over it, silently undoing what the user has just written, and
    it takes the names of our parts for import paths.
    """

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is."""

    def before_instantiate_classes(self) -> None:
        """Look at the checkpoint before anything is built."""
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path and path not in KEYWORDS:
            read_checkpoint(Path(path))


def main(arguments: list[str]) -> int:
    """Run one training verb.

    Args:
        arguments: The verb and its arguments.

    Returns:
        0, or 128 and the number of the signal that stopped it: 130 (Ctrl+C), 143 (SIGTERM), 129 (its terminal was
        closed). LightningCLI raises on errors and exits with 2 on wrong usage.
    """
    sys.path.append(str(Path.cwd()))  # a class in a file beside can be named, though the console script hides it
    for registry in (ENCODERS, DECODERS, HEADS, METRICS, POSTPROCESSORS):
        registry.load()  # plug-ins are known before anything is parsed
    if os.environ.get(SUPERVISED):
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    stopped: list[int] = []
    try:
        with terminable() as stopped:
            _run(expand_bases(arguments))
    except SIGTERMException:  # a SystemExit that would otherwise pass for success
        return _interrupted(stopped[0] if stopped else signal.SIGTERM)
    except KeyboardInterrupt:
        return _interrupted(stopped[0] if stopped else signal.SIGINT)
    except SystemExit as stop:  # what Lightning makes of Ctrl+C
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _interrupted(stopped[0] if stopped else signal.SIGINT)
        raise
    except (RuntimeError, ValueError) as error:
        # the parser wraps what our classes say in all that it tried
        if isinstance(error.__cause__, CellViTError) and not isinstance(error, CellViTError):
            raise error.__cause__ from error
        if "loading state_dict" not in str(error) and "parameter group" not in str(error):
            raise
        reason = " ".join(str(error).split())[:500]
        message = (
            f"the checkpoint does not fit the model of the configuration: {reason}; give the one it was trained with"
        )
        raise WeightsError(message) from error
    return 0


def _interrupted(number: int) -> int:
    """Say that the work was stopped, once for all processes of a training, and return the exit code."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write("interrupted; the checkpoints that were written are kept, and --ckpt_path goes on from one\n")
    return 128 + number


def _run(arguments: list[str]) -> None:
    with warnings.catch_warnings():
        # It asks for args only within Python; ours differ from the command line where files build on others.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        # lightning 2.6 asks torch's pytree in a way that torch 2.9 deprecated: nothing a user could do about
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        CellViTCLI(
            CellViT,
            L.LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=19,
            args=arguments,
        )


def _stop_at_end_of_input() -> None:
    """End this process when the one that writes its input is gone; what was not saved by then is done again."""
    with suppress(OSError):
        while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
            pass
    os._exit(1)
