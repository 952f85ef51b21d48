"""How sure a score is: percentile intervals from drawing the images of a data set again and again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError

LEVEL = 0.95
"""Share of the resampled scores that lies inside an interval."""

MIN_IMAGES = 3
"""Images that an interval needs: two say next to nothing about the spread among images."""


def image_weights(strata: Sequence[str], *, resamples: int, seed: int) -> NDArray[np.int64]:
    """Draw images with replacement, out of every stratum as many as it has.

    The unit is the image, since nuclei of one image resemble each other. Sums over a resample are the product of its
    row with the sums of the images [1].

    Args:
        strata: One name per image, such as that of its data set.
        resamples: Number of draws, at least 1.
        seed: The same seed gives the same draws.

    Returns:
        ``(resamples, images)`` how often each image was drawn.

    Raises:
        ConfigError: If there is no image, or fewer than one resample.

    Example:
        >>> image_weights(["a", "a", "b"], resamples=2, seed=0).sum(axis=1)
        array([3, 3])

    References:
        [1] Efron and Tibshirani, An introduction to the bootstrap, 1993, 10.1201/9780429246593
    """
    if not len(strata) or resamples < 1:
        raise ConfigError(f"{resamples} resamples of {len(strata)} images; give at least one of both")
    rng = np.random.default_rng(seed)
    names = np.asarray(strata)
    weights = np.zeros((resamples, len(names)), np.int64)
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    return weights


def percentile_interval(values: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval that leaves out as many values below as above.

    Args:
        values: ``(R,)`` a score of every resample; nan, where a resample says nothing, is left out.
        level: Share of the values inside, in (0, 1).

    Returns:
        Lower and upper end; nan if all values are nan.

    Example:
        >>> low, high = percentile_interval(np.linspace(0, 1, 101), level=0.9)
        >>> round(low, 3), round(high, 3)
        (0.05, 0.95)
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
