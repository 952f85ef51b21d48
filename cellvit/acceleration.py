"""Making a model faster without changing what it computes: compiled training, fused inference."""

import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cellvit.errors import ConfigError
from cellvit.freezing import as_cellvit
from cellvit.model import CellViT

_DEFAULT_COMPILERS = ("g++", "clang++", "cl")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "parametrizations")

_Replaced = list[tuple[nn.Sequential, int, nn.Module]]


class _Use:
    """How often a network is in use, and what was replaced in it for that."""

    def __init__(self, was_training: bool) -> None:
        self.count = 0
        self.was_training = was_training
        self.replaced: _Replaced = []


_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def accelerated_inference(network: nn.Module) -> Iterator[None]:
    """Run a network as fast as it goes without another result, and leave it as it was, also after an error.

    Training mode is off. In every ``nn.Sequential`` a batch norm after a convolution goes into the convolution's
    weights, and those lie with the channels last in memory. Outputs change by rounding only, about 1e-6 of their
    size in float32; the parameters and the state dict are those of before afterwards. Several threads may use one
    network at a time: the first makes the change, the last undoes it.

    Args:
        network: Its convolutions and batch norms may be anywhere inside.
    """
    with _LOCK:
        use = _USES.setdefault(network, _Use(network.training))
        use.count += 1
        if use.count == 1:
            network.train(False)
            use.replaced = [] if "forward" in vars(network) else _fuse(network)  # compiled: see below
    try:
        yield
    finally:
        with _LOCK:
            use.count -= 1
            if use.count == 0:
                for sequence, index, module in use.replaced:
                    sequence[index] = module
                del _USES[network]
                network.train(use.was_training)


def _fuse(network: nn.Module) -> _Replaced:
    """Put batch norms into the convolutions before them; return what was replaced where."""
    replaced: _Replaced = []
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for index in range(len(sequence) - 1):
            conv, norm = sequence[index], sequence[index + 1]
            fused = _fused(conv, norm)
            if fused is not None:
                replaced += [(sequence, index, conv), (sequence, index + 1, norm)]
                sequence[index], sequence[index + 1] = fused, nn.Identity()
    return replaced


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return a convolution with a batch norm in it; None unless both are plain, with statistics and without hooks."""
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    plain = type(conv) in (nn.Conv2d, nn.ConvTranspose2d) and type(norm) is nn.BatchNorm2d
    fits = norm.running_mean is not None and norm.num_features == conv.out_channels and conv.groups == 1
    if not (plain and fits) or any(getattr(m, name, None) for m in (conv, norm) for name in _HOOKS):
        return None
    fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
    done: nn.Module = fused.requires_grad_(False).to(memory_format=torch.channels_last)
    return done


class CompiledTraining(L.Callback):
    """Trains with compiled code: encoder, decoder and losses go through ``torch.compile``.

    Batch norms, activations and losses are fused, which on a CPU takes a third off a training step. Validation, whose
    images have many sizes, runs as it is, so nothing is compiled anew for them. The first step takes a minute.
    Without a C++ compiler training on a CPU goes on uncompiled and a warning says so.

    Args:
        channels_last: Keep the weights, and thereby all maps, with the channels last in memory.
        backend: Of ``torch.compile``; only ``"inductor"`` makes training faster.
    """

    def __init__(self, channels_last: bool = True, backend: str = "inductor") -> None:
        self.channels_last = channels_last
        self.backend = backend
        self._compiled: list[tuple[nn.Module, str]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace what trains by its compiled form."""
        model = as_cellvit(pl_module, self)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.backend == "inductor" and model.device.type == "cpu" and not has_compiler():
            warnings.warn("there is no C++ compiler (CXX or g++), so training is not compiled", stacklevel=2)
            return
        parts: list[tuple[nn.Module, str]] = [(model.encoder, "forward"), (model.decoder, "forward")]
        parts += [(head, "losses") for head in model.heads.children()]
        for module, name in parts:
            setattr(module, name, _while_training(module, getattr(module, name), self.backend))
            self._compiled.append((module, name))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what was replaced."""
        for module, name in self._compiled:
            delattr(module, name)  # the class has the real one
        self._compiled.clear()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put back what was replaced."""
        self.on_train_end(trainer, pl_module)


def compile_for_inference(model: CellViT, *, backend: str = "inductor") -> CellViT:
    """Let ``torch.compile`` translate the network of a model for inference, in place.

    The first tile of each size takes a minute longer. Outputs change by rounding only. A compiled network stays as it
    is in :func:`accelerated_inference`: the compiler fuses batch norms itself.

    Args:
        model: The model, for example from :meth:`CellViT.from_pretrained`; pass the result to ``segment_image``.
        backend: Of ``torch.compile``.

    Returns:
        The model.

    Raises:
        ConfigError: If there is no C++ compiler, without which ``"inductor"`` does not work on a CPU.
    """
    if backend == "inductor" and model.device.type == "cpu" and not has_compiler():
        raise ConfigError("torch.compile needs a C++ compiler on the CPU; install g++, or run the model as it is")
    model.train(False)
    model.forward = torch.compile(model.forward, backend=backend, dynamic=False)  # type: ignore[method-assign]
    return model


def has_compiler() -> bool:
    """Return whether there is the C++ compiler that ``torch.compile`` needs on a CPU."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else _DEFAULT_COMPILERS))


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
