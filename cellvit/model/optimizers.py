"""Optimiser and schedule of a model, with learning rates that fall towards its input."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cellvit.errors import ConfigError
from cellvit.plugins.components import import_path

if TYPE_CHECKING:
    from cellvit.encoders.base import Encoder

SCALE = "lr_scale"
TRIAL_STEPS = 3
ADAMW: dict[str, Any] = {
    "class_path": "torch.optim.AdamW",
    "init_args": {"lr": 3e-4, "betas": [0.85, 0.95], "weight_decay": 1e-4},
}
EXPONENTIAL: dict[str, Any] = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.95}}


def build_optimisers(
    model: nn.Module,
    encoder: "Encoder",
    *,
    optimizer: Mapping[str, Any],
    lr_scheduler: Mapping[str, Any],
    layer_decay: float,
) -> tuple[Optimizer, LRScheduler]:
    """Return the optimiser over all parameters of a model and its schedule.

    Args:
        model: The model.
        encoder: Its encoder, whose layer groups get learning rates of their own.
        optimizer: ``{"class_path": dotted path, "init_args": {...}}``.
        lr_scheduler: ``{"class_path": dotted path, "init_args": {...}}``.
        layer_decay: Learning rate of each layer group of the encoder over that of the next one, in (0, 1].

    Raises:
        ConfigError: If a class or its arguments do not fit, or the schedule sets the rates of all groups alike.
        UnknownPluginError: If there is no such class.
    """
    groups = parameter_groups(model, encoder, layer_decay=layer_decay)
    optimiser: Optimizer = instantiate(optimizer, groups, base=Optimizer, what="optimizer")
    for group in optimiser.param_groups:
        group["lr"] = group["lr"] * group[SCALE]
    if layer_decay != 1 and not _scales(optimiser, lr_scheduler):
        raise ConfigError(
            f"lr_scheduler {lr_scheduler['class_path']!r} sets the learning rates itself and undoes layer_decay "
            f"{layer_decay}; use one that scales them, such as cellvit.model.schedules.WarmupCosineLR"
        )
    schedule: LRScheduler = instantiate(lr_scheduler, optimiser, base=LRScheduler, what="lr_scheduler")
    return optimiser, schedule


def _scales(optimiser: Optimizer, lr_scheduler: Mapping[str, Any]) -> bool:
    """Return whether a schedule keeps the ratios between the rates of an optimiser, shown by its first steps."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": float(group["lr"]), SCALE: group[SCALE]}
        for group in optimiser.param_groups
    ]
    trial = torch.optim.SGD(groups, momentum=0.9)  # some schedules move the momentum too
    schedule = instantiate(lr_scheduler, trial, base=LRScheduler, what="lr_scheduler")
    for _ in range(TRIAL_STEPS):
        rates = [float(group["lr"]) / group[SCALE] for group in trial.param_groups]
        if not all(math.isclose(rate, rates[0], rel_tol=1e-6) for rate in rates):
            return False
        trial.step()
        if isinstance(schedule, ReduceLROnPlateau):
            return not any(schedule.min_lrs)
        schedule.step()
    return True


def parameter_groups(model: nn.Module, encoder: "Encoder", *, layer_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in groups for an optimiser, each with its ``name`` and its share of the learning rate.

    What is not in the encoder learns at the full rate, the encoder's last layer group at ``layer_decay`` times that,
    the one before it at ``layer_decay**2``, and so on to the input [1]. Early layers of a pre-trained encoder, which
    know the most general things, then change the least.

    Args:
        model: The model.
        encoder: Its encoder.
        layer_decay: In (0, 1]; 1 gives one group.

    Raises:
        ConfigError: If the encoder's groups do not hold each of its parameters once.

    References:
        [1] Bao et al., BEiT: BERT pre-training of image transformers, ICLR 2022, arXiv 2106.08254.
    """
    if layer_decay == 1:
        return [{"params": list(model.parameters()), "name": "all", SCALE: 1.0}]
    layers = encoder.layer_groups()
    grouped = [id(parameter) for layer in layers for parameter in layer]
    if sorted(grouped) != sorted(id(parameter) for parameter in encoder.parameters()):
        raise ConfigError(
            f"encoder {type(encoder).__name__} cannot train with layer_decay: its layer_groups() must hold each of its "
            "parameters once; correct it"
        )
    rest = [parameter for parameter in model.parameters() if id(parameter) not in set(grouped)]
    named = [
        {"params": layer, "name": f"encoder.{number}", SCALE: layer_decay ** (len(layers) - number)}
        for number, layer in enumerate(layers)
    ]
    return [group for group in [{"params": rest, "name": "rest", SCALE: 1.0}, *named] if group["params"]]


def instantiate(spec: Mapping[str, Any], first: Any, *, base: type[Any], what: str) -> Any:
    """Return an object of an importable class.

    Args:
        spec: ``{"class_path": dotted path, "init_args": {...}}``.
        first: Its first argument, such as the parameters of an optimiser.
        base: What the class must derive from.
        what: What the object is for; named in errors.

    Raises:
        ConfigError: If it is no such class or the arguments do not fit.
        UnknownPluginError: If there is no such class.
    """
    cls = import_path(spec["class_path"], what=what)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{what} {spec['class_path']!r} does not derive from {base.__name__}; name one that does")
    try:
        return cls(first, **spec["init_args"])
    except TypeError as error:
        raise ConfigError(f"{what} {spec['class_path']}: {error}; check its init_args") from error
