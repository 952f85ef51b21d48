"""What the data modules of this package share: numbers as given in YAML, seeds, loaders."""

import os
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cellvit.errors import ConfigError


def check_numbers(*, num_workers: int, **numbers: int) -> None:
    """Check the whole numbers of a data module.

    Raises:
        ConfigError: If one of ``numbers`` is below 1, or there are fewer than 0 workers.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; give a positive number")
    if num_workers < 0:
        raise ConfigError(f"num_workers is {num_workers}; give a number from 0")


def base_seed(seed: int | None) -> int:
    """Return the seed, or where it is None the one of ``seed_everything``, or 0."""
    return seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))


def make_loader(
    data: Dataset[dict[str, Any]], *, batch_size: int, num_workers: int, sampler: Sampler[Any] | None = None
) -> DataLoader[dict[str, Any]]:
    """Return a loader whose last batch may be smaller than the others.

    Args:
        data: The data set.
        batch_size: Items per batch and process.
        num_workers: Loader processes; 0 loads in this one.
        sampler: Chooses the keys of the items; None takes all numbers in order.
    """
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def _one_thread(worker: int) -> None:
    """Keep OpenCV from starting threads in a loader process, where torch starts none either."""
    cv2.setNumThreads(0)
