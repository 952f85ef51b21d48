"""Connected regions and the marker watershed in tensor operations only: no loop over regions or pixels.

All functions are plain enough for ``torch.jit.script`` and use operators that every device has. What is found by
joining (regions, basins of the watershed) joins all that touches at once and repeats that until nothing is left to
join; every round at least halves what is still apart in practice, so that a few rounds do for any image.
"""

import torch
from torch import Tensor


def smallest(values: Tensor, at: Tensor, count: int, missing: int) -> Tensor:
    """Return the smallest value at each of several places.

    Args:
        values: ``(K,)`` int64, from 0 to ``missing``.
        at: ``(K,)`` int64, the place of each value.
        count: Number of places.
        missing: What a place without a value gets.

    Returns:
        ``(count,)`` int64.
    """
    if missing < 1 << 24:  # float32 has these numbers too, and Apple's devices know no such minimum of int64
        start = torch.full([count], float(missing), device=at.device)
        return start.scatter_reduce_(0, at, values.float(), "amin").long()
    return torch.full([count], missing, dtype=torch.int64, device=at.device).scatter_reduce_(0, at, values, "amin")


def followed(onward: Tensor) -> Tensor:
    """Return where the way from each node ends.

    Args:
        onward: ``(K,)`` int64: the next node; itself where the way ends. No way leads in a circle.
    """
    further = onward[onward]
    while not torch.equal(further, onward):
        onward = further
        further = onward[onward]
    return onward


def joined(count: int, one: Tensor, other: Tensor) -> Tensor:
    """Return the smallest of the nodes that each node is joined with, directly or over others.

    Args:
        count: Number of nodes.
        one: ``(E,)`` int64, one node of each pair that is joined.
        other: ``(E,)`` int64, the other.

    Returns:
        ``(count,)`` int64.
    """
    root = torch.arange(count, device=one.device)
    while one.numel() > 0:
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        root = followed(torch.minimum(root, smallest(low, high, count, count)))
        one, other = root[low], root[high]
        apart = one != other
        one, other = one[apart], other[apart]
    return root


def runs_of(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the horizontal runs of a mask and which 4-connected regions they make.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        Run of each pixel ``(H * W,)`` int32, from 1 in reading order, 0 outside of the mask; region of each run
        ``(R + 1,)`` int64, from 1 in reading order of its first pixel, 0 for run 0; pixels of each run ``(R + 1,)``
        int64, 0 for run 0; and the number of regions.
    """
    height, width = mask.shape[0], mask.shape[1]
    framed = torch.zeros([height, width + 1], dtype=torch.bool, device=mask.device)
    framed[:, 1:] = mask
    start = mask & ~framed[:, :-1]
    flat = torch.cat([framed.flatten(), torch.zeros(1, dtype=torch.bool, device=mask.device)])
    change = torch.nonzero(flat[1:] != flat[:-1]).flatten()  # each run begins and ends
    length = torch.cat([torch.zeros(1, dtype=torch.int64, device=mask.device), change[1::2] - change[::2]])
    count = int(length.numel())
    run = torch.cumsum(start.flatten(), 0, dtype=torch.int32) * mask.flatten()
    both = mask[1:] & mask[:-1]
    # of all pixels in which two runs touch, the first
    both[:, 1:] &= start[1:, 1:] | start[:-1, 1:]
    above = torch.nonzero(both.flatten()).flatten()
    root = joined(count, run.index_select(0, above).long(), run.index_select(0, above + width).long())
    first = root == torch.arange(count, device=root.device)
    number = torch.cumsum(first, 0) - 1
    return run, number.index_select(0, root), length, int(number[-1])


def label_regions(mask: Tensor, min_size: int) -> Tensor:
    """Return the 4-connected regions of a mask that have a number of pixels.

    Args:
        mask: ``(H, W)`` bool.
        min_size: Fewest pixels of a region.

    Returns:
        ``(H, W)`` int32, 1..N in reading order of their first pixels; 0 is the rest.
    """
    run, region, length, count = runs_of(mask)
    area = torch.zeros(count + 1, dtype=torch.int64, device=mask.device).index_add_(0, region, length)
    keep = area >= min_size
    keep[0] = False
    number = torch.cumsum(keep, 0, dtype=torch.int32) * keep
    return number.index_select(0, region).index_select(0, run).view(mask.shape)


def fill_holes(mask: Tensor) -> Tensor:
    """Return a mask with every background region filled that no 4-connected path joins to the border.

    Args:
        mask: ``(H, W)`` bool.
    """
    run, region, _, count = runs_of(~mask)
    lines = run.view(mask.shape)
    border = torch.cat([lines[0], lines[-1], lines[:, 0], lines[:, -1]])
    hole = torch.ones(count + 1, dtype=torch.bool, device=mask.device)
    hole.index_fill_(0, region.index_select(0, border), False)
    hole[0] = False
    return mask | hole.index_select(0, region).index_select(0, run).view(mask.shape)


def flooded(energy: Tensor, markers: Tensor, regions: Tensor) -> Tensor:
    """Return the marker that gets each pixel when regions are flooded from markers in the order of the energy.

    A pixel goes the way of its lowest neighbour, as long as that is lower than itself. What then belongs to no marker
    joins the neighbour over whose lowest pass it is reached; that is repeated until all have a marker. The result is
    a watershed as a queue makes it, except for the order of equal passes [1].

    Args:
        energy: ``(H, W)`` float32; low values are flooded first.
        markers: ``(H, W)`` int32, 0 is none; what lies outside of the regions does not count.
        regions: ``(H, W)`` int32, 4-connected, from 1 without gaps; 0 is outside.

    Returns:
        ``(H, W)`` int32; 0 outside and in regions without a marker.

    References:
        [1] Cousty et al., Watershed cuts: minimum spanning forests and the drop of water principle, IEEE Transactions
        on Pattern Analysis and Machine Intelligence 2009, DOI 10.1109/TPAMI.2008.173.
    """
    count, last = int(regions.max()) + 1, int(markers.max())
    at = torch.nonzero(markers.flatten()).flatten()
    where, seed = regions.flatten().index_select(0, at).long(), markers.flatten().index_select(0, at).long()
    owner = smallest(seed, where, count, last + 1)
    owner[owner > last] = 0
    owner.index_fill_(0, where[owner.index_select(0, where) != seed], -1)  # regions with several markers
    owner[0] = 0
    labels = owner.int().index_select(0, regions.flatten())
    contested = torch.nonzero(labels < 0).flatten()
    if contested.numel() > 0:
        found = _flooded_pixels(energy, markers.flatten().index_select(0, contested).long(), contested)
        labels.index_copy_(0, contested, found.int())
    return labels.view(regions.shape)


def _flooded_pixels(energy: Tensor, seed: Tensor, at: Tensor) -> Tensor:
    """Return the marker of each pixel of regions with several.

    Args:
        energy: ``(H, W)`` float32.
        seed: ``(P,)`` int64 marker of each of the pixels, 0 for none.
        at: ``(P,)`` their flat positions, in reading order.
    """
    height, width = energy.shape[0], energy.shape[1] + 1  # with a column between rows, and a row above and below
    count, device = int(at.numel()), at.device
    own = torch.arange(count, device=device)
    place = at + torch.div(at, width - 1, rounding_mode="floor") + width
    number = torch.full([(height + 2) * width], count, dtype=torch.int64, device=device).index_copy_(0, place, own)
    level = torch.cat([energy.flatten().index_select(0, at), torch.full([1], float("inf"), device=device)])
    lowest, onward = level[:-1], own
    for step in (-width, -1, 1, width):
        near = number.index_select(0, place + step)
        value = level.index_select(0, near)
        onward = torch.where(value < lowest, near, onward)
        lowest = torch.minimum(lowest, value)
    end = followed(torch.where(seed > 0, own, onward))
    # basins: those of markers have the numbers of the markers, the others numbers after them
    is_pit = (end == own) & (seed == 0)
    last = int(seed.max())
    pits = torch.cumsum(is_pit, 0)
    basin = torch.where(is_pit, pits + last, seed).index_select(0, end)
    free = int(pits[-1])
    if free == 0:
        return basin
    ends = torch.cat([basin, torch.zeros(1, dtype=torch.int64, device=device)])
    ones, others, heights = [], [], []
    for step in (1, width):
        near = number.index_select(0, place + step)
        beside = ends.index_select(0, near)
        at_pass = torch.nonzero((beside > 0) & (beside != basin) & ((beside > last) | (basin > last))).flatten()
        ones.append(basin.index_select(0, at_pass))
        others.append(beside.index_select(0, at_pass))
        heights.append(torch.maximum(level[:-1], level.index_select(0, near)).index_select(0, at_pass))
    one, other = torch.cat(ones), torch.cat(others)
    order = torch.argsort(torch.cat(heights), stable=True)  # passes get different numbers, so that no circle arises
    return _over_passes(last + free + 1, last, one[order], other[order]).index_select(0, basin)


def _over_passes(count: int, last: int, one: Tensor, other: Tensor) -> Tensor:
    """Return which basin each basin flows into over the lowest passes; those up to ``last`` stay what they are.

    Args:
        count: Number of basins, 0 counted.
        last: The last basin that has a marker.
        one: ``(E,)`` int64, a basin beside each pass, the lowest pass first.
        other: ``(E,)`` int64, that on the other side.
    """
    root = torch.arange(count, device=one.device)
    rank = torch.arange(int(one.numel()), device=one.device)
    missing = int(one.numel())
    while one.numel() > 0:
        best = torch.minimum(smallest(rank, one, count, missing), smallest(rank, other, count, missing))
        onward = torch.arange(count, device=one.device)
        for here, there in ((one, other), (other, one)):
            taken = (best[here] == rank) & (here > last)
            onward[here[taken]] = there[taken]
        mutual = onward[onward] == torch.arange(count, device=one.device)
        own = torch.arange(count, device=one.device)
        onward = torch.where(mutual & (own < onward), own, onward)
        root = followed(onward)[root]
        one, other = root[one], root[other]
        live = (one != other) & ((one > last) | (other > last))
        one, other, rank = one[live], other[live], rank[live]
    return root
