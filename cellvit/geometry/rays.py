"""Rays of star-convex shapes and the area that their ends enclose; in numpy, for what follows the network.

Ray ``k`` of ``K`` points along ``(x, y) = (cos 2πk/K, sin 2πk/K)``: ray 0 to the right, ray ``K / 4`` down.
"""

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError

NUM_RAYS = 32
"""Rays of the paper."""

MIN_RAYS = 3
"""Fewer enclose nothing."""


def ray_directions(num_rays: int = NUM_RAYS) -> NDArray[np.float64]:
    """Return the unit vector of every ray, ``(K, 2)``, ``(x, y)``.

    Args:
        num_rays: ``K``.

    Raises:
        ConfigError: If there are fewer than three.

    Example:
        >>> ray_directions(4).tolist()
        [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
    """
    if num_rays < MIN_RAYS:
        raise ConfigError(f"num_rays {num_rays} encloses nothing; use {MIN_RAYS} or more, {NUM_RAYS} as published")
    angle = 2 * np.pi * np.arange(num_rays) / num_rays
    directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    directions[np.abs(directions) < 1e-12] = 0  # a ray along an axis stays on it
    return directions


def star_area(distances: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the area of polygons ``(N,)`` whose corners lie at the given distances along the rays ``(N, K)``.

    Example:
        >>> star_area(np.full((1, 4), 2.0)).tolist()  # a square on its corner, with diagonals of 4
        [8.0]
    """
    num_rays = distances.shape[1]
    triangles = (distances * np.roll(distances, -1, axis=1)).sum(axis=1, dtype=np.float64)
    area: NDArray[np.float64] = triangles * (np.sin(2 * np.pi / num_rays) / 2)
    return area
