"""Draws of training patches that are the same for any number of workers and processes."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch.utils.data import DistributedSampler

from cellvit.errors import ConfigError


class Draw(NamedTuple):
    """One training patch: number of the image, and the seed that decides the crop and its augmentation."""

    image: int
    seed: int


class WeightedDraws(DistributedSampler[Any]):
    """Draw images with replacement, each with a seed of its own.

    An epoch's draws depend on ``seed`` and the epoch alone; a trainer calls :meth:`set_epoch`. Processes of a
    distributed run take every n-th draw of one common list, so together they see exactly what one process would.
    Deriving from ``DistributedSampler`` makes Lightning leave the sampler as it is, with ``use_distributed_sampler``
    on or off; any other sampler would be sliced a second time.

    Args:
        weights: Weight of each image, not negative.
        num_samples: Draws per epoch, over all processes; what does not divide evenly is left out.
        seed: Base of all draws.
        num_replicas: Number of processes; None asks ``torch.distributed``.
        rank: Number of this process; None asks ``torch.distributed``.

    Raises:
        ConfigError: If there is no positive weight or fewer draws than processes.
    """

    def __init__(
        self,
        weights: ArrayLike,
        *,
        num_samples: int,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        values = np.asarray(weights, np.float64)
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise ConfigError(f"sampling weights {weights!r} do not work; give numbers from 0, at least one above 0")
        running = dist.is_available() and dist.is_initialized()
        replicas = num_replicas if num_replicas is not None else dist.get_world_size() if running else 1
        position = rank if rank is not None else dist.get_rank() if running else 0
        if num_samples < replicas:
            raise ConfigError(f"{num_samples} draws per epoch for {replicas} process(es); give at least one to each")
        super().__init__(
            cast(Any, range(num_samples)),
            num_replicas=replicas,
            rank=position,
            shuffle=False,
            seed=seed,
            drop_last=True,
        )
        self.probabilities = values / values.sum()
        self.draws_per_epoch = num_samples

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        indices = rng.choice(len(self.probabilities), size=self.draws_per_epoch, p=self.probabilities)
        seeds = rng.integers(2**31, size=self.draws_per_epoch)
        mine = slice(self.rank, self.num_samples * self.num_replicas, self.num_replicas)
        for index, seed in zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True):
            yield Draw(index, seed)
