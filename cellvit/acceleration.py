"""Making a model faster without changing what it computes: compiled training, fused inference."""

import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cellvit.errors import ConfigError
from cellvit.freezing import as_cellvit
from cellvit.model import CellViT

_DEFAULT_COMPILERS = ("g++", "clang++", "cl")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "parametrizations")


class _StandIn:
    """Is called in place of a method of a module; a copy of the module has the method itself again."""

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self._module, self._name, self._function = module, name, function
        setattr(module, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        copied = deepcopy(self._module, memo)
        return MethodType(getattr(type(copied), self._name), copied)

    def remove(self) -> None:
        """Give the module its method back."""
        delattr(self._module, self._name)


class _Use:
    """How often a network is in use, and what has to be undone afterwards."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        self.training = [(module, module.training) for module in network.modules()]
        self.stand_ins: list[_StandIn] = []

    def undo(self) -> None:
        for stand_in in self.stand_ins:
            stand_in.remove()
        for module, mode in self.training:
            module.training = mode


_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def accelerated_inference(network: nn.Module) -> Iterator[None]:
    """Run a network as fast as it goes without another result, and leave it as it was, also after an error.

    Training mode is off. In every ``nn.Sequential`` a batch norm after a convolution is computed by the convolution,
    with weights made for that and laid out with the channels last in memory. Outputs change by rounding only, about
    1e-6 of their size in float32. Parameters, buffers and state dict stay as they are meanwhile. Several threads may
    use one network at a time: the first makes the change, the last undoes it.

    Args:
        network: Its convolutions and batch norms may be anywhere inside. It stays on its device meanwhile. One that is
            compiled is left to its compiler.
    """
    with _LOCK:
        use = _USES.get(network) or _Use(network)
        if not use.count:
            try:
                network.train(False)
                if not any(_is_compiled(module) for module in network.modules()):
                    _fuse(network, use.stand_ins)
            except BaseException:
                use.undo()
                raise
            _USES[network] = use
        use.count += 1
    try:
        yield
    finally:
        with _LOCK:
            use.count -= 1
            if not use.count:
                del _USES[network]
                use.undo()


def _is_compiled(module: nn.Module) -> bool:
    by_us = isinstance(vars(module).get("forward"), _StandIn)
    return by_us or getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def _is_changed(module: nn.Module) -> bool:
    """Return whether the module runs something else than its class says."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _fuse(network: nn.Module, done: list[_StandIn]) -> None:
    """Let convolutions compute the batch norms after them; what is put in place is added to a list."""
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        if type(sequence).forward is nn.Sequential.forward and not _is_changed(sequence):
            for conv, norm in pairwise(sequence):
                fused = _fused(conv, norm)
                if fused is not None:
                    done += [_StandIn(conv, "forward", fused.forward), _StandIn(norm, "forward", _same)]


def _same(x: Tensor) -> Tensor:
    return x


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return a convolution with a batch norm in it; None unless both are plain, with statistics and without hooks."""
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    plain = type(conv) in (nn.Conv2d, nn.ConvTranspose2d) and type(norm) is nn.BatchNorm2d
    fits = norm.running_mean is not None and norm.num_features == conv.out_channels and conv.groups == 1
    changed = any(_is_changed(m) or any(getattr(m, name, None) for name in _HOOKS) for m in (conv, norm))
    if changed or not (plain and fits):
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
        self._compiled: list[_StandIn] = []

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
            function = _while_training(module, getattr(module, name), self.backend)
            self._compiled.append(_StandIn(module, name, function))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put back what was replaced."""
        for stand_in in self._compiled:
            stand_in.remove()
        self._compiled.clear()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put back what was replaced."""
        self.on_train_end(trainer, pl_module)


def compile_for_inference(model: CellViT, *, backend: str = "inductor") -> CellViT:
    """Let ``torch.compile`` translate the network of a model for inference, in place.

    The first tile of each size takes a minute longer, and the ninth size and later ones run as they are. Outputs change
    by rounding only. :func:`accelerated_inference` leaves a compiled network to the compiler, which fuses batch norms
    itself. A copy of the model is not compiled.

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
    _StandIn(model, "forward", torch.compile(model.forward, backend=backend, dynamic=False))
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
