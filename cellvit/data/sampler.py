"""Which images are drawn: the same for any number of workers and processes, each evaluated once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DistributedSampler

from cellvit.errors import ConfigError, DataError


class Draw(NamedTuple):
    """One training patch: number of the image, and the seed that decides the crop and its augmentation."""

    image: int
    seed: int


class Repeat(NamedTuple):
    """One image that only fills up the share of a process and must not be counted."""

    image: int


def read_key(key: int | Draw | Repeat) -> tuple[int, bool]:
    """Return the number of the image that a key asks for, and whether metrics count it."""
    return (key.image, isinstance(key, Draw)) if isinstance(key, Draw | Repeat) else (key, True)


def draw_seed(key: int | Draw | Repeat) -> int:
    """Return the seed of a draw; for another key torch's generator gives one."""
    return key.seed if isinstance(key, Draw) else int(torch.randint(2**31, ()))


class EpochDraws(DistributedSampler[Any], ABC):
    """Draw images anew each epoch, each with a seed of its own.

    An epoch's draws depend on ``seed`` and the epoch alone; a trainer calls :meth:`set_epoch`. Processes of a
    distributed run take every n-th draw of one common list, so together they see exactly what one process would.
    Deriving from ``DistributedSampler`` makes Lightning leave the sampler as it is, with ``use_distributed_sampler``
    on or off; any other sampler would be sliced a second time.

    Args:
        num_samples: Draws per epoch, over all processes; what does not divide evenly is left out.
        seed: Base of all draws.
        num_replicas: Number of processes; None asks ``torch.distributed``.
        rank: Number of this process; None asks ``torch.distributed``.

    Raises:
        ConfigError: If there are fewer draws than processes.
    """

    def __init__(
        self, num_samples: int, *, seed: int = 0, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        replicas, position = _place(num_replicas, rank)
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
        self.draws_per_epoch = num_samples

    @abstractmethod
    def draw_images(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the numbers of the images of an epoch, ``draws_per_epoch`` many."""

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        indices = self.draw_images(rng)
        seeds = rng.integers(2**31, size=self.draws_per_epoch)
        mine = slice(self.rank, self.num_samples * self.num_replicas, self.num_replicas)
        for index, seed in zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True):
            yield Draw(index, seed)


class WeightedDraws(EpochDraws):
    """Draw images with replacement; see :class:`EpochDraws`.

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
        super().__init__(num_samples, seed=seed, num_replicas=num_replicas, rank=rank)
        self.probabilities = values / values.sum()

    def draw_images(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return image numbers that follow the weights."""
        return rng.choice(len(self.probabilities), size=self.draws_per_epoch, p=self.probabilities)


class ShuffledDraws(EpochDraws):
    """Draw every image once per epoch, in a new order; see :class:`EpochDraws`.

    Args:
        num_images: Number of images.
        num_samples: Draws per epoch, over all processes; None takes each image once. Fewer leave images out, more
            go through all of them again.
        seed: Base of all draws.
        num_replicas: Number of processes; None asks ``torch.distributed``.
        rank: Number of this process; None asks ``torch.distributed``.

    Raises:
        ConfigError: If there is no image or there are fewer draws than processes.
    """

    def __init__(
        self,
        num_images: int,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if num_images < 1:
            raise ConfigError(f"{num_images} images to shuffle; give at least one")
        draws = num_images if num_samples is None else num_samples
        super().__init__(draws, seed=seed, num_replicas=num_replicas, rank=rank)
        self.num_images = num_images

    def draw_images(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return image numbers, one pass through all images after the other."""
        passes = -(-self.draws_per_epoch // self.num_images)
        order = np.concatenate([rng.permutation(self.num_images) for _ in range(passes)])
        return order[: self.draws_per_epoch]


class EvaluationShard(DistributedSampler[Any]):
    """Give every process its share of the images, all shares equally long, each image counted once.

    Processes that evaluate different numbers of batches would wait for each other for ever, so what is missing is
    filled up with images that others have: as :class:`Repeat`, which a data set answers with ``valid`` False.
    Deriving from ``DistributedSampler`` makes Lightning leave the sampler as it is.

    Args:
        num_images: Number of images.
        num_replicas: Number of processes; None asks ``torch.distributed``.
        rank: Number of this process; None asks ``torch.distributed``.

    Example:
        >>> [list(EvaluationShard(3, num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 2], [1, Repeat(image=0)]]
    """

    def __init__(self, num_images: int, *, num_replicas: int | None = None, rank: int | None = None) -> None:
        replicas, position = _place(num_replicas, rank)
        super().__init__(cast(Any, range(num_images)), num_replicas=replicas, rank=position, shuffle=False)
        self.num_images = num_images

    def __iter__(self) -> Iterator[int | Repeat]:
        for position in range(self.rank, self.total_size, self.num_replicas):
            yield position if position < self.num_images else Repeat(position % self.num_images)


def balanced_weights(
    tissue: ArrayLike, type_presence: ArrayLike, *, gamma: float, variant: Literal["released", "paper"] = "released"
) -> NDArray[np.float64]:
    """Compute the published sampling weights, which favour rare tissues and rare types of nuclei.

    With ``N`` patches, ``n(i)`` of them of the tissue of patch ``i``, ``c_i`` its 0/1 vector of types present,
    ``f = sum_i c_i`` and ``N_C = sum f``, the weight of patch ``i`` is ``w_T / max w_T + w_C / max w_C`` of

    * ``w_T = N / (gamma n(i) + (1 - gamma) N)``,
    * ``w_C = (1 - gamma) + gamma sum_j c_ij N_C / (gamma f_j + (1 - gamma) N_C)``.

    The released code multiplies the first term of ``w_C`` by 1 if the patch has any nucleus and by 0 otherwise, and
    raises weights ``w_C`` of 0 to the smallest that is not. It counts over the whole data set; give only the patches
    that are trained on, as the paper [1] writes.

    [1] Hörst et al., CellViT, Medical Image Analysis 2024, DOI 10.1016/j.media.2024.103143.

    Args:
        tissue: ``(N,)`` integers, the tissue of each patch.
        type_presence: ``(N, C)`` 0 or 1, whether a nucleus of each type (without background) is in the patch.
        gamma: 0 weighs all patches alike, 1 balances fully.
        variant: ``"released"`` or ``"paper"``; they differ in patches without nuclei.

    Returns:
        ``(N,)`` weights in (0, 2].

    Raises:
        ConfigError: If ``gamma`` is outside [0, 1] or the variant is unknown.
        DataError: If the arrays do not fit each other, are empty, or hold something else.

    Example:
        The third patch is of a rare tissue: ``w_T = 1.5, 1.5, 3``. All have the one type there is.

        >>> balanced_weights([0, 0, 1], [[1], [1], [1]], gamma=1.0)
        array([1.5, 1.5, 2. ])
    """
    check_gamma(gamma)
    if variant not in ("released", "paper"):
        raise ConfigError(f"variant {variant!r} of the sampling weights is unknown; use 'released' or 'paper'")
    tissues, present = np.asarray(tissue), np.asarray(type_presence)
    if tissues.ndim != 1 or tissues.dtype.kind not in "iu" or present.shape[:1] != tissues.shape or not len(tissues):
        raise DataError(
            f"tissue has shape {tissues.shape} and type {tissues.dtype}, type_presence shape {present.shape}; "
            "give (N,) integers and (N, C), N at least 1"
        )
    if present.ndim != 2 or not np.isin(present, (0, 1)).all():
        raise DataError(f"type_presence of shape {present.shape} must be (N, C) and hold 0 and 1 alone")
    parts = (_tissue_weights(tissues, gamma), _type_weights(present.astype(np.float64), gamma, variant))
    return np.asarray(sum(w / w.max() for w in parts), np.float64)


def check_gamma(gamma: float) -> None:
    """Check the strength of the oversampling.

    Raises:
        ConfigError: If it is outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ConfigError(f"sampling gamma is {gamma}; give a number from 0, all patches alike, to 1, fully balanced")


def _tissue_weights(tissue: NDArray[Any], gamma: float) -> NDArray[np.float64]:
    _, index, count = np.unique(tissue, return_inverse=True, return_counts=True)
    total = len(tissue)
    weights: NDArray[np.float64] = (total / (gamma * count + (1 - gamma) * total))[index]
    return weights


def _type_weights(present: NDArray[np.float64], gamma: float, variant: str) -> NDArray[np.float64]:
    """Return ``w_C``; where no patch has a nucleus all are alike."""
    if not present.any():
        return np.ones(len(present))
    present = present[:, present.any(axis=0)]
    count = present.sum(axis=0)
    total = count.sum()
    base = present.any(axis=1).astype(np.float64) if variant == "released" else np.ones(len(present))
    rarity = total / (gamma * count + (1 - gamma) * total)
    weights: NDArray[np.float64] = (1 - gamma) * base + gamma * (present @ rarity)
    return np.maximum(weights, weights[weights > 0].min()) if variant == "released" else weights


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Return the number of processes and the number of this one, as given or as ``torch.distributed`` says."""
    running = dist.is_available() and dist.is_initialized()
    replicas = num_replicas if num_replicas is not None else dist.get_world_size() if running else 1
    return replicas, rank if rank is not None else dist.get_rank() if running else 0
