"""Which labels are held out together: whole slides, or parts of the one slide there is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
"""Parts in turn held out; fewer where there are fewer slides, or labels of a type."""

BLOCKS = 10
"""Parts of a single slide, side by side, that stand in for slides."""

Split = tuple[NDArray[np.int64], NDArray[np.int64]]


def choose_folds(codes: NDArray[np.int64], groups: NDArray[Any] | None, *, seed: int) -> list[Split]:
    """Return rows to fit on and rows that are held out, for every fold.

    A fold that would leave a type without a label to learn from is left out; its rows are then held out nowhere.

    Args:
        codes: ``(N,)`` numbers of the types.
        groups: ``(N,)`` of slide or image, which are not torn apart; None has none, and labels are shuffled.
        seed: Of the shuffling.

    Returns:
        At most :data:`FOLDS`; none if there is nothing to hold out.
    """
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    fewest = int(np.bincount(codes).min())
    number = min(FOLDS, fewest if groups is None else len(np.unique(groups)))
    if number < 2:
        return []
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        # a type with fewer labels than folds; it is in few of them, which the report shows
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        found = list(splitter(number, shuffle=True, random_state=seed).split(np.zeros(len(codes)), codes, groups))
    types = len(np.unique(codes))
    return [(fit, held) for fit, held in found if len(held) and len(np.unique(codes[fit])) == types]


def out_of_fold(estimator: Any, x: NDArray[Any], codes: NDArray[np.int64], folds: Sequence[Split]) -> NDArray[Any]:
    """Return the probabilities that labels get from a classifier that has not seen them, ``(N, K)``.

    Args:
        estimator: Is cloned and fitted on every fold.
        x: ``(N, D)`` features.
        codes: ``(N,)`` numbers of the types, from 0 without gaps.
        folds: From :func:`choose_folds`. Rows that none holds out get the share of each type among all.
    """
    from sklearn.base import clone

    prior = np.bincount(codes) / len(codes)
    found = np.tile(prior, (len(codes), 1))
    for fit, held in folds:
        found[held] = clone(estimator).fit(x[fit], codes[fit]).predict_proba(x[held])
    return found


def blocks_of(centroid: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return a part of the slide for each of its labels, ``(N,)``: strips with as many labels, each cut across.

    Args:
        centroid: ``(N, 2)``.

    Example:
        >>> blocks_of(np.array([[0.0, 0], [1, 0], [0, 9], [1, 9]]) * 100).tolist()
        [0, 2, 1, 3]
    """
    number = min(BLOCKS, len(centroid))
    strips = max(1, int(np.sqrt(number)))
    strip = np.argsort(np.argsort(centroid[:, 0], kind="stable")) * strips // max(1, len(centroid))
    across = max(1, number // strips)
    found = np.zeros(len(centroid), np.int64)
    for k in range(strips):
        rows = np.flatnonzero(strip == k)
        rank = np.argsort(np.argsort(centroid[rows, 1], kind="stable"))
        found[rows] = k * across + rank * across // max(1, len(rows))
    return found
