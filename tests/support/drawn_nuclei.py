"""Drawn nuclei and the maps a perfect, or a noisy, network would give for them."""

import cv2
import numpy as np


def draw_ellipses(num, shape, *, radius=(6, 13), gap=None, seed=0):
    """Return an instance map of ellipses, also across the border.

    Without ``gap`` an ellipse may be hidden to 15 percent, so that neighbours touch; with it, ellipses stay that
    many pixels away from each other.
    """
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, np.int32)
    for _ in range(100 * num):
        if instances.max() == num:
            break
        a = rng.uniform(*radius)
        b = np.clip(rng.uniform(*radius), a / 1.6, a * 1.6)
        center = (rng.uniform(0, shape[1]), rng.uniform(0, shape[0]))
        reach = int(max(a, b)) + 2 + (gap or 0)
        box = tuple(slice(max(0, int(c) - reach), int(c) + reach + 1) for c in center[::-1])
        mask = inside_ellipse(box, instances[box].shape, center, (a, b), rng.uniform(0, np.pi))
        taken = instances[box] > 0
        if gap:
            near = cv2.dilate(taken.astype(np.uint8), np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)) > 0
            allowed = not (near & mask).any()
        else:
            allowed = (taken & mask).sum() <= 0.15 * mask.sum()
        if allowed and mask.any():
            instances[box][mask & ~taken] = instances.max() + 1
    return instances


def inside_ellipse(box, shape, center, radii, angle):
    rows, cols = np.indices(shape)
    dy, dx = rows + box[0].start - center[1], cols + box[1].start - center[0]
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = dy * np.cos(angle) - dx * np.sin(angle)
    return (u / radii[0]) ** 2 + (v / radii[1]) ** 2 <= 1


def hv_target(instances):
    """Return per nucleus the distance to its centre, each side divided by its extreme."""
    hv = np.zeros((2, *instances.shape), np.float32)
    for label in np.unique(instances[instances > 0]):
        rows, cols = np.nonzero(instances == label)
        for channel, position in enumerate((cols, rows)):
            distance = position - position.mean()
            distance[distance < 0] /= max(-distance.min(), 1e-9)
            distance[distance > 0] /= max(distance.max(), 1e-9)
            hv[channel, rows, cols] = distance
    return hv


def perfect_maps(instances):
    """Return the maps of a network without error, without types."""
    nucleus = (instances > 0).astype(np.float32)
    return {"nuclei_binary_map": np.stack([1 - nucleus, nucleus]), "hv_map": hv_target(instances)}


def noisy_maps(instances, *, num_types=6, seed=0):
    """Return maps as a network gives them: blurred, with noise, specks, ragged borders and mixed types."""
    rng = np.random.default_rng(seed)
    shape = instances.shape
    logit = cv2.GaussianBlur((instances > 0).astype(np.float32) * 6 - 3, (3, 3), 0) + rng.normal(0, 1, shape)
    nucleus = (1 / (1 + np.exp(-logit))).astype(np.float32)
    target = np.stack([cv2.GaussianBlur(channel, (5, 5), 0) for channel in hv_target(instances)])
    type_of = rng.integers(1, num_types, instances.max() + 1)
    type_of[0] = 0
    score = rng.normal(0, 1, (num_types, *shape))
    score += 2 * (np.arange(num_types)[:, None, None] == type_of[instances])
    types = np.exp(score)
    return {
        "nuclei_binary_map": np.stack([1 - nucleus, nucleus]),
        "hv_map": (0.9 * target + rng.normal(0, 0.04, target.shape)).astype(np.float32),
        "nuclei_type_map": (types / types.sum(axis=0)).astype(np.float32),
    }
