"""Training with compiled code."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import nn

from cellvit.errors import ConfigError
from cellvit.model.patching import MethodPatch, has_compiler
from cellvit.training.freezing import as_cellvit


class CompiledTraining(L.Callback):
    """Trains with compiled code: encoder, decoder and losses go through ``torch.compile``.

    Batch norms, activations and losses are fused, which on a CPU takes a third off a training step. Validation, whose
    images have many sizes, runs as it is, so nothing is compiled anew for them. The first step takes a minute.
    Without a C++ compiler training on a CPU goes on uncompiled and a warning says so.

    Args:
        channels_last: Keep the weights, and thereby all maps, with the channels last in memory.
        backend: Name of a backend of ``torch.compile``; only ``"inductor"`` makes training faster.
        parts: What is compiled: any of ``"encoder"``, ``"decoder"`` and ``"losses"``. Losses alone take seconds to
            compile, and an encoder with depthwise convolutions trains faster without on a CPU.

    Raises:
        ConfigError: If a part is none of these.
    """

    def __init__(
        self,
        channels_last: bool = True,
        backend: str = "inductor",
        parts: Sequence[str] = ("encoder", "decoder", "losses"),
    ) -> None:
        unknown = sorted(set(parts) - {"encoder", "decoder", "losses"})
        if unknown:
            raise ConfigError(f"parts {unknown} cannot be compiled; choose from encoder, decoder and losses")
        self.parts = tuple(parts)
        self.channels_last = channels_last
        self.backend = backend
        self._compiled: list[MethodPatch] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace what trains by its compiled form."""
        model = as_cellvit(pl_module, self)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.backend == "inductor" and model.device.type == "cpu" and not has_compiler():
            warnings.warn("there is no C++ compiler (CXX or g++), so training is not compiled", stacklevel=2)
            return
        chosen: list[tuple[nn.Module, str]] = [
            (getattr(model, part), "forward") for part in ("encoder", "decoder") if part in self.parts
        ]
        if "losses" in self.parts:
            chosen += [(head, "losses") for head in model.heads.children()]
        for module, name in chosen:
            function = _while_training(module, getattr(module, name), self.backend)
            self._compiled.append(MethodPatch(module, name, function))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what was replaced."""
        for stand_in in self._compiled:
            stand_in.remove()
        self._compiled.clear()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put back what was replaced."""
        self.on_train_end(trainer, pl_module)


def _while_training(module: nn.Module, function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Return a function that is compiled in training mode and as it was otherwise."""
    compiled = torch.compile(function, backend=backend)

    def choose(*arguments: Any) -> Any:
        if not module.training:
            return function(*arguments)
        return compiled(*(_tensors(argument) for argument in arguments))

    return choose


def _tensors(argument: Any) -> Any:
    """Return a batch without what is not a tensor; names of images would be compiled in."""
    if not isinstance(argument, dict):
        return argument
    return {key: value for key, value in argument.items() if torch.is_tensor(value)}
