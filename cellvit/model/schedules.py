"""Learning-rate schedules that torch does not have."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cellvit.errors import ConfigError


class WarmupCosineLR(LambdaLR):
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

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the function, which is rebuilt from the configuration."""
        return {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "lr_lambdas")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state made by :meth:`state_dict`."""
        self.__dict__.update(state_dict)
