"""Fused and compiled inference: a faster network that computes the same; and one thread where more would hang."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

import cv2
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cellvit.errors import ConfigError
from cellvit.inference.fused_layer import LAYERS, FusedLayer, can_follow
from cellvit.inference.resources import kept_memory
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
        self.memory = ExitStack()

    def undo(self) -> None:
        self.memory.close()
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

    Training mode is off. In every ``nn.Sequential`` a batch norm and an activation after a convolution are computed by
    the convolution, with weights made for that and laid out with the channels last in memory. Under autocast all
    layers have their weights in its type already, made once, so that nothing is converted between them. Outputs change
    by rounding only, about 1e-6 of their size in float32. Parameters, buffers and state dict stay as they are
    meanwhile. Several threads may use one network at a time, also in different precisions: the first makes the change,
    the last undoes it. Memory that a tile on the CPU frees stays with the process for the next one until then.

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
                if all(parameter.device.type == "cpu" for parameter in network.parameters()):
                    use.memory.enter_context(kept_memory())
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
    """Let layers compute what follows them, with weights made ready; what is put in place is added to a list."""
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        if type(sequence).forward is nn.Sequential.forward and not _is_changed(sequence):
            _fuse_sequence(list(sequence), done)
    for layer in network.modules():
        if type(layer) in LAYERS and _is_free(layer):
            done.append(MethodPatch(layer, "forward", FusedLayer(layer)))


def _fuse_sequence(layers: list[nn.Module], done: list[MethodPatch]) -> None:
    for place, layer in enumerate(layers):
        if type(layer) not in LAYERS or not _is_free(layer):
            continue
        following = layers[place + 1 :]
        fused = _fused(layer, following[0]) if following else None
        replaced = following[: 0 if fused is None else 1]
        after = next(iter(following[len(replaced) :]), None)
        activation = after if _may_join(layer, after, layers) else None
        replaced += [] if activation is None else [activation]
        if replaced:
            done.append(MethodPatch(layer, "forward", FusedLayer(layer, fused=fused, activation=activation)))
            done += [MethodPatch(module, "forward", _same) for module in replaced]


def _may_join(layer: nn.Module, activation: nn.Module | None, layers: list[nn.Module]) -> bool:
    """Return whether a layer can compute what stands behind it, which stands there only."""
    if activation is None or not can_follow(layer, activation):
        return False
    return _is_free(activation) and layers.count(activation) == 1


def _same(x: Tensor) -> Tensor:
    return x


def _is_free(module: nn.Module) -> bool:
    """Return whether a module does what its class says, and nobody listens to it."""
    return not _is_changed(module) and not any(getattr(module, name, None) for name in _HOOKS)


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return a convolution with a batch norm in it; None unless the norm is plain, with statistics and no hooks."""
    if type(norm) is not nn.BatchNorm2d or not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
        return None
    fits = norm.running_mean is not None and norm.num_features == conv.out_channels
    if not fits or not _is_free(norm) or (conv.groups > 1 and isinstance(conv, nn.ConvTranspose2d)):
        return None
    done: nn.Module = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
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
