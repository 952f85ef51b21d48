"""Maps of star-convex shapes as a perfect, or a noisy, network would give them, and suppression one by one."""

import numpy as np
import shapely
import torch
from scipy import ndimage

from cellvit.geometry.star import object_probability, radial_distances, ray_directions


def star_maps(instances, *, num_rays=32):
    """Return the maps of a network without error, without types."""
    batch = torch.from_numpy(np.asarray(instances, np.int64))[None]
    return {
        "object_probability": object_probability(batch).numpy(),
        "radial_distances": radial_distances(batch, num_rays)[0].numpy(),
    }


def noisy_star_maps(instances, *, seed=0):
    """Return maps as a network gives them: blurred, with noise that neighbours share, and distances everywhere."""
    rng = np.random.default_rng(seed)
    maps = star_maps(instances)
    prob = ndimage.gaussian_filter(maps["object_probability"], (0, 1, 1)) + rng.normal(0, 0.03, (1, *instances.shape))
    noise = ndimage.gaussian_filter(rng.normal(0, 3, maps["radial_distances"].shape), (0.5, 1, 1))
    return {
        "object_probability": np.clip(prob, 0, 1).astype(np.float32),
        "radial_distances": np.maximum(maps["radial_distances"] + noise, 0.2).astype(np.float32),
    }


def polygons_of(x, y, distances):
    corners = np.stack([x, y], axis=1)[:, None] + distances[..., None].astype(np.float64) * ray_directions(
        distances.shape[1]
    )
    return shapely.polygons(corners)


def covered_points(polygon, x, y, stride):
    """Return the pixels ``(P, 2)`` in a polygon, every so many from a centre."""
    left, top, right, bottom = (int(v) for v in np.round(polygon.bounds))
    rows, cols = np.mgrid[top - 1 : bottom + 2, left - 1 : right + 2]
    chosen = ((cols - x) % stride == 0) & ((rows - y) % stride == 0)
    points = np.stack([cols[chosen], rows[chosen]], axis=1)
    return points[shapely.contains_xy(polygon, points)]


def suppress_one_by_one(x, y, distances, prob, threshold):
    """Return the shapes that stay, most probable first: the rule as one would say it."""
    polygons = polygons_of(x, y, distances)
    kept = []
    for i in sorted(range(len(prob)), key=lambda i: (-prob[i], i)):
        limits = [threshold * min(polygons[i].area, polygons[j].area) for j in kept]
        if all(counted(polygons[j], polygons[i], x[j], y[j]) <= at for j, at in zip(kept, limits, strict=True)):
            kept.append(i)
    return kept


def counted(better, other, x, y):
    """Return the common area of two polygons in pixels of the better one, whose centre is given, at most about 400."""
    stride = int(np.ceil((better.area / 400) ** 0.5))
    points = covered_points(better, x, y, stride)
    return stride**2 * shapely.contains_xy(other, points).sum()


def exact(better, other):
    return better.intersection(other).area
