"""Star-convex shapes: a centre and the distances from it to the outline along equally spaced rays.

The rays are those of :mod:`cellvit.geometry.rays`. Positions are those of pixel centres, and a pixel is a square of
side 1 around its centre.

The targets are computed in torch, for the foreground pixels of a whole batch at once and on its device.

    Schmidt et al., Cell detection with star-convex polygons, MICCAI 2018, DOI 10.1007/978-3-030-00934-2_30
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cellvit.errors import DataError
from cellvit.geometry.rays import NUM_RAYS, ray_directions

_OUTSIDE = -1
_STEPS_BEFORE_SORTING = 3  # picking out the rays that still go costs as much as three steps of all
_SAME_LENGTH = 1e-9  # pixels; a ray that crosses two lines within that goes through a corner


def object_probability(instance_map: Tensor) -> Tensor:
    """Compute how central each pixel is in its nucleus: 1 in the middle, small at the rim.

    The Euclidean distance from the pixel to the nearest one that is not of its nucleus (background, another nucleus, or
    beyond the image), divided by the largest such distance in the nucleus.

    Args:
        instance_map: ``(B, H, W)`` integers, 0 is background.

    Returns:
        ``(B, H, W)`` float32 on the same device; above 0 and at most 1 in nuclei, 0 outside.

    Raises:
        DataError: If the map has another shape or type.

    Example:
        >>> object_probability(torch.tensor([[[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]]))
        tensor([[[0.0000, 0.0000, 0.0000, 0.0000, 0.0000],
                 [0.5000, 0.5000, 0.5000, 0.5000, 0.5000],
                 [0.5000, 1.0000, 1.0000, 1.0000, 0.5000],
                 [0.5000, 0.5000, 0.5000, 0.5000, 0.5000]]])
    """
    labels, pixels, width = _framed(instance_map)
    distance = _squared_distance(labels, pixels, width).sqrt_()
    own = labels[pixels].long()
    count = int(own.max()) + 1 if len(own) else 1
    nucleus = torch.div(pixels, labels.numel() // len(instance_map), rounding_mode="floor") * count + own
    largest = distance.new_zeros(len(instance_map) * count).scatter_reduce_(0, nucleus, distance, "amax")
    return _spread(distance / largest[nucleus], pixels, instance_map)


def radial_distances(instance_map: Tensor, num_rays: int = NUM_RAYS) -> Tensor:
    """Compute how far each pixel is from the outline of its nucleus along each ray.

    The ray starts at the pixel's centre and ends where it first leaves the squares of the pixels of its nucleus, which
    is exact, not rounded to pixels: into background, into a nucleus that touches, or out of the image. It may pass
    between two pixels that touch at a corner. A nucleus that is not star-convex about the pixel is seen only as far as
    the ray's first exit.

    Args:
        instance_map: ``(B, H, W)`` integers, 0 is background.
        num_rays: ``K``.

    Returns:
        ``(B, K, H, W)`` float32 on the same device, at least 0.5 in nuclei, 0 outside.

    Raises:
        ConfigError: If there are fewer than three rays.
        DataError: If the map has another shape or type.

    Example:
        >>> radial_distances(torch.tensor([[[0, 1, 1, 1, 2]]]), 4)[0, :, 0, 1]  # right, down, left, up
        tensor([2.5000, 0.5000, 0.5000, 0.5000])
    """
    labels, pixels, width = _framed(instance_map)
    steps, lengths = _paths(num_rays, max(instance_map.shape[1:]) + 1)
    offsets = torch.from_numpy((steps[..., 1] * width + steps[..., 0]).astype(np.int32)).to(labels.device)
    ends = torch.from_numpy(lengths.astype(np.float32)).to(labels.device)
    # So many steps of a path stay in the nucleus, whatever the direction: they need no look.
    room = torch.zeros_like(labels)
    room[pixels] = _squared_distance(labels, pixels, width).sqrt_().to(torch.int32)
    found = torch.zeros(num_rays, labels.numel(), device=labels.device)
    for ray in range(num_rays):
        last = _last_steps(labels, pixels, room, offsets[ray])
        found[ray].index_copy_(0, pixels, ends[ray].index_select(0, last))
    batch, height, _ = instance_map.shape
    return found.view(num_rays, batch, height + 2, width)[..., 1:-1, 1:-1].movedim(0, 1)


def _last_steps(labels: Tensor, pixels: Tensor, room: Tensor, offsets: Tensor) -> Tensor:
    """Return the step of a path with which it leaves the nucleus, for each nucleus pixel, int32."""
    start, own = pixels.to(torch.int32), labels.index_select(0, pixels)
    going, step = torch.arange(len(pixels), device=labels.device), room.index_select(0, pixels) - 1
    last = torch.empty_like(step)
    while len(going):
        for _ in range(_STEPS_BEFORE_SORTING):
            at = start + offsets.index_select(0, step)
            inside = labels.index_select(0, at) == own
            step += room.index_select(0, at) * inside
        last.index_copy_(0, going, step)
        kept = torch.nonzero(inside).squeeze(1)
        start, own, going, step = (values.index_select(0, kept) for values in (start, own, going, step))
    return last


def _framed(instance_map: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the labels with a frame of another label, flat, the positions of nucleus pixels, and the framed width."""
    if instance_map.ndim != 3 or instance_map.is_floating_point() or instance_map.is_complex():
        message = f"instance map is {instance_map.dtype} {tuple(instance_map.shape)}; pass integers (B, H, W)"
        raise DataError(message)
    framed = F.pad(instance_map.to(torch.int32), (1, 1, 1, 1), value=_OUTSIDE)
    labels = framed.reshape(-1)
    return labels, torch.nonzero(labels > 0).squeeze(1), framed.shape[2]


def _squared_distance(labels: Tensor, pixels: Tensor, width: int) -> Tensor:
    """Return the squared distance from each nucleus pixel to the nearest pixel of another label, float32.

    Two passes, exact: along the row, then over the rows above and below for as long as they can be nearer.
    """
    at = torch.arange(len(labels), device=labels.device)
    changes = torch.ones(len(labels) + 1, dtype=torch.bool, device=labels.device)  # between a pixel and the one before
    changes[1:-1] = labels[1:] != labels[:-1]
    left = at - (at * changes[:-1]).cummax(0).values
    right = (at + (len(labels) - at) * ~changes[1:]).flip(0).cummin(0).values.flip(0) - at
    in_row = (torch.minimum(left, right) + 1).square().float()
    best = in_row.clone()
    for down in (-width, width):
        going, step = pixels, 0
        while len(going):
            step += 1
            there = going + step * down
            same = labels[there] == labels[going]
            nearest = step * step + in_row[there] * same
            best[going] = torch.minimum(best[going], nearest)
            going = going[same & (best[going] > (step + 1) ** 2)]
    return best[pixels]


def _spread(values: Tensor, pixels: Tensor, instance_map: Tensor) -> Tensor:
    """Return values of nucleus pixels as a map, 0 elsewhere."""
    batch, height, width = instance_map.shape
    framed = values.new_zeros(batch * (height + 2) * (width + 2))
    framed[pixels] = values
    return framed.view(batch, height + 2, width + 2)[:, 1:-1, 1:-1].contiguous()


@lru_cache(maxsize=8)
def _paths(num_rays: int, extent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pixels that each ray enters, one after the other, and how far from its start it enters them.

    Args:
        num_rays: ``K``.
        extent: Rays are followed for this many pixels along their steeper axis.

    Returns:
        Offsets ``(K, S, 2)``, ``(x, y)``, and lengths ``(K, S)``; a shorter path repeats its end.
    """
    paths = [_path(direction, extent) for direction in ray_directions(num_rays)]
    longest = max(len(lengths) for _, lengths in paths)
    more = [longest - len(lengths) for _, lengths in paths]
    return (
        np.stack([np.pad(path[0], ((0, n), (0, 0)), mode="edge") for path, n in zip(paths, more, strict=True)]),
        np.stack([np.pad(path[1], (0, n), mode="edge") for path, n in zip(paths, more, strict=True)]),
    )


def _path(direction: NDArray[np.float64], extent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return offsets ``(S, 2)`` and lengths ``(S,)`` of the pixels that one ray enters."""
    lines = np.arange(extent) + 0.5  # between pixels, from the centre of the first
    axis = np.repeat([0, 1], extent)
    with np.errstate(divide="ignore"):
        lengths = np.concatenate([lines / abs(direction[0]), lines / abs(direction[1])])
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= extent / np.abs(direction).max()]
    crossed = np.eye(2, dtype=np.int64)[axis[order]] * np.sign(direction).astype(np.int64)
    lengths, offsets = lengths[order], np.cumsum(crossed, axis=0)
    # Through a corner both lines are crossed at once. The pixel behind it then counts as two steps, so that n steps
    # lead nowhere farther than n pixels.
    corner = np.flatnonzero(np.diff(lengths) < _SAME_LENGTH)
    offsets[corner] = offsets[corner + 1]
    return offsets, lengths
