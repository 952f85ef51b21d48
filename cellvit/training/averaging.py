"""Averages of the weights for trainings that are short or start anew."""

from functools import partial

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from cellvit.errors import ConfigError


class WarmupEMA(WeightAveraging):
    """An exponential moving average of the weights that forgets the first ones quickly.

    With a decay of 0.999, ``EMAWeightAveraging`` of lightning still has 30 % of the first weights in it after 1,200
    steps. Where these were random, as in a new head, the average finds nothing long after the weights in training find
    nuclei; and it is the average that is validated and kept. Here the decay rises with the steps ``n`` to the stated
    one, ``min(decay, (1 + n) / (10 + n))``, so that the average is always over about the last tenth of the steps, or
    over the last ``1 / (1 - decay)`` once there are more.

    Args:
        decay: Share of the average that a step keeps at most, in [0, 1).
        device: Where the average is kept; None is where the model is.

    Raises:
        ConfigError: If the decay is out of range.
    """

    def __init__(self, decay: float = 0.999, device: str | None = None) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay {decay} must be from 0 to below 1; 0.999 averages about the last 1,000 steps")
        super().__init__(device=device, use_buffers=True, avg_fn=partial(_mixed, decay=decay))


def _mixed(average: Tensor, current: Tensor, steps: Tensor | int, *, decay: float) -> Tensor:
    """Return the average after a step more; ``steps`` says how many are in it."""
    if not average.is_floating_point():  # the number of batches that a norm has seen
        return current
    kept = min(decay, (1 + float(steps)) / (10 + float(steps)))
    return average * kept + current * (1 - kept)
