"""Learning-rate schedules that torch does not have."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cellvit.errors import ConfigError


class WarmupCosineLR(LambdaLR):
    """Rises linearly over the first steps, then falls to zero along half a cosine; stepped every optimiser step.

    Args:
        optimizer: Whose learning rates are scaled.
        total_steps: Steps until the rate reaches ``final`` times its peak.
        warmup_steps: Steps of the rise.
        final: Last rate over the peak.

    Raises:
        ConfigError: If the warm-up is not shorter than the whole.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ConfigError(
                f"warmup_steps {warmup_steps} must be below total_steps {total_steps}; train longer or warm up less"
            )

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

        super().__init__(optimizer, factor)

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the function, which is rebuilt from the configuration."""
        return {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "lr_lambdas")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state made by :meth:`state_dict`."""
        self.__dict__.update(state_dict)
