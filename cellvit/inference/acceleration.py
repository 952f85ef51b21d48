"""Fused and compiled inference: a faster network that computes the same; and one thread where more would hang."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar
from weakref import WeakKeyDictionary

import cv2
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cellvit.encoders.depthwise import DepthwiseConv2d
from cellvit.errors import ConfigError
from cellvit.model.network import CellViTNetwork
from cellvit.model.patching import MethodPatch, has_compiler

M = TypeVar("M", bound=CellViTNetwork)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "parametrizations")


class _Use:
    """How often a network is in use, and what has to be undone afterwards."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        self.training = [(module, module.training) for module in network.modules()]
        self.stand_ins: list[MethodPatch] = []

    def undo(self) -> None:
        for stand_in in self.stand_ins:
            stand_in.remove()
        for module, mode in self.training:
            module.training = mode


_USES: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_LOCK = threading.Lock()

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def one_thread_after_fork() -> None:
    """Compute with one thread in a process that was forked from one in which this package was loaded already.

    A fork copies no threads, but the libraries that compute still count on those of their pools in the parent, and
    would wait for them without end and without a word. Nothing tells whether a pool was in use, so that one thread is
    what is always safe. A process that was started anew (``spawn``, ``forkserver``) keeps its threads.
    """
    global _forked
    if not _forked:
        return
    _forked = False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # not 1, which would wait for the threads of its pool to end
    if threads > 1:
        warnings.warn(
            f"this process was forked, so it computes with 1 thread in place of {threads}, which would wait for threads"
            " that only its parent has; start it with multiprocessing.get_context('spawn') to use them all",
            stacklevel=3,
        )


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
    one_thread_after_fork()
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
    by_us = isinstance(vars(module).get("forward"), MethodPatch)
    return by_us or getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def _is_changed(module: nn.Module) -> bool:
    """Return whether the module runs something else than its class says."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _fuse(network: nn.Module, done: list[MethodPatch]) -> None:
    """Let convolutions compute the batch norms after them; what is put in place is added to a list."""
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        if type(sequence).forward is nn.Sequential.forward and not _is_changed(sequence):
            for conv, norm in pairwise(sequence):
                fused = _fused(conv, norm)
                if fused is not None:
                    done += [MethodPatch(conv, "forward", fused.forward), MethodPatch(norm, "forward", _same)]


def _same(x: Tensor) -> Tensor:
    return x


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return a convolution with a batch norm in it; None unless both are plain, with statistics and without hooks."""
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    plain = type(conv) in (nn.Conv2d, nn.ConvTranspose2d, DepthwiseConv2d) and type(norm) is nn.BatchNorm2d
    fits = norm.running_mean is not None and norm.num_features == conv.out_channels
    fits = fits and (conv.groups == 1 or isinstance(conv, nn.Conv2d))
    changed = any(_is_changed(m) or any(getattr(m, name, None) for name in _HOOKS) for m in (conv, norm))
    if changed or not (plain and fits):
        return None
    fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
    done: nn.Module = fused.requires_grad_(False).to(memory_format=torch.channels_last)
    return done


def compile_for_inference(model: M, *, backend: str = "inductor") -> M:
    """Let ``torch.compile`` translate the network of a model for inference, in place.

    The first tile of each size takes a minute longer, and the ninth size and later ones run as they are. Outputs change
    by rounding only. :func:`accelerated_inference` leaves a compiled network to the compiler, which fuses batch norms
    itself. A copy of the model is not compiled.

    Args:
        model: The network, such as :func:`cellvit.inference.protocol.load_model` returns; pass the result to
            ``segment_image``.
        backend: Name of a backend of ``torch.compile``.

    Returns:
        The model.

    Raises:
        ConfigError: If there is no C++ compiler, without which ``"inductor"`` does not work on a CPU.
    """
    if backend == "inductor" and model.device.type == "cpu" and not has_compiler():
        raise ConfigError("torch.compile needs a C++ compiler on the CPU; install g++, or run the model as it is")
    model.train(False)
    MethodPatch(model, "forward", torch.compile(model.forward, backend=backend, dynamic=False))
    return model
