"""A layer of a network for inference: with the activation after it, and its weights in the type that is computed in."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cellvit.encoders.depthwise import DepthwiseConv2d

CONVOLUTIONS = (nn.Conv2d, DepthwiseConv2d)
LAYERS = (*CONVOLUTIONS, nn.ConvTranspose2d, nn.Linear)
"""Kinds of layers whose weights can be made ready; a class derived from one may do something else."""

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU)


def can_follow(layer: nn.Module, activation: nn.Module) -> bool:
    """Return whether a layer can compute an activation that follows it."""
    return type(layer) in (*CONVOLUTIONS, nn.Linear) and type(activation) in _ACTIVATIONS


class FusedLayer:
    """Computes a layer and the activation after it, as :func:`torch.compile` would, without its minute of waiting.

    Under autocast the weights are in its type from the first call on, so that neither they nor what comes in from the
    layer before has to be converted. On a CPU the activation is part of the operation of the layer (oneDNN), which
    saves a pass over the map.

    Args:
        layer: One of :data:`LAYERS`; it is not changed.
        fused: The layer with a batch norm in it, in place of the layer.
        activation: What follows, see :func:`can_follow`.
    """

    def __init__(
        self, layer: nn.Module, *, fused: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        self._layer: Any = layer if fused is None else fused
        self._activation = activation
        self._ready: dict[torch.dtype, Any] = {}

    def __call__(self, x: Tensor, *arguments: Any) -> Tensor:
        """Return what the layer and the activation make of ``x``."""
        own: torch.dtype = self._layer.weight.dtype
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own
        ready = self._ready.get(dtype)
        if ready is None:
            ready = self._ready[dtype] = _ready(self._layer, dtype)
        x = x if x.dtype in (dtype, torch.float64) or dtype is own else x.to(dtype)
        if not arguments and type(ready) is not nn.ConvTranspose2d and _may_fuse(x, dtype):
            return self._in_one(ready, x)
        made: Tensor = type(ready).forward(ready, x, *arguments)
        return made if self._activation is None else type(self._activation).forward(self._activation, made)

    def _in_one(self, layer: Any, x: Tensor) -> Tensor:
        name, scalars, algorithm = _post_operation(self._activation)
        made: Tensor
        if isinstance(layer, nn.Linear):
            made = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, name, scalars, algorithm)
            return made
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            made = layer._conv_forward(x, layer.weight, layer.bias)
            return made if self._activation is None else type(self._activation).forward(self._activation, made)
        shape = (layer.padding, layer.stride, layer.dilation, layer.groups)
        made = torch.ops.mkldnn._convolution_pointwise(x, layer.weight, layer.bias, *shape, name, scalars, algorithm)
        return made


def _post_operation(activation: nn.Module | None) -> tuple[str, list[float], str]:
    """Return how oneDNN's operations in torch are told of an activation."""
    if isinstance(activation, nn.ReLU6):
        return "hardtanh", [0.0, 6.0], ""
    if isinstance(activation, nn.GELU):
        return "gelu", [], activation.approximate
    return ("none" if activation is None else "relu"), [], ""


def _ready(layer: Any, dtype: torch.dtype) -> Any:
    """Return a layer in a type, convolutions with the channels last; a linear layer of that type is itself."""
    if isinstance(layer, nn.Linear) and layer.weight.dtype is dtype:
        return layer
    with torch.inference_mode(False), torch.no_grad():  # usable with gradients too, as the layer is
        made = copy.deepcopy(layer).requires_grad_(False).to(dtype)
        return made if isinstance(layer, nn.Linear) else made.to(memory_format=torch.channels_last)


def _may_fuse(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether layer and activation can be one operation: on a CPU, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype is dtype
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
        and _is_right(dtype)
    )


@cache
def _is_right(dtype: torch.dtype) -> bool:
    """Return whether torch has oneDNN's operations here, which are not among those it documents, and they are right."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, linear, x = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(8, 16), torch.rand(1, 16, 8, 8) - 0.5
        try:
            if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return False
            for layer, activation in ((conv, nn.ReLU()), (linear, nn.GELU()), (conv, nn.ReLU6())):
                found = FusedLayer(layer, activation=activation)._in_one(copy.deepcopy(layer).to(dtype), x.to(dtype))
                wanted = activation(layer(x))
                if not torch.allclose(found.float(), wanted, atol=0.02):
                    return False
        except (RuntimeError, AttributeError, NotImplementedError):
            return False
    return True
