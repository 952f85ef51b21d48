"""What the metric classes share: class names, arrays from tensors, and exact sums."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cellvit.errors import ConfigError

ArrayOrTensor = NDArray[Any] | Tensor

_ONE = 2**40
"""Scale of the fixed-point sums.

Integers add up to the same sum in any order, so batches and ranks cannot change a result, and every device has them
(float64 is missing on some). Resolution 1e-12, room for 8 million images.
"""


def unique_names(names: Sequence[str], *, what: str) -> tuple[str, ...]:
    """Return the names; raise ConfigError if one occurs twice, since results are returned by name."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ConfigError(f"{what} {repeated[0]!r} is given twice; names must differ")
    return tuple(names)


def as_array(values: ArrayOrTensor) -> NDArray[Any]:
    """Return a tensor or array as numpy array on the host."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def to_fixed(values: ArrayLike, *, device: torch.device) -> Tensor:
    """Return finite numbers as int64 fixed-point numbers of the same shape."""
    return torch.from_numpy(np.asarray(np.rint(np.asarray(values, np.float64) * _ONE), np.int64)).to(device)


def fixed_mean(total: Tensor, count: Tensor) -> NDArray[np.float64]:
    """Return the mean of fixed-point sums; nan where the count is 0.

    Args:
        total: Sums of :func:`to_fixed`, of any shape.
        count: Number of terms, broadcast against the sums.
    """
    number = as_array(count).astype(np.float64)
    number[number == 0] = np.nan
    return np.asarray(as_array(total) / _ONE / number, np.float64)
