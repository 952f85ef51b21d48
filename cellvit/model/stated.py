"""What the file of a model states of it, looked at before anything is built: numbers that no network has are refused.

A file may be damaged, written by hand, or a stranger's. A wrong size would otherwise take all memory, and a value that
is not finite would find nothing, in silence.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cellvit.errors import ConfigError

RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "mpp": (0.01, 100),
        "mean": (-1, 1),
        "std": (1e-4, 10),
        "num_nuclei_classes": (1, 1000),
        "num_tissue_classes": (0, 1000),
        "class_colors": (0, 255),
        "layer_decay": (0, 1),
        **dict.fromkeys(("depth", "depths", "residual_blocks"), (0, 1000)),
        **dict.fromkeys(("shared_convs", "branch_convs", "shared_levels"), (0, 1000)),
        **dict.fromkeys(("embed_dim", "num_heads", "widths", "skip_widths", "image_width", "branch_width"), (1, 2**16)),
        **dict.fromkeys(("neck_channels", "out_chans", "patch_size", "img_size", "pretrained_grid"), (1, 2**16)),
        **dict.fromkeys(("window", "rank"), (1, 2**16)),
        **dict.fromkeys(("window_size", "detail"), (0, 2**16)),
    }
)
"""Least and greatest value of the settings of a model and its parts that a file may state, by name; both are wide."""

NETWORK = (
    *("num_nuclei_classes", "num_tissue_classes", "class_colors", "mpp", "mean", "std", "layer_decay"),
    *("encoder", "decoder", "heads", "postprocessor"),
)
"""Settings whose numbers are finite."""

MAX_DEPTH = 32
MAX_VALUES = 100_000
TIMES_STORED = 4
ALWAYS_ALLOWED = 2**24
"""Parameters that a network may have whatever its file holds: 64 MB."""

WAY_OUT = "correct it in the file, or export the model again"


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuse settings with a number that is not finite or that no network has.

    Args:
        settings: Arguments of a model, as its file states them.

    Raises:
        ConfigError: With the setting and its value; or if they are nested too deep or hold too many values.
    """
    for name, value in settings.items():
        for field, last, item in _leaves(str(name), value):
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            if name not in NETWORK or not (is_number or (field == name in RANGES and item is not None)):
                continue
            least, most = RANGES.get(last, (-math.inf, math.inf))
            if not (is_number and _is_finite(item) and least <= item <= most):
                stated = f"{item:.3g}" if isinstance(item, float) else f"{item!r:.80}"
                meant = f"a number from {least:g} to {most:g}" if last in RANGES else "a finite number"
                raise ConfigError(f"{field} is {stated} and must be {meant}; {WAY_OUT}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond what a float holds
        return False


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the last name in it and the value of all that a setting holds; lists go by their own name."""
    waiting = [(name, name, 0, value)]
    seen = 0
    while waiting:
        path, last, depth, item = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:  # a pickle may even hold itself
            raise ConfigError(
                f"{name} is nested deeper than {MAX_DEPTH} or holds more than {MAX_VALUES:,} values; {WAY_OUT}"
            )
        if isinstance(item, Mapping):
            waiting += [
                (path if key == "init_args" else f"{path}.{key}", str(key), depth + 1, inside)
                for key, inside in item.items()
            ]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += [(path, last, depth + 1, inside) for inside in item]
        else:
            yield path, last, item


@contextmanager
def no_larger_than(stored: int) -> Iterator[None]:
    """Return a context in which no network can be built that is far larger than what a file holds of it.

    Every parameter is counted when a module gets it, before its memory is written to.

    Args:
        stored: Numbers in the file's tensors.

    Raises:
        ConfigError: In place of the parameter that is too much.
    """
    _count_parameters()
    token = _size.set(_Size(stored))
    try:
        yield
    finally:
        _size.reset(token)


@dataclass
class _Size:
    stored: int
    built: int = 0


_size: ContextVar[_Size | None] = ContextVar("size of the network that is built", default=None)


@cache
def _count_parameters() -> None:
    """Begin to count, once: taking the hook away again would disturb other threads that build networks."""
    register_module_parameter_registration_hook(_add)


def _add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    size = _size.get()
    if size is None or parameter is None or parameter.is_meta:
        return
    size.built += parameter.numel()
    if size.built > TIMES_STORED * size.stored + ALWAYS_ALLOWED:
        raise ConfigError(
            f"they describe a network of more than {size.built:,} parameters, but its weights hold {size.stored:,} "
            f"numbers ({type(module).__name__}.{name} is {tuple(parameter.shape)}); a size is wrong: {WAY_OUT}"
        )
