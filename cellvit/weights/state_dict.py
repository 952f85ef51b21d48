"""Whether tensors fit a module, by name and shape."""

from collections.abc import Mapping
from typing import Any

import torch

NAMED = 5


def misfits(own: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> list[str]:
    """Return what keeps a state from filling a module, one entry per kind, the first names listed.

    Args:
        own: The module's state.
        state: What shall fill it.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    kinds = {
        "missing": [name for name in own if name not in state],
        "unused": [name for name in tensors if name not in own],
        "of another shape": shapes,
        "not a tensor": [name for name in state if name not in tensors],
    }
    return [
        f"{kind}: {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}"
        for kind, names in kinds.items()
        if names
    ]
