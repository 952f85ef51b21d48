"""From an instance map to the table of its nuclei, for predictions and for ground truth alike."""

from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellvit.errors import DataError
from cellvit.geometry.outlines import OuterRings, border_rings, cut_where_touching, outer_rings
from cellvit.geometry.polygons import MIN_CONTOUR_POINTS, ring_bounds, ring_lengths, select_rings
from cellvit.types import UNKNOWN_TYPE, IntMap, Nuclei, NucleiClasses, NucleiPrediction

TypeRule = Literal["majority", "mean"]

_Pixels = tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.intp]]  # row of the nucleus, y, x
_WIDE = 16  # pixels: a token of that stride is wider than most nuclei


def nuclei_from_instances(
    instance_map: ArrayLike,
    *,
    type_map: ArrayLike | None = None,
    nucleus_prob: ArrayLike | None = None,
    embedding_map: ArrayLike | None = None,
    classes: NucleiClasses | None = None,
    min_contour_points: int = MIN_CONTOUR_POINTS,
    type_rule: TypeRule = "majority",
) -> NucleiPrediction:
    """Measure every instance of a map and return the cleaned map with its table.

    Type: by ``"majority"``, as published, the most frequent type among the pixels of the nucleus, ties going to the
    smallest id. If that is background and another type occurs, the most frequent of the others. ``type_prob`` is the
    share of the nucleus's pixels that have the chosen type. By ``"mean"`` the probabilities are averaged over the
    nucleus and background, which a nucleus is not, is left out: ``type_prob`` is the share of the largest in the sum
    of the others. Every nucleus then has a type. Contour: the outer edges of the pixels of the nucleus, holes filled;
    of a nucleus in several pieces (8-connected) those of the largest (the first in reading order among equals), where
    the released code takes whichever piece OpenCV lists first; see :mod:`cellvit.geometry.outlines` for pixels that
    touch at corners. Centroid: the mean of the centres of all pixels. As published, an instance of whose border
    OpenCV's contour has too few points, such as a single pixel or a straight line, is no nucleus: it is left out of
    the table and of the returned map.

    Args:
        instance_map: Integers ``(H, W)``, 0 is background; ids may have gaps.
        type_map: Types per pixel, either labels ``(H, W)`` of an integer type (0 is background, -1 unknown, which
            counts as background) or probabilities ``(C, H, W)``, of which the largest counts, the first among equals.
            None makes every nucleus type 1.
        nucleus_prob: ``(H, W)`` in [0, 1], read only where ``type_map`` is None: ``type_prob`` is its mean
            inside the nucleus. None makes ``type_prob`` 1.
        embedding_map: ``(D, h, w)`` feature map of the image, padded at the bottom and the right to whole tokens. The
            stride ``s`` is the least power of two that makes ``h`` tokens cover ``H`` pixels. From 16 on a token is
            wider than a nucleus, and its embedding is, as published, the mean of the tokens its bounding box covers:
            rows ``floor(ymin / s)`` to ``ceil(ymax / s)`` (half-open), and likewise for columns. In a finer map it is
            the mean of the tokens under its pixels, each as often as it has pixels there. None leaves it out.
        classes: Names and colours of the types, passed on to the table.
        type_rule: ``"majority"`` or ``"mean"``; labels per pixel count as probabilities of 0 and 1.
        min_contour_points: Points that OpenCV's contour of the border pixels needs; 1 keeps every instance, single
            pixels and lines too.

    Returns:
        The map as int32 with ids 1..N without gaps in the order of the given ids (the given array itself where
        nothing had to change), and the table, whose row ``i`` belongs to id ``i + 1``, which is also its ``label``.

    Raises:
        DataError: If a map has the wrong shape, number type or values.

    Example:
        >>> square = np.zeros((6, 6), np.int32)
        >>> square[1:4, 2:5] = 7
        >>> nuclei = nuclei_from_instances(square).nuclei
        >>> nuclei.centroid.tolist(), nuclei.bbox.tolist(), nuclei.label.tolist()
        ([[3.5, 2.5]], [[2.0, 1.0, 5.0, 4.0]], [1])
        >>> nuclei.contour(0).tolist()
        [[2.0, 1.0], [2.0, 4.0], [5.0, 4.0], [5.0, 1.0]]
    """
    given = _checked_instances(instance_map)
    types = None if type_map is None else _checked_types(np.asarray(type_map), given.shape, classes)
    prob = None if nucleus_prob is None else _checked_prob(np.asarray(nucleus_prob), given.shape)
    tokens = None if embedding_map is None else _checked_tokens(np.asarray(embedding_map))

    instances, bbox, points, offsets = _outline(given, min_contour_points)
    num = len(bbox)
    if num == 0:
        width = None if tokens is None else len(tokens)
        return NucleiPrediction(instances, Nuclei.empty(embedding_dim=width, classes=classes))

    pixels = np.flatnonzero(instances > 0)
    row_of = instances.reshape(-1)[pixels].astype(np.int64) - 1
    area = np.bincount(row_of, minlength=num)
    y, x = np.divmod(pixels, instances.shape[1])
    if types is None:
        chosen = np.ones(num, np.int32)
        share = np.ones(num) if prob is None else np.bincount(row_of, prob.reshape(-1)[pixels], num) / area
    else:
        chosen, share = _typed(types, pixels, row_of, area=area, rule=type_rule)
    nuclei = Nuclei(
        # pixel i covers [i, i + 1): its centre is at i + 0.5
        centroid=np.stack([np.bincount(row_of, x, num), np.bincount(row_of, y, num)], axis=1) / area[:, None] + 0.5,
        bbox=bbox.astype(np.float64),
        type=chosen,
        type_prob=share.astype(np.float32),
        contour_offsets=offsets,
        contour_points=points.astype(np.float64),
        label=np.arange(1, num + 1, dtype=np.int32),
        embedding=None if tokens is None else _embedding(tokens, bbox, instances.shape, (row_of, y, x)),
        classes=classes,
    )
    return NucleiPrediction(instances, nuclei)


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Refuse a map that holds NaN or infinity.

    Args:
        name: Name of the map, for the message.
        array: Floats of any shape.

    Raises:
        DataError: If a value is not finite.
    """
    # One sum is several times cheaper than a mask of a large map; only where it fails is a closer look due.
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.result_type(array.dtype, np.float32))
    if not np.isfinite(total) and not np.isfinite(array).all():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        message = f"{name} holds {bad} values that are NaN or infinite; check the model's weights and precision"
        raise DataError(message)


def _checked_instances(instance_map: ArrayLike) -> IntMap:
    given = np.asarray(instance_map)
    if given.ndim != 2 or given.size == 0 or given.dtype.kind not in "iu":
        message = f"instance_map must be integers (H, W) of at least one pixel, not {given.dtype} {given.shape}"
        raise DataError(message)
    low, high = given.min(), given.max()
    if low < 0:
        raise DataError(f"instance_map holds the id {low}; use 0 for background and positive ids for nuclei")
    if high > given.size:  # ids that are codes rather than counts would make tables as long as the largest code
        ids, rank = np.unique(given, return_inverse=True)
        given = rank.reshape(given.shape) + (ids[0] > 0)
    return np.ascontiguousarray(given, dtype=np.int32)


def _checked_types(types: NDArray[Any], shape: tuple[int, ...], classes: NucleiClasses | None) -> NDArray[Any]:
    is_labels = types.ndim == 2 and types.dtype.kind in "biu"
    is_probabilities = types.ndim == 3 and types.dtype.kind == "f" and len(types) > 0
    if types.shape[-2:] != shape or not (is_labels or is_probabilities):
        expected = f"integer labels {shape} or float probabilities (C, {shape[0]}, {shape[1]})"
        raise DataError(f"nuclei_type_map must be {expected}, not {types.dtype} {types.shape}")
    if is_probabilities:
        check_finite("nuclei_type_map", types)
        num_types = len(types)
    else:
        if types.min() < UNKNOWN_TYPE:
            raise DataError(f"nuclei_type_map holds the type {types.min()}; use 0.. for types and -1 for unknown")
        num_types = int(types.max()) + 1
    if classes is not None and num_types > len(classes):
        raise DataError(f"nuclei_type_map has {num_types} types but only {len(classes)} class names; name every type")
    return types


def _checked_prob(prob: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if prob.shape != shape or prob.dtype.kind != "f":
        raise DataError(f"nucleus_prob must be floats {shape} like the instance map, not {prob.dtype} {prob.shape}")
    check_finite("nucleus_prob", prob)
    low, high = prob.min(), prob.max()
    if low < 0 or high > 1:
        raise DataError(f"nucleus_prob spans [{low:g}, {high:g}]; give probabilities in [0, 1], not logits")
    return prob


def _checked_tokens(tokens: NDArray[Any]) -> NDArray[Any]:
    if tokens.ndim != 3 or tokens.size == 0 or tokens.dtype.kind != "f":
        raise DataError(f"embedding_map must be floats (D, h, w), not {tokens.dtype} {tokens.shape}")
    check_finite("embedding_map", tokens)
    return tokens


def _outline(
    instances: IntMap, min_points: int
) -> tuple[IntMap, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the map without gaps and instances of too few points, and of the others boxes, outlines and offsets."""
    rings = outer_rings(instances)
    label = instances.reshape(-1)[rings.first]
    starts = np.flatnonzero(np.diff(label, prepend=0))
    if not len(starts):
        return instances, np.zeros((0, 4), np.int64), rings.points, rings.offsets
    bounds = ring_bounds(rings.points.astype(np.float64), rings.offsets).astype(np.int64)
    bbox = np.hstack([np.minimum.reduceat(bounds[:, :2], starts), np.maximum.reduceat(bounds[:, 2:], starts)])
    chosen = starts if len(starts) == len(label) else _largest_pieces(instances, rings.first, label)
    large = _turns_often(rings, bounds, min_points)[chosen]
    chosen, bbox = chosen[large], bbox[large]
    kept = label[chosen]
    if len(kept) < label[-1]:
        renumber = np.zeros(label[-1] + 1, np.int32)
        renumber[kept] = np.arange(1, len(kept) + 1)
        instances = renumber.take(instances)
    points, offsets = rings.points, rings.offsets
    if len(chosen) < len(label):
        points, offsets = select_rings(points, offsets, chosen)
    return instances, bbox, *cut_where_touching(points, offsets, rings.touching[chosen])


def _largest_pieces(instances: IntMap, first: NDArray[np.int64], label: IntMap) -> NDArray[np.int64]:
    """Return the row of the largest piece of each label, the first in reading order among equals.

    Args:
        instances: The map.
        first: ``(R,)`` flat position of the first pixel of every piece.
        label: ``(R,)`` label of every piece, ascending.
    """
    from skimage import measure  # here, for instances of several pieces are rare

    pieces = cast(Any, measure.label)(instances, background=0, connectivity=2).reshape(-1)
    order = np.lexsort((-np.bincount(pieces)[pieces[first]], label))
    return np.sort(order[np.flatnonzero(np.diff(label, prepend=0))])


def _turns_often(rings: OuterRings, bounds: NDArray[np.int64], min_points: int) -> NDArray[np.bool_]:
    """Return whether the chain of border pixels of each ring turns at enough pixels.

    Fewer than three turns have single pixels and straight lines only, which are one pixel high or wide, or slanted.
    """
    many = np.ones(len(bounds), np.bool_)
    thin = rings.touching | (bounds[:, 2:] - bounds[:, :2] == 1).any(axis=1)
    doubtful = np.flatnonzero(thin) if min_points <= MIN_CONTOUR_POINTS else np.arange(len(bounds))
    many[doubtful] = ring_lengths(border_rings(*select_rings(rings.points, rings.offsets, doubtful))[1]) >= min_points
    return many


def _typed(
    types: NDArray[Any],
    pixels: NDArray[np.intp],
    row_of: NDArray[np.int64],
    *,
    area: NDArray[np.intp],
    rule: TypeRule,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return type and ``type_prob`` of every nucleus."""
    if rule == "majority" or types.ndim == 2:
        counts = _type_counts(row_of, _types_at(types, pixels), len(area))
    else:
        planes = types.reshape(len(types), -1)
        counts = np.stack([np.bincount(row_of, plane[pixels], len(area)) for plane in planes], axis=1)
    votes = counts.copy()
    # By majority background wins only where it has no rival; by mean nowhere that a type has any probability.
    votes[counts[:, 1:].any(axis=1), 0] = 0
    chosen = votes.argmax(axis=1)
    whole = area if rule == "majority" else votes.sum(axis=1)
    return chosen.astype(np.int32), votes[np.arange(len(area)), chosen] / whole


def _types_at(types: NDArray[Any], pixels: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the type id at flat pixel positions, unknown types as background."""
    if types.ndim == 2:
        return np.maximum(types.reshape(-1)[pixels].astype(np.int64), 0)
    planes = types.reshape(len(types), -1)
    best = planes[0][pixels]
    winner = np.zeros(len(pixels), np.int64)
    for type_id, plane in enumerate(planes[1:], start=1):  # argmax along the slow axis, only where nuclei are
        value = plane[pixels]
        np.copyto(winner, type_id, where=value > best)
        np.maximum(best, value, out=best)
    return winner


def _type_counts(row_of: NDArray[np.int64], types: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Return how many pixels of every nucleus have each type, ``(N, types)``."""
    num_types = int(types.max()) + 1
    return np.bincount(row_of * num_types + types, minlength=num * num_types).reshape(num, num_types)


def nuclei_embeddings(embedding_map: ArrayLike, instance_map: IntMap, bbox: ArrayLike) -> NDArray[np.float32]:
    """Return the embedding of every nucleus of a map, as :func:`nuclei_from_instances` makes it.

    Args:
        embedding_map: ``(D, h, w)`` feature map of the image, padded at the bottom and the right to whole tokens.
        instance_map: Integers ``(H, W)``, 0 is background, nucleus ``i`` is ``i + 1``.
        bbox: ``(N, 4)`` boxes inside the image, of one pixel or more. A nucleus that has no pixel in the map, as others
            cover it, gets the mean of the tokens its box covers.

    Returns:
        ``(N, D)`` float32.

    Raises:
        DataError: If the map has the wrong shape, number type or values.

    Example:
        >>> tokens = np.arange(4.0, dtype=np.float32).reshape(1, 2, 2)
        >>> nucleus = np.zeros((16, 16), np.int32)
        >>> nucleus[7:9, 0:6] = 1
        >>> nuclei_embeddings(tokens, nucleus, [[0, 7, 6, 9]]).tolist()
        [[1.0]]
    """
    tokens = _checked_tokens(np.asarray(embedding_map))
    y, x = np.nonzero(instance_map)
    return _embedding(
        tokens, np.asarray(bbox, np.int64), instance_map.shape, (instance_map[y, x].astype(int) - 1, y, x)
    )


def _embedding(
    tokens: NDArray[Any], bbox: NDArray[np.int64], shape: tuple[int, ...], pixels: _Pixels
) -> NDArray[np.float32]:
    """Return the mean token of every nucleus, ``(N, D)``."""
    strides = _stride(shape[0], tokens.shape[1]), _stride(shape[1], tokens.shape[2])
    if max(strides) >= _WIDE:
        return _box_means(tokens, bbox, strides)
    means = _area_means(tokens, pixels, strides, len(bbox))
    hidden = np.isnan(means[:, 0])
    if hidden.any():
        means[hidden] = _box_means(tokens, bbox[hidden], strides)
    return means


def _area_means(tokens: NDArray[Any], pixels: _Pixels, strides: tuple[int, int], num: int) -> NDArray[np.float32]:
    """Return the mean of the tokens under the pixels of every nucleus, ``(N, D)``, NaN for one without pixels."""
    from scipy import sparse  # here, for it takes time to import

    row_of, y, x = pixels
    cell = (y // strides[0]) * tokens.shape[2] + x // strides[1]
    counts = sparse.csr_matrix((np.ones(len(cell), np.float32), (row_of, cell)), shape=(num, tokens[0].size))
    area = np.bincount(row_of, minlength=num).astype(np.float32)
    area[area == 0] = np.nan
    means: NDArray[np.float32] = counts @ tokens.reshape(len(tokens), -1).T.astype(np.float32) / area[:, None]
    return means


def _box_means(tokens: NDArray[Any], bbox: NDArray[np.int64], strides: tuple[int, int]) -> NDArray[np.float32]:
    """Return the mean token under every box, ``(N, D)``, from one summed-area table."""
    import cv2  # here, for its transpose goes by blocks and takes a fraction of the time

    dim, height, width = tokens.shape
    table = np.zeros((height + 1, width + 1, dim))
    flat: NDArray[np.floating[Any]] = np.asarray(
        tokens.reshape(dim, -1), np.float32 if tokens.dtype.itemsize <= 4 else np.float64
    )
    table[1:, 1:] = cv2.transpose(flat).reshape(height, width, dim)
    # Adding line to line streams through memory; cumsum along these axes is four times slower.
    for row in range(height):
        table[row + 1] += table[row]
    for column in range(width):
        table[:, column + 1] += table[:, column]
    rows, cols = strides
    x0, y0, x1, y1 = bbox[:, 0] // cols, bbox[:, 1] // rows, -(-bbox[:, 2] // cols), -(-bbox[:, 3] // rows)
    total = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    means: NDArray[np.float64] = total / ((y1 - y0) * (x1 - x0))[:, None]
    return means.astype(np.float32)


def _stride(pixels: int, tokens: int) -> int:
    """Return the pixels per token of a map whose image was padded to whole tokens: the next power of two."""
    return int(1 << (-(-pixels // tokens) - 1).bit_length())
