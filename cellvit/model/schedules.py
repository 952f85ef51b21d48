"""Learning-rate schedules that torch does not have."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cellvit.errors import ConfigError


class _RebuiltLR(LambdaLR):
    """A schedule whose function is rebuilt from the configuration, so that no checkpoint holds it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the function, which is rebuilt from the configuration."""
        return {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "lr_lambdas")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state made by :meth:`state_dict`."""
        self.__dict__.update(state_dict)


class WarmupCosineLR(_RebuiltLR):
    """Rises linearly over the first steps, then falls along half a cosine; stepped every optimiser step.

    Args:
        optimizer: Whose learning rates are scaled.
        total_steps: Steps until the rate reaches ``final`` times its peak; in a configuration ``null`` takes the
            length of the training.
        warmup: Share of the steps that rise, in [0, 1).
        final: Last rate over the peak.

    Raises:
        ConfigError: If there are no steps or the warm-up is not shorter than the whole.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> None:
        if not 0 <= warmup < 1 or total_steps < 1:
            raise ConfigError(f"warmup {warmup} must be in [0, 1) and total_steps {total_steps} at least 1")
        rising = round(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            progress = min(1.0, (step - rising) / (total_steps - rising))
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

        super().__init__(optimizer, factor)


class WarmupConstantLR(_RebuiltLR):
    """Rises linearly over the first steps and stays; stepped every optimiser step.

    Such a training may go on for as long as one likes, and an average of its weights may be taken at any time. Where an
    end is decided on, a training that is resumed with ``cooldown_start`` falls linearly to ``final`` [1]; the function
    is built from the configuration, not from the checkpoint.

    Args:
        optimizer: Whose learning rates are scaled.
        warmup_steps: Steps that rise, from 0.
        cooldown_start: Step at which the rate begins to fall; None is never.
        cooldown_steps: Steps of the fall, from 1.
        final: Last rate over the peak.

    Raises:
        ConfigError: If a number is out of range.

    References:
        [1] Hägele et al., Scaling laws and compute-optimal training beyond fixed training durations, NeurIPS 2024.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 500,
        cooldown_start: int | None = None,
        cooldown_steps: int = 2000,
        final: float = 0.0,
    ) -> None:
        if warmup_steps < 0 or cooldown_steps < 1 or (cooldown_start is not None and cooldown_start < warmup_steps):
            raise ConfigError(
                f"warmup_steps {warmup_steps} must be at least 0, cooldown_start {cooldown_start} not before their end "
                f"and cooldown_steps {cooldown_steps} at least 1"
            )

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            if cooldown_start is None:
                return 1.0
            progress = min(1.0, max(0.0, (step - cooldown_start) / cooldown_steps))
            return 1 + (final - 1) * progress

        super().__init__(optimizer, factor)


class WarmupStableDecayLR(WarmupConstantLR):
    """Rises linearly, stays, and falls linearly over the last steps; stepped every optimiser step.

    The schedule of :class:`WarmupConstantLR` for a training whose length is known, in shares of it.

    Args:
        optimizer: Whose learning rates are scaled.
        total_steps: Steps until the rate reaches ``final`` times its peak; in a configuration ``null`` takes the
            length of the training.
        warmup: Share of the steps that rise, from 0.
        decay: Share of the steps that fall, above 0.
        final: Last rate over the peak.

    Raises:
        ConfigError: If there are no steps or the shares are more than the whole.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.02, decay: float = 0.3, final: float = 0.0
    ) -> None:
        if total_steps < 1 or warmup < 0 or not 0 < decay <= 1 - warmup:
            raise ConfigError(
                f"total_steps {total_steps} must be at least 1, warmup {warmup} from 0, decay {decay} above 0, and the "
                "two shares together at most 1"
            )
        rising = round(warmup * total_steps)
        start = max(rising, total_steps - round(decay * total_steps))
        super().__init__(optimizer, rising, start, max(1, total_steps - start), final)
