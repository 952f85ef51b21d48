"""What a classifier is told of a nucleus: its embedding, measurements, and the embeddings around it, each by name."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError, did_you_mean
from cellvit.measurement.base import MEASUREMENTS
from cellvit.measurement.pixels import LabelledPixels
from cellvit.types import Nuclei

EMBEDDING, NEIGHBORHOOD = "embedding", "neighborhood"

NEIGHBORS, REACH_UM = 32, 50.0
"""The neighbourhood of a nucleus: so many of the nearest others, and no further than this, from centre to centre."""

Floats = NDArray[np.floating[Any]]


def uses_embedding(features: Sequence[str]) -> bool:
    """Tell whether features are made of embeddings."""
    return EMBEDDING in features or NEIGHBORHOOD in features


def measured_columns(features: Sequence[str], available: Iterable[str], *, source: str) -> list[str]:
    """Return the measurements that features stand for, in order.

    Args:
        features: ``"embedding"``, ``"neighborhood"``, a kind of measurement such as ``"shape"`` or ``"stain"``, or the
            name of one measurement such as ``"area_um2"``.
        available: Names of what was measured.
        source: Where, for messages.

    Raises:
        ConfigError: If there is no feature, or one of an unknown name.
        DataError: If a kind of measurement was not made.
    """
    if isinstance(features, str) or not features:
        raise ConfigError(f"features {features!r} are none; give a list of names, such as features=['embedding']")
    known, found = list(available), list[str]()
    for name in features:
        if name in (EMBEDDING, NEIGHBORHOOD):
            continue
        columns = _columns_of(name) if name in MEASUREMENTS else [(name,)]
        chosen = next((names for names in columns if set(names) <= set(known)), None)
        if chosen is None and name in MEASUREMENTS:
            raise DataError(
                f"{source} lacks measurements of kind {name!r}; measure them with `cellvit measure`, or leave it out"
            )
        if chosen is None:
            choices = [EMBEDDING, NEIGHBORHOOD, *MEASUREMENTS.names(), *known]
            raise ConfigError(
                f"no feature {name!r} in {source}; {did_you_mean(name, choices)}choose from {EMBEDDING}, "
                f"{NEIGHBORHOOD}, {', '.join(MEASUREMENTS.names())}, or a measurement of the table"
            )
        found += chosen
    return list(dict.fromkeys(found))


def _columns_of(kind: str) -> list[tuple[str, ...]]:
    """Return the names of the columns of a kind of measurement, in microns and in pixels."""
    nothing = np.zeros((1, 1), np.int32), np.zeros((1, 1, 3), np.uint8)
    measure = MEASUREMENTS.get(kind)()
    return [tuple(measure(LabelledPixels(*nothing, 0, mpp))) for mpp in ((1.0, 1.0), None)]


def assemble(nuclei: Nuclei, features: Sequence[str], around: Floats | None = None, *, source: str) -> Floats:
    """Return the features of nuclei as a matrix.

    Args:
        nuclei: The nuclei.
        features: Their names, see :func:`measured_columns`.
        around: ``(N, D)`` from :func:`neighborhood_means`; None computes it among these nuclei.
        source: Where they are from, for messages.

    Returns:
        ``(N, F)`` float32: embeddings, those of the neighbourhood, measurements. NaN where something is not known.

    Raises:
        DataError: If the nuclei lack embeddings or measurements.
        ConfigError: If a name is unknown.
    """
    columns = measured_columns(features, nuclei.measurements, source=source)
    parts: list[Floats] = []
    if uses_embedding(features) and nuclei.embedding is None:
        raise no_embeddings(source)
    if EMBEDDING in features and nuclei.embedding is not None:
        parts.append(nuclei.embedding)
    if NEIGHBORHOOD in features and nuclei.embedding is not None:
        rows = np.arange(len(nuclei))
        parts.append(neighborhood_means(nuclei.embedding, neighbors(nuclei, rows), rows) if around is None else around)
    parts += [np.asarray(nuclei.measurements[name], np.float32)[:, None] for name in columns]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def embedded_columns(nuclei: Nuclei, features: Sequence[str]) -> int:
    """Return how many of the features of :func:`assemble`, the first ones, are of embeddings."""
    parts = (EMBEDDING in features) + (NEIGHBORHOOD in features)
    return parts * (0 if nuclei.embedding is None else nuclei.embedding.shape[1])


def no_embeddings(source: str) -> DataError:
    """Return the error of a table without embeddings."""
    return DataError(
        f"{source} holds no embeddings, as with embeddings=False; segment it again with them, or train and apply on "
        "measurements alone: features=['shape', 'stain']"
    )


def neighbors(nuclei: Nuclei, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the nearest other nuclei, ``(R, NEIGHBORS)``; ``N`` stands for none within reach.

    Args:
        nuclei: All nuclei of an image or slide; only centres and resolution are used.
        rows: ``(R,)`` whose neighbours are asked for.

    Raises:
        DataError: If the resolution is not known.
    """
    from scipy.spatial import KDTree

    if nuclei.mpp is None:
        raise DataError(
            "the resolution of these nuclei is not known, and a neighbourhood is in microns; state it: "
            "dataclasses.replace(nuclei, mpp=0.25)"
        )
    if not len(nuclei):
        return np.zeros((0, NEIGHBORS), np.int64)
    points = np.nan_to_num(nuclei.centroid * nuclei.mpp, nan=-1e9)
    tree = KDTree(points)
    found = tree.query(points[rows], k=NEIGHBORS + 1, distance_upper_bound=REACH_UM, workers=-1)[1]
    # a nucleus is its own nearest one, but for others at the very same place
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True
    return np.asarray(found[~own].reshape(len(rows), NEIGHBORS), np.int64)


def neighborhood_means(embedding: Floats, found: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean embedding of the neighbours of nuclei; its own embedding for one that has none.

    Args:
        embedding: ``(N, D)`` of all nuclei; may lie on the disk.
        found: ``(R, K)`` from :func:`neighbors`.
        rows: ``(R,)`` the nuclei.

    Returns:
        ``(R, D)``.
    """
    count = len(embedding)
    total = np.zeros((len(rows), embedding.shape[1]), np.float32)
    for column in found.T:
        is_there = column < count
        total[is_there] += embedding[column[is_there]]
    number = (found < count).sum(axis=1, keepdims=True)
    return np.where(number > 0, total / np.maximum(number, 1), embedding[rows]).astype(np.float32)
