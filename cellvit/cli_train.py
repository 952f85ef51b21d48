"""``cellvit fit``, ``validate``, ``test`` and ``predict`` on LightningCLI."""

import sys

import lightning as L
from lightning.pytorch.cli import LightningCLI

import cellvit.callbacks  # noqa: F401  its classes can then be named in YAML without their module
from cellvit.data import FolderDataModule  # noqa: F401  likewise
from cellvit.decoders.base import DECODERS
from cellvit.encoders.base import ENCODERS
from cellvit.heads.base import HEADS
from cellvit.metrics.base import METRICS
from cellvit.model import CellViT
from cellvit.postprocess.base import POSTPROCESSORS


class CellViTCLI(LightningCLI):
    """LightningCLI for CellViT; the optimiser is one of the model's settings, so its own way is switched off.

    With ``--ckpt_path`` the configuration stands and only weights and training state come from the checkpoint.
    LightningCLI would lay the checkpoint's settings over it, silently undoing what the user has just written, and
    it takes the names of our parts for import paths.
    """

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is."""


def main(arguments: list[str]) -> int:
    """Run one training verb.

    Args:
        arguments: The verb and its arguments.

    Returns:
        0; LightningCLI raises on errors and exits with 2 on wrong usage.
    """
    for registry in (ENCODERS, DECODERS, HEADS, METRICS, POSTPROCESSORS):
        registry.load()  # plug-ins are known before anything is parsed
    CellViTCLI(
        CellViT,
        L.LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=19,
        args=None if arguments == sys.argv[1:] else arguments,  # given both, LightningCLI warns
    )
    return 0
