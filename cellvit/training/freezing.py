"""Callbacks that keep parts of a model from training."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cellvit.errors import ConfigError
from cellvit.model.cellvit import CellViT

ENCODER = "encoder"


class PartFreezing(L.Callback):
    """Trains without some parts, for the first epochs or to the end.

    Frozen batch norms use their stored statistics and do not change them. Dropout and stochastic depth stay active.
    Parameters that do not train anyway are left alone when the parts thaw.

    Args:
        parts: Any of ``encoder``, ``decoder`` and ``heads``, or the path of any other module, such as ``heads.hv_map``
            or ``decoder.skips``.
        encoder_groups: Layer groups of the encoder that are frozen, counted from its input: 1 is its stem, 4 are stem
            and three blocks. None freezes all of it. Without ``encoder`` among the parts it must be None.
        unfreeze_epoch: First epoch, counted from 0, in which the parts train; None never thaws them.

    Raises:
        ConfigError: If there are no parts, or a number is out of range.
    """

    hold_statistics = True

    def __init__(
        self, parts: Sequence[str], encoder_groups: int | None = None, unfreeze_epoch: int | None = None
    ) -> None:
        if not parts or isinstance(parts, str):
            raise ConfigError(f"parts {parts!r} must be a list such as [encoder, decoder]")
        if unfreeze_epoch is not None and unfreeze_epoch < 0:
            raise ConfigError(f"unfreeze_epoch {unfreeze_epoch} is negative; 0 never freezes")
        if encoder_groups is not None and (encoder_groups < 1 or ENCODER not in parts):
            raise ConfigError(f"encoder_groups {encoder_groups} needs 'encoder' among the parts and must be at least 1")
        self.parts = tuple(parts)
        self.encoder_groups = encoder_groups
        self.unfreeze_epoch = unfreeze_epoch
        self._frozen: list[nn.Parameter] = []
        self._held: list[nn.Module] = []
        self._epoch = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze before the strategy wraps the model, so that DDP does not wait for these gradients.

        Raises:
            ConfigError: If a part does not exist or holds nothing that trains, or nothing is left to train.
        """
        if stage != "fit" or self.unfreeze_epoch == 0:
            return
        model = as_cellvit(pl_module, self)
        elsewhere = self._frozen_by_others(trainer)
        found = {part: self._parameters(model, part) for part in self.parts}
        idle = [part for part, parameters in found.items() if not _trainable(parameters, elsewhere)]
        if idle:
            raise ConfigError(f"parts {idle} hold no parameters that train; leave them out")
        self._frozen = [p for parameters in found.values() for p in _trainable(parameters, elsewhere)]
        _train(self._frozen, wanted=False)
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(f"parts {list(self.parts)} freeze the whole model; leave something to train")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up the state of the epoch: a training resumed within one does not start it anew."""
        self._update(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Thaw when the epoch has come, also after resuming later than it; hold the statistics until then."""
        self._update(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Thaw where a training resumed at the very end of an epoch goes on with the next one."""
        if self._epoch != trainer.current_epoch:
            self._update(trainer, pl_module)

    def _update(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._epoch = trainer.current_epoch
        thaws = self.unfreeze_epoch is not None and trainer.current_epoch >= self.unfreeze_epoch
        if thaws and self._frozen:
            still = self._frozen_by_others(trainer)
            _train([p for p in self._frozen if id(p) not in still], wanted=True)
            self._frozen = []
            _rewrap(trainer)
        if self.hold_statistics and self._frozen:
            # found anew each time: the strategy may have replaced them by synchronised ones
            self._held = [m for m in module.modules() if isinstance(m, _BatchNorm) and _is_frozen(m)]
        for norm in self._held:
            norm.train(thaws and not _is_frozen(norm))
        self._held = [] if thaws else self._held

    def _frozen_by_others(self, trainer: L.Trainer) -> set[int]:
        callbacks = getattr(trainer, "callbacks", [])
        others = [other for other in callbacks if isinstance(other, PartFreezing) and other is not self]
        return {id(parameter) for other in others for parameter in other._frozen}

    def _parameters(self, model: CellViT, part: str) -> list[nn.Parameter]:
        if part == ENCODER and self.encoder_groups is not None:
            groups = model.encoder.layer_groups()
            if self.encoder_groups > len(groups):
                name = type(model.encoder).__name__
                raise ConfigError(
                    f"encoder_groups {self.encoder_groups}: encoder {name} has {len(groups)} layer groups"
                )
            return [parameter for group in groups[: self.encoder_groups] for parameter in group]
        try:
            return list(model.get_submodule(part).parameters())
        except AttributeError as error:
            known = ", ".join([ENCODER, "decoder", "heads", *(f"heads.{name}" for name in model.heads)])
            raise ConfigError(f"the model has no part {part!r} to freeze; it has: {known}") from error


class EncoderFreezing(PartFreezing):
    """Trains without the encoder for the first epochs, then with all of it at the same learning rate.

    Only gradients are frozen: dropout, stochastic depth and batch norms of the encoder stay active, as in the published
    runs. Image-level heads are no part of the encoder and train from the start.

    Args:
        unfreeze_epoch: First epoch, counted from 0, in which the encoder trains.

    Raises:
        ConfigError: If ``unfreeze_epoch`` is negative.
    """

    hold_statistics = False

    def __init__(self, unfreeze_epoch: int = 25) -> None:
        super().__init__([ENCODER], unfreeze_epoch=unfreeze_epoch)


def as_cellvit(module: L.LightningModule, callback: L.Callback) -> CellViT:
    """Return the module a callback is given, if it is a model of ours.

    Raises:
        ConfigError: If it is another module.
    """
    if not isinstance(module, CellViT):
        names = type(callback).__name__, type(module).__name__
        raise ConfigError(f"{names[0]} works on CellViT, not {names[1]}; remove the callback")
    return module


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _trainable(parameters: list[nn.Parameter], elsewhere: set[int]) -> list[nn.Parameter]:
    """Return those that train, or would if another callback did not freeze them for now."""
    return [parameter for parameter in parameters if parameter.requires_grad or id(parameter) in elsewhere]


def _train(parameters: list[nn.Parameter], *, wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


def _rewrap(trainer: L.Trainer) -> None:
    # DDP registers gradients when it wraps: parameters that thaw later must be wrapped again or ranks drift apart
    strategy = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()  # type: ignore[attr-defined]
