"""Low-rank adapters around any encoder, on the library ``peft``."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.errors import ConfigError
from cellvit.plugins.components import ComponentSpec, build, built_spec
from cellvit.types import EncoderOutput

BASE = ".base_layer"
ADAPTER = ".lora_"
TRIAL_SIZE = 64


@ENCODERS.register("lora")
class LoRAEncoder(Encoder):
    """Another encoder, frozen, with trainable low-rank adapters on some of its linear layers [1].

    Its batch norms keep their statistics.

    A linear layer ``W x`` becomes ``W x + alpha / rank * B A x``. ``B`` starts at 0, so the encoder starts as what it
    was. Weight files of the encoder inside fit: :meth:`weights_from` reads them by its names.

    Args:
        encoder: The encoder inside: a registered name, a dotted path or ``{class_path, init_args}``.
        rank: Rows of ``A``.
        alpha: Strength of the adapters; None is twice the rank.
        dropout: Dropout of what the adapters read.
        layers: Last parts of the names of the linear layers to adapt.

    Raises:
        ConfigError: If ``peft`` is not installed, a number is out of range, or the encoder has no such layers or does
            not run them.

    References:
        [1] Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022, arXiv 2106.09685.
    """

    def __init__(
        self,
        *,
        encoder: ComponentSpec,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        layers: Sequence[str] = ("qkv", "proj"),
    ) -> None:
        super().__init__()
        if rank < 1 or not 0 <= dropout < 1:
            raise ConfigError(f"rank {rank} must be at least 1 and dropout {dropout} in [0, 1)")
        self.encoder = build(ENCODERS, encoder)
        self.init_args["encoder"] = built_spec(encoder, self.encoder)
        names = _linear_layers(self.encoder, layers)
        pooled = {id(parameter) for parameter in self.encoder.pooled_parameters()}
        self._pooled = {name for name, parameter in self.encoder.named_parameters() if id(parameter) in pooled}
        _adapt(self.encoder, names, rank=rank, alpha=2 * rank if alpha is None else alpha, dropout=dropout)
        _check_that_they_run(self.encoder, names)
        self.features = self.encoder.features
        self.pooled_channels = self.encoder.pooled_channels
        self.pixel_mean, self.pixel_std = self.encoder.pixel_mean, self.encoder.pixel_std
        self.weights_licence = self.encoder.weights_licence
        self.exports_any_size = self.encoder.exports_any_size

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        encoded: EncoderOutput = self.encoder(image)
        return encoded

    def pooled_parameters(self) -> list[nn.Parameter]:
        """Return those of the encoder inside, and the adapters on them."""
        layers = {name.rpartition(".")[0] for name in self._pooled}
        return [
            parameter
            for name, parameter in self.encoder.named_parameters()
            if name.replace(BASE, "") in self._pooled or name.partition(ADAPTER)[0] in layers
        ]

    def train(self, mode: bool = True) -> "LoRAEncoder":
        """Set or leave training mode; batch norms inside stay out of it."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return those of the encoder inside; each layer's adapters are with it."""
        return self.encoder.layer_groups()

    def weights_from(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Read a file of the encoder inside; the adapters keep what they are."""
        return self.wrapped_names(self.encoder.weights_from(content))

    def wrapped_names(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return tensors under the names of this encoder's state.

        Args:
            tensors: The state of a plain encoder like the one inside, whose adapters then stay what they are; or a
                state of this encoder, which is returned as it is.
        """
        if any(ADAPTER in name for name in tensors):
            return dict(tensors)
        own = self.state_dict()
        names = {name.replace(BASE, ""): name for name in own if ADAPTER not in name}
        adapters = {name: tensor for name, tensor in own.items() if ADAPTER in name}
        return adapters | {names.get(f"encoder.{name}", f"encoder.{name}"): tensor for name, tensor in tensors.items()}

    def merged(self) -> Encoder:
        """Return a copy of the encoder inside with the adapters added to its weights: same result, no extra cost."""
        plain = copy.deepcopy(self.encoder)
        for name, layer in _adapted(plain).items():
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, layer.get_base_layer())
        return plain.requires_grad_(True)


def _linear_layers(encoder: Encoder, layers: Sequence[str]) -> list[str]:
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if any(f".{name}".endswith(f".{layer}") for layer in layers)]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        raise ConfigError(
            f"layers {list(layers)} name no linear layer of encoder {type(encoder).__name__}; it has: {known}"
        )
    return chosen


def _adapt(encoder: Encoder, names: list[str], *, rank: int, alpha: float, dropout: float) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"encoder 'lora' needs the package peft ({error}); from a checkout: pip install '.[lora]'"
        ) from error
    options: Any = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": names}
    inject_adapter_in_model(LoraConfig(**options), encoder)


def _adapted(encoder: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in encoder.named_modules() if isinstance(module, LoraLayer)}


def _check_that_they_run(encoder: Encoder, names: list[str]) -> None:
    """Some networks read the weights of a layer instead of calling it: its adapter would do nothing, in silence."""
    seen: set[str] = set()
    hooks = [encoder.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name)) for name in names]
    device = next(encoder.parameters()).device
    training = encoder.training
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, TRIAL_SIZE, TRIAL_SIZE, device=device))
    encoder.train(training)
    for hook in hooks:
        hook.remove()
    idle = [name for name in names if name not in seen]
    if idle:
        raise ConfigError(
            f"encoder {type(encoder).__name__} does not call its layers {', '.join(idle[:3])} as modules: adapters "
            "on them would do nothing; choose other layers"
        )
