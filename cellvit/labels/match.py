"""Which nucleus a label means: the one it lies in, else the nearest; of an area, all whose centroid lies inside."""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cellvit.geometry.polygons import ring_lengths
from cellvit.io.detections import stem_of
from cellvit.io.nuclei import stream_nuclei
from cellvit.io.stream import NucleiStream, as_stream
from cellvit.io.valid_polygons import polygons_from_rings, valid_rings
from cellvit.labels.table import LABELS_FILE, UNMATCHED, Labels, nuclei_digest, read_labels
from cellvit.types import Nuclei

RADIUS_UM = 2.0
"""Micrometres from the outline of a nucleus within which a label beside it means it."""

RADIUS_PX = 4.0
"""The same in pixels, where the resolution is not known."""

_TABLE = "nuclei.parquet"
_EXACT = 1e-9  # the least distance that shapely takes for a limit
_BOX_SIDE = 12.0  # pixels, where no nucleus has a box


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of a geometry and a nucleus; an area may have many.

    Attributes:
        geometry: ``(M,)`` row of the geometry, ascending.
        nucleus: ``(M,)`` row of the nucleus.
        place: ``(M, 2)`` float64 ``(x, y)`` where the label stands: the point, or the centroid of a nucleus in an area.
        around: ``(M,)`` bool, whether the nucleus is one of those in an area.
        centroid: ``(N, 2)`` of all nuclei.
        type: ``(N,)`` class ids of all nuclei.
        side: Side of the box of a typical nucleus in pixels.
    """

    geometry: NDArray[np.int64]
    nucleus: NDArray[np.int64]
    place: NDArray[np.float64]
    around: NDArray[np.bool_]
    centroid: NDArray[np.float64]
    type: NDArray[np.int32]
    side: float


def labels_path(nuclei: Path) -> Path:
    """Return where the labels of nuclei are kept: beside the table.

    Args:
        nuclei: Folder of a slide's results, or a file of nuclei.

    Example:
        >>> labels_path(Path("a/nuclei.parquet")).as_posix(), labels_path(Path("a/roi7.parquet")).as_posix()
        ('a/labels.parquet', 'a/roi7.labels.parquet')
    """
    if nuclei.is_dir():
        return nuclei / LABELS_FILE
    stem = stem_of(nuclei)
    return nuclei.with_name(LABELS_FILE if stem == Path(_TABLE).stem else f"{stem}.{LABELS_FILE}")


def labels_of(nuclei: str | Path) -> Labels:
    """Return the labels of the nuclei of a slide, matched again where the slide was segmented anew.

    Args:
        nuclei: Folder of a slide's results, or its file of nuclei.

    Raises:
        DataError: If there are no labels or no nuclei, or a file is damaged.

    Warns:
        UserWarning: If the nuclei are others than those the labels were matched to, with how many labels lost theirs.
    """
    path = labels_path(Path(nuclei))
    labels = read_labels(path)
    found, note = with_present_nuclei(labels, stream_nuclei(nuclei, embedding=False))
    if note:
        warnings.warn(f"{str(path)!r}: {note}", stacklevel=2)
    return found


def with_present_nuclei(labels: Labels, nuclei: NucleiStream, *, digest: str | None = None) -> tuple[Labels, str]:
    """Return labels matched again if the nuclei changed, and what to say of it; else as they are, and nothing.

    Args:
        labels: Labels, matched to some nuclei or none.
        nuclei: The nuclei as they are now.
        digest: Their :func:`~cellvit.labels.table.nuclei_digest`, if it is known.
    """
    if not len(labels):
        return labels, ""
    if digest is None:
        digest = nuclei_digest(np.concatenate([np.zeros((0, 2)), *(chunk.centroid for chunk in nuclei)]))
    if digest == labels.matched_to:
        return labels, ""
    found = rematch(labels, nuclei)
    had, has = (int((one.nucleus != UNMATCHED).sum()) for one in (labels, found))
    lost = int(((labels.nucleus != UNMATCHED) & (found.nucleus == UNMATCHED)).sum())
    before, after = _contradictions(labels), _contradictions(found)
    note = f"the nuclei are others than when the labels were given; {has:,} of {had:,} labels were matched again"
    note += f", {lost:,} have no nucleus any more" if lost else ""
    merged = max(after - before, 0)
    note += f", {merged:,} contradict another one on the same nucleus, where the later one counts" if merged else ""
    return found, note


def rematch(labels: Labels, nuclei: NucleiStream | Nuclei, *, radius: float = RADIUS_PX) -> Labels:
    """Return labels with the rows of other nuclei, found by where the labels stand.

    Args:
        labels: Labels of the same slide.
        nuclei: Its nuclei now; all their columns but outlines, boxes and centroids may be left out.
        radius: Pixels from an outline within which a label beside it means it.

    Returns:
        The same rows; a label without a nucleus has -1.
    """
    points = shapely.points(np.stack([labels.x, labels.y], axis=1))
    found = match(points, nuclei, radius=radius)
    rows = np.full(len(labels), UNMATCHED, np.int64)
    rows[found.geometry] = found.nucleus
    return replace(labels, nucleus=rows, matched_to=nuclei_digest(found.centroid))


def match(
    geometry: NDArray[Any],
    nuclei: NucleiStream | Nuclei,
    *,
    radius: float,
    single: NDArray[np.bool_] | None = None,
) -> Matches:
    """Match geometries to nuclei.

    A point means the nucleus that it lies in, of several the one with the nearest centroid, else the one whose outline
    is nearest. An area means all nuclei whose centroid lies inside; one with none is taken as a point inside of it.
    Memory is that of a chunk of nuclei, of all centroids, and of the outlines near points.

    Args:
        geometry: ``(K,)`` shapely geometries in pixels of full resolution.
        nuclei: The nuclei.
        radius: Pixels; 0: points must lie inside.
        single: ``(K,)``, which areas outline one nucleus each; None for none. Points always mean one.
    """
    points = shapely.get_type_id(geometry) == shapely.GeometryType.POINT
    is_area = ~points if single is None else ~(points | single)
    scan = _Scan(geometry, is_area, radius)
    for chunk in as_stream(nuclei):
        scan.add(chunk)
    area, inside = scan.inside()
    alone = np.setdiff1d(np.arange(len(geometry)), area)
    one, nearest = scan.nearest(alone)
    order = np.argsort(np.concatenate([area, one]), kind="stable")
    centroid = scan.all_centroids()
    places = np.concatenate([centroid[inside], scan.places[one]])
    return Matches(
        geometry=np.concatenate([area, one])[order],
        nucleus=np.concatenate([inside, nearest])[order],
        place=places[order],
        around=np.repeat([True, False], [len(area), len(one)])[order],
        centroid=centroid,
        type=np.concatenate([np.zeros(0, np.int32), *scan.types]),
        side=scan.side(),
    )


@dataclass
class _Scan:
    """What is kept of nuclei that are read chunk by chunk."""

    geometry: NDArray[Any]
    is_area: NDArray[np.bool_]
    radius: float
    count: int = 0
    centroids: list[NDArray[np.float64]] = field(default_factory=list)
    types: list[NDArray[np.int32]] = field(default_factory=list)
    sides: list[float] = field(default_factory=list)
    pairs: list[NDArray[np.int64]] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    outlines: list[NDArray[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.areas = np.flatnonzero(self.is_area)
        self.places = places_of(self.geometry)
        self.tree = cKDTree(self.places) if len(self.places) else None
        shapely.prepare(self.geometry)

    def add(self, nuclei: Nuclei) -> None:
        """Take the next chunk in."""
        self.centroids.append(nuclei.centroid)
        self.types.append(nuclei.type)
        size = nuclei.bbox[:, 2:] - nuclei.bbox[:, :2]
        known = np.flatnonzero(np.isfinite(nuclei.centroid).all(axis=1))
        if self.tree is not None and len(known):
            self.sides.append(float(np.nanmedian(size.max(axis=1))))
            centres = shapely.points(nuclei.centroid[known])
            if len(self.areas):
                area, row = shapely.STRtree(centres).query(self.geometry[self.areas], predicate="contains")
                self.pairs.append(np.stack([self.areas[area], known[row] + self.count]))
            reach = np.nan_to_num(np.hypot(*size[known].T)) + self.radius + 1
            distance, _ = self.tree.query(nuclei.centroid[known], distance_upper_bound=float(reach.max()))
            near = known[distance <= reach]
            self.rows.append(near + self.count)
            self.outlines.append(_outlines(nuclei, near))
        self.count += len(nuclei)

    def all_centroids(self) -> NDArray[np.float64]:
        return np.concatenate([np.zeros((0, 2)), *self.centroids])

    def side(self) -> float:
        return float(np.median(self.sides)) if self.sides else _BOX_SIDE

    def inside(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of areas and of the nuclei in them."""
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *self.pairs], axis=1)
        return pairs[0], pairs[1]

    def nearest(self, which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of those geometries of some that mean one nucleus, and of that nucleus."""
        rows = np.concatenate([np.zeros(0, np.int64), *self.rows])
        if not len(rows) or not len(which):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        tree = shapely.STRtree(np.concatenate(self.outlines))
        (source, target), distance = tree.query_nearest(
            shapely.points(self.places[which]), max_distance=max(self.radius, _EXACT), return_distance=True
        )
        centre = self.all_centroids()[rows[target]] - self.places[which][source]
        order = np.lexsort((rows[target], np.hypot(*centre.T), distance, source))
        _, first = np.unique(source[order], return_index=True)
        chosen = order[first]
        return which[source[chosen]], rows[target[chosen]]


def places_of(geometry: NDArray[Any]) -> NDArray[np.float64]:
    """Return a point of each geometry ``(K, 2)``: its centroid, or where that lies outside, a point inside.

    Args:
        geometry: ``(K,)`` shapely geometries.
    """
    centre = shapely.centroid(geometry)
    centre = np.where(shapely.intersects(geometry, centre), centre, shapely.point_on_surface(geometry))
    return np.stack([shapely.get_x(centre), shapely.get_y(centre)], axis=1)


def _outlines(nuclei: Nuclei, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return the outlines of some nuclei as polygons; of one without an outline the centroid."""
    chosen = nuclei.select(rows)
    shapes = shapely.points(chosen.centroid)
    drawn = np.flatnonzero(ring_lengths(chosen.contour_offsets) > 0)
    shapes[drawn] = polygons_from_rings(*valid_rings(chosen.select(drawn)))
    return np.asarray(shapes, object)


def _contradictions(labels: Labels) -> int:
    """Return on how many nuclei labels stand that name different classes."""
    known = labels.nucleus != UNMATCHED
    names, codes = np.unique(labels.class_name[known].astype(str), return_inverse=True)
    pairs = np.unique(labels.nucleus[known] * max(len(names), 1) + codes) // max(len(names), 1)
    return int((np.unique(pairs, return_counts=True)[1] > 1).sum())
