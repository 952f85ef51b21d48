"""What the metric classes share: class names, arrays from tensors, and exact sums."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cellvit.errors import ConfigError, DataError

ArrayOrTensor = NDArray[Any] | Tensor

_HALF_BITS = 20
_ONE = 2 ** (2 * _HALF_BITS)
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


def fixed_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return counts divided by counts as fixed-point numbers, rounded down, in integers on the device they are on.

    Args:
        part: Counts, int64, at least 0 and at most the whole.
        whole: Counts of the same shape, int64, 1 to 2**43.

    Returns:
        int64 of the same shape, 0 to the number that stands for 1.
    """
    # Two steps of a long division: the product with the full scale would overflow from 2**23 pixels on.
    scaled = part << _HALF_BITS
    high = scaled // whole
    low = ((scaled - high * whole) << _HALF_BITS) // whole
    return (high << _HALF_BITS) + low


def valid_items(valid: Tensor | None, *, like: Tensor) -> Tensor:
    """Return which items of a batch count.

    Args:
        valid: Boolean ``(B,)``, or None if all do.
        like: Any tensor of the batch ``(B, …)``.

    Returns:
        Boolean ``(B,)`` on the device of the batch.

    Raises:
        DataError: If the mask is not boolean or does not have one entry per item.
    """
    if valid is None:
        return torch.ones(len(like), dtype=torch.bool, device=like.device)
    if valid.dtype != torch.bool or valid.shape != like.shape[:1]:
        message = f"valid is {valid.dtype} {tuple(valid.shape)} for a batch of {len(like)}; "
        raise DataError(message + "pass a boolean tensor with one entry per item")
    return valid.to(like.device)


def fixed_mean(total: Tensor, count: Tensor) -> NDArray[np.float64]:
    """Return the mean of fixed-point sums; nan where the count is 0.

    Args:
        total: Sums of :func:`to_fixed`, of any shape.
        count: Number of terms, broadcast against the sums.
    """
    number = as_array(count).astype(np.float64)
    number[number == 0] = np.nan
    return np.asarray(as_array(total) / _ONE / number, np.float64)
