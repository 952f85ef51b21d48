"""Why labels and nuclei do not meet: another frame, another unit, another slide."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cellvit.errors import DataError
from cellvit.labels.match import Matches, places_of

_SAMPLE = 2_000  # labels that are tried in another frame
_LEVELS = (2.0, 4.0, 8.0, 16.0, 32.0)
_ENOUGH = 10  # labels; of fewer, chance puts many on nuclei
_CONVINCING = 0.75  # of the labels would lie on nuclei
_TIMES = 1.4  # as many as do
_FEW = 0.6  # in dense tissue, four labels of ten lie on nuclei by chance
_WIDE = 4  # times the side of a nucleus: an area around many says little about the frame


def check_frame(
    geometry: NDArray[Any],
    found: Matches,
    *,
    mpp: float | None,
    facts: Mapping[str, Any],
    stated: bool = False,
) -> tuple[str, ...]:
    """Return what to say where few labels lie on nuclei.

    Args:
        geometry: ``(K,)`` shapely geometries of labels, as they were taken.
        found: What they were matched to.
        mpp: Micrometres per pixel, None if unknown.
        facts: What the file of the nuclei says of them.
        stated: Whether the user states the frame; then only labels that meet no nucleus at all are refused.

    Raises:
        DataError: If no label meets a nucleus, or most would in another frame.
    """
    met, count = len(np.unique(found.geometry)), len(geometry)
    bounds = shapely.bounds(geometry)
    small = np.ptp(bounds.reshape(-1, 2, 2), axis=1).max(axis=1) <= _WIDE * found.side
    places = places_of(geometry[small] if small.any() else geometry)
    known = found.centroid[np.isfinite(found.centroid).all(axis=1)]
    if not len(known):
        raise DataError(f"none of {count:,} labels meets a nucleus: there are no nuclei; segment the slide first")
    tree, tried = cKDTree(known), places[:: max(1, len(places) // _SAMPLE)]
    share = _share(tree, tried, found.side)
    others = {text: _share(tree, moved, found.side) for text, moved in _others(tried, mpp, facts).items()}
    best = max(others, key=lambda text: others[text])
    convincing = others[best] >= max(_CONVINCING, _TIMES * share) and (not met or len(tried) >= _ENOUGH)
    spans = f"labels span {_spans(places)}, nuclei {_spans(known)}"
    if convincing:
        spans += f"; {best}, {others[best]:.0%} of them would lie on nuclei"
    else:
        spans += ": is it the same slide, in pixels of its full resolution?"
    if not met:
        raise DataError(f"none of {count:,} labels meets a nucleus: {spans}")
    if share >= _FEW or not small.any():
        return ()
    if convincing and not stated:
        raise DataError(f"only {share:.0%} of the labels lie on nuclei: {spans}; pass unit='px' if they are right")
    return (f"only {share:.0%} of the labels lie on nuclei: {spans}",)


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


def _spans(places: NDArray[np.float64]) -> str:
    (left, top), (right, bottom) = places.min(axis=0), places.max(axis=0)
    return f"x {left:,.0f} to {right:,.0f}, y {top:,.0f} to {bottom:,.0f}"
