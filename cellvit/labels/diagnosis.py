"""Why labels and nuclei do not meet: another frame, another unit, another slide."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_SAMPLE = 2_000  # labels that are tried in another frame
_LEVELS = (2.0, 4.0, 8.0, 16.0, 32.0)
_CONVINCING = 0.5  # of the labels would meet a nucleus


def likely_reasons(
    places: NDArray[np.float64],
    centroid: NDArray[np.float64],
    *,
    side: float,
    mpp: float | None,
    facts: Mapping[str, Any],
) -> str:
    """Return where labels and nuclei lie, and in which other frame or unit most labels would lie on nuclei.

    Args:
        places: ``(K, 2)`` of labels, as they were taken.
        centroid: ``(N, 2)`` of nuclei.
        side: Side of the box of a typical nucleus in pixels.
        mpp: Micrometres per pixel, None if unknown.
        facts: What the file of the nuclei says of them.
    """
    centroid = centroid[np.isfinite(centroid).all(axis=1)]
    spans = f"labels span x {_span(places[:, 0])}, y {_span(places[:, 1])}, "
    if not len(centroid):
        return spans + "and there are no nuclei"
    spans += f"nuclei x {_span(centroid[:, 0])}, y {_span(centroid[:, 1])}"
    step = max(1, len(places) // _SAMPLE)
    tree, tried = cKDTree(centroid), places[::step]
    shares = {text: _share(tree, moved, side) for text, moved in _others(tried, mpp, facts).items()}
    best = max(shares, key=lambda text: shares[text])
    if shares[best] < max(_CONVINCING, 2 * _share(tree, tried, side)):
        return f"{spans}: is it the same slide, in pixels of its full resolution?"
    return f"{spans}; {best}, {shares[best]:.0%} of them would lie on nuclei"


def _others(places: NDArray[np.float64], mpp: float | None, facts: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return places in other frames, by what to do."""
    found = (
        {"taken as micrometres (pass unit='um')": places / mpp} if mpp else {}
    )  # first: of equals it is the likely one
    found |= {f"on a level {by:g} times smaller (pass scale={by:g})": places * by for by in _LEVELS}
    if mpp:
        found[f"if they were scaled by the resolution twice (pass scale={mpp:g})"] = places * mpp
    found["with x and y exchanged (exchange the columns)"] = places[:, ::-1]
    bounds = facts.get("bounds")
    if isinstance(bounds, list) and len(bounds) == 4 and any(bounds[:2]):
        x, y = corner = np.array(bounds[:2], np.float64)
        found[f"counted from the scanned part of the slide (pass shift=({x:g},{y:g}))"] = places + corner
        found[f"counted from the corner of the slide (pass shift=({-x:g},{-y:g}))"] = places - corner
    return found


def _share(tree: Any, places: NDArray[np.float64], side: float) -> float:
    """Return the share of places that lie as near to a centroid as a place in a nucleus does."""
    return float((tree.query(places)[0] <= side / 2).mean())


def _span(values: NDArray[np.float64]) -> str:
    return f"{values.min():,.0f} to {values.max():,.0f}"
