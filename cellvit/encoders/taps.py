"""Which transformer blocks an encoder hands to the decoder."""

import itertools
from collections.abc import Sequence

from cellvit.errors import ConfigError

NUM_TAPS = 4


def choose_taps(depth: int, *, taps: Sequence[int] | None) -> tuple[int, ...]:
    """Return the four blocks to tap, counted from 1.

    Args:
        depth: Number of blocks.
        taps: Blocks the user asked for; None spaces them evenly and ends at the last block.

    Returns:
        Four increasing block numbers.

    Raises:
        ConfigError: If ``taps`` are not four increasing numbers within the depth.

    Example:
        >>> choose_taps(12, taps=None)
        (3, 6, 9, 12)
    """
    chosen = tuple(taps) if taps is not None else tuple(depth * (i + 1) // NUM_TAPS for i in range(NUM_TAPS))
    increasing = all(a < b for a, b in itertools.pairwise(chosen))
    if len(chosen) != NUM_TAPS or not increasing or chosen[0] < 1 or chosen[-1] > depth:
        raise ConfigError(f"taps {chosen} must be {NUM_TAPS} increasing block numbers from 1 to {depth}")
    return chosen
