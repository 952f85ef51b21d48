"""Joining the nuclei of overlapping tiles so that each nucleus is kept once and whole.

A nucleus belongs to the tile whose core holds its centroid. That rule alone doubles or loses a nucleus where two
tiles see it differently, and keeps one that its own tile cuts; so everything found in the bands that tiles share
is compared by overlap. The result depends on the set of nuclei only, not on the order of the tiles.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.slide.tiling import Tile, TileGrid
from cellvit.types import Nuclei

CUT_MARGIN = 1.0
"""Pixels: a nucleus that ends this close to its tile's edge may go on beyond it."""

SAME_NUCLEUS_SHARE = 0.1
"""Two nuclei of different tiles are one if their intersection exceeds this share of the smaller."""

JOIN_IOU = 0.5
"""Two pieces of a nucleus longer than the overlap are joined if they agree this well where both tiles see."""

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TileNuclei:
    """Nuclei in coordinates of the image, each with what its tile knows about it.

    Attributes:
        nuclei: The table; coordinates are pixels of the image.
        tile: ``(N,)`` number of the tile each was found in.
        owned: ``(N,)`` whether the tile's core holds the centroid.
        cut: ``(N,)`` whether it reaches an edge of its tile beyond which the image goes on.
        shared: ``(N,)`` whether it reaches into a part that another tile covers too; the others are final.
    """

    nuclei: Nuclei
    tile: Rows
    owned: Mask
    cut: Mask
    shared: Mask

    @classmethod
    def place(cls, grid: TileGrid, index: int, nuclei: Nuclei) -> "TileNuclei":
        """Return the nuclei of one tile, moved from the tile's coordinates to the image's."""
        tile = grid.tile(index)
        placed = nuclei.transform(shift=(tile.x, tile.y))
        return cls(
            nuclei=placed,
            tile=np.full(len(placed), index, dtype=np.int64),
            owned=grid.owner(placed.centroid) == index,
            cut=grid.cut(index, placed.bbox, margin=CUT_MARGIN),
            shared=grid.shared(index, placed.bbox),
        )

    @classmethod
    def concatenate(cls, parts: "list[TileNuclei]") -> "TileNuclei":
        """Return the nuclei of all parts, in order; at least one part is needed."""
        columns = ("tile", "owned", "cut", "shared")
        nuclei = Nuclei.concatenate([part.nuclei for part in parts])
        return cls(nuclei, *(np.concatenate([getattr(part, name) for part in parts]) for name in columns))

    def select(self, rows: Rows) -> "TileNuclei":
        """Return the nuclei of integer rows."""
        return TileNuclei(
            self.nuclei.select(rows), self.tile[rows], self.owned[rows], self.cut[rows], self.shared[rows]
        )


def merge_tiles(grid: TileGrid, found: Iterable[tuple[int, Nuclei]]) -> Nuclei:
    """Join the nuclei of all tiles of an image.

    Args:
        grid: The tiles.
        found: For each tile its number and its nuclei in pixels of the tile; at least one, in any order.

    Returns:
        Every nucleus once, in pixels of the image, sorted by tile and then by the tile's own order; ``label`` is
        1..N in that order.
    """
    parts = sorted(found, key=lambda part: part[0])
    placed = TileNuclei.concatenate([TileNuclei.place(grid, index, nuclei) for index, nuclei in parts])
    kept = placed.nuclei if len(grid) == 1 else resolve_seams(grid, placed)
    return replace(kept, label=np.arange(1, len(kept) + 1, dtype=np.int32))


def resolve_seams(grid: TileGrid, found: TileNuclei) -> Nuclei:
    """Return each nucleus once.

    Nuclei that no other tile can have seen are kept as they are. Of the others, whole ones come before cut ones,
    owned ones before those whose centre lies in another tile's core, larger before smaller; one is kept unless it
    overlaps a nucleus of another tile that was kept before it. So a nucleus that both tiles assign to each other
    is still kept once. A piece that is cut and not owned is never kept on its own: it completes a piece on the
    other side of the seam that is cut too, or is dropped.

    Args:
        grid: The tiles.
        found: Nuclei of neighbouring tiles; all tiles that share a nucleus must be present.

    Returns:
        The nuclei in the order given, overlapping across tiles by at most ``SAME_NUCLEUS_SHARE`` of the smaller.
    """
    rows = np.flatnonzero(found.shared)
    overlaps = _Overlaps.find(found.select(rows))
    kept, joined = _decide(grid, overlaps)
    finalised = _whole(overlaps.seam.nuclei, kept, joined)
    final = np.flatnonzero(~found.shared)
    order = np.argsort(np.concatenate([final, rows[kept]]), kind="stable")
    return Nuclei.concatenate([found.nuclei.select(final), finalised]).select(order)


@dataclass(frozen=True)
class _Join:
    """One nucleus of several pieces.

    Attributes:
        pieces: Their rows, first the one whose place it takes.
        polygons: ``(K,)`` their outlines.
        areas: ``(K,)`` areas of the outlines.
    """

    pieces: list[int]
    polygons: NDArray[np.object_]
    areas: NDArray[np.float64]


@dataclass(frozen=True)
class SeamStep:
    """What a :class:`StreamingStitcher` decided on when tiles came, to be done again without comparing outlines.

    Rows count in the pool: what was held back before, and then what came and is shared.

    Attributes:
        held: Rows that wait for a later tile.
        kept: Rows that are final.
        joined: The place among ``kept`` of those that are made whole, and how.
        order: Sorts those that are kept and then those that came and are not shared by tile.
    """

    held: Rows
    kept: Rows
    joined: Mapping[int, _Join]
    order: Rows


class SeamReplay:
    """Joins the same nuclei once more, now with columns that the first time were left out.

    The nuclei of all steps are given in the same order as to the :class:`StreamingStitcher`.
    """

    def __init__(self) -> None:
        self._held: Nuclei | None = None

    def add(self, found: TileNuclei, step: SeamStep) -> Nuclei:
        """Return the nuclei that were final at a step."""
        pool = found.nuclei.select(np.flatnonzero(found.shared))
        pool = pool if self._held is None else Nuclei.concatenate([self._held, pool])
        self._held = pool.select(step.held)
        inner = found.nuclei.select(np.flatnonzero(~found.shared))
        return Nuclei.concatenate([_whole(pool, step.kept, step.joined), inner]).select(step.order)


class StreamingStitcher:
    """Joins tiles that arrive one after the other, and holds only what a later tile can still change.

    Nuclei of different tiles that overlap form groups. A group is final as soon as none of its members reaches into
    a tile that is still to come, so the result is that of :func:`resolve_seams` on all tiles together.

    Args:
        grid: The tiles.
    """

    def __init__(self, grid: TileGrid) -> None:
        self._grid = grid
        self._done = 0
        self._open: TileNuclei | None = None

    def add(self, found: TileNuclei, *, done: int) -> Nuclei:
        """Return the nuclei that are final now.

        Args:
            found: Nuclei of tiles with numbers from the previous ``done`` on.
            done: All tiles below this number have been given, or are never going to be.

        Returns:
            Sorted by tile; nuclei that were held back from earlier tiles come first.
        """
        return self.step(found, done=done)[1]

    def step(self, found: TileNuclei, *, done: int) -> tuple[SeamStep, Nuclei]:
        """Return what :meth:`add` returns, and before it what was decided.

        Args:
            found: Nuclei of tiles with numbers from the previous ``done`` on.
            done: All tiles below this number have been given, or are never going to be.
        """
        if done < self._done:
            raise ValueError(f"tiles below {self._done} are done; {done} would take some back")
        self._done = done
        inner = np.flatnonzero(~found.shared)
        pool = found.select(np.flatnonzero(found.shared))
        pool = pool if self._open is None else TileNuclei.concatenate([self._open, pool])
        overlaps = _Overlaps.find(pool)
        still_open = overlaps.groups_with(self._grid.reaches(done, pool.nuclei.bbox))
        held, closed = np.flatnonzero(still_open), np.flatnonzero(~still_open)
        self._open = pool.select(held)
        rows, joins = _decide(self._grid, overlaps.select(closed))
        kept = closed[rows]
        joined = {at: replace(join, pieces=closed[join.pieces].tolist()) for at, join in joins.items()}
        order = np.argsort(np.concatenate([pool.tile[kept], found.tile[inner]]), kind="stable")
        final = Nuclei.concatenate([_whole(pool.nuclei, kept, joined), found.nuclei.select(inner)]).select(order)
        return SeamStep(held, kept, joined, order), final

    @property
    def held(self) -> int:
        """Return the number of nuclei that wait for a later tile."""
        return 0 if self._open is None else len(self._open.tile)


@dataclass(frozen=True)
class _Overlaps:
    """Nuclei near seams, and which of them are the same nucleus.

    Attributes:
        seam: The nuclei.
        polygons: ``(N,)`` their outlines.
        areas: ``(N,)`` areas of the outlines.
        pairs: ``(2, K)`` rows of different tiles that overlap enough to be one nucleus, both ways.
    """

    seam: TileNuclei
    polygons: NDArray[np.object_]
    areas: NDArray[np.float64]
    pairs: Rows

    @classmethod
    def find(cls, seam: TileNuclei) -> "_Overlaps":
        polygons = _polygons(seam.nuclei)
        areas = shapely.area(polygons)
        return cls(seam, polygons, areas, _same_nucleus(polygons, areas, seam.tile))

    def groups_with(self, member: Mask) -> Mask:
        """Return which rows belong to a group of overlapping nuclei that has one of the given members."""
        from scipy.sparse import csr_matrix  # here, for processes that only write files import this module too
        from scipy.sparse.csgraph import connected_components

        count = len(member)
        graph = csr_matrix((np.ones(self.pairs.shape[1], dtype=bool), tuple(self.pairs)), shape=(count, count))
        groups = connected_components(graph, directed=False)[1]
        return np.asarray(np.isin(groups, np.unique(groups[member])), dtype=bool)

    def select(self, rows: Rows) -> "_Overlaps":
        """Return some of the rows; both of a pair or none."""
        place = np.full(len(self.areas), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        pairs = place[self.pairs]
        return _Overlaps(self.seam.select(rows), self.polygons[rows], self.areas[rows], pairs[:, (pairs >= 0).all(0)])


def _decide(grid: TileGrid, overlaps: _Overlaps) -> tuple[Rows, dict[int, _Join]]:
    """Return the rows that are kept, and which of these, by their place among them, are made whole and how."""
    seam, areas, pairs = overlaps.seam, overlaps.areas, overlaps.pairs
    keep = _keep_first(_priority(seam, areas), pairs, seam.owned | ~seam.cut)
    kept = np.flatnonzero(keep)
    joined = {}
    for row, pieces in _pieces_to_join(grid, seam, overlaps.polygons, pairs, keep).items():
        rows = [row, *pieces]
        joined[int(np.searchsorted(kept, row))] = _Join(rows, overlaps.polygons[rows], areas[rows])
    return kept, joined


def _whole(nuclei: Nuclei, kept: Rows, joined: Mapping[int, _Join]) -> Nuclei:
    """Return the nuclei of some rows, cut ones made whole."""
    final = nuclei.select(kept)
    if not joined:
        return final
    order = np.arange(len(kept))
    order[list(joined)] = len(kept) + np.arange(len(joined))
    return Nuclei.concatenate([final, *(_join(nuclei, join) for join in joined.values())]).select(order)


def _polygons(nuclei: Nuclei) -> NDArray[np.object_]:
    """Return the outlines as valid polygons; of a nucleus without one its box."""
    lengths = np.diff(nuclei.contour_offsets)
    polygons = shapely.box(*nuclei.bbox.T)
    drawn = np.flatnonzero(lengths >= 3)
    if len(drawn):
        points = nuclei.select(drawn).contour_points
        rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(drawn)), lengths[drawn]))
        outlines = shapely.polygons(rings)
        invalid = ~shapely.is_valid(outlines)
        outlines[invalid] = shapely.make_valid(outlines[invalid])
        polygons[drawn] = outlines
    return np.asarray(polygons, dtype=object)


def _same_nucleus(polygons: NDArray[np.object_], areas: NDArray[np.float64], tile: Rows) -> Rows:
    """Return the pairs ``(2, K)`` of rows of different tiles that overlap enough to be one nucleus, both ways."""
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    once = (first < second) & (tile[first] != tile[second])
    first, second = first[once], second[once]
    common = shapely.area(shapely.intersection(polygons[first], polygons[second]))
    same = common > SAME_NUCLEUS_SHARE * np.minimum(areas[first], areas[second])
    one_way = np.stack([first[same], second[same]])
    return np.concatenate([one_way, one_way[::-1]], axis=1)


def _priority(seam: TileNuclei, areas: NDArray[np.float64]) -> Rows:
    """Return all rows, best first; ties are broken by place, so the order of the tiles does not matter."""
    x, y = seam.nuclei.centroid.T
    return np.lexsort((seam.tile, x, y, -areas, ~seam.owned, seam.cut)).astype(np.int64)


def _keep_first(order: Rows, pairs: Rows, eligible: Mask) -> Mask:
    """Return which rows are kept when each kept row excludes those paired with it, in the given order."""
    from scipy.sparse import csr_matrix

    count = len(order)
    graph = csr_matrix((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(count, count))
    contested = np.diff(graph.indptr) > 0
    keep: Mask = eligible & ~contested
    excluded = np.zeros(count, dtype=bool)
    for row in order[contested[order] & eligible[order]]:
        if not excluded[row]:
            keep[row] = True
            excluded[graph.indices[graph.indptr[row] : graph.indptr[row + 1]]] = True
    return keep


def _pieces_to_join(
    grid: TileGrid, seam: TileNuclei, polygons: NDArray[np.object_], pairs: Rows, keep: Mask
) -> dict[int, list[int]]:
    """Return, for kept rows that are cut, the dropped cut rows that are the rest of the same nucleus."""
    winners, losers = pairs[:, keep[pairs[0]] & ~keep[pairs[1]]]
    rivals = np.bincount(losers, minlength=len(keep))
    both_cut = seam.cut[winners] & seam.cut[losers] & (rivals[losers] == 1)
    joined: dict[int, list[int]] = {}
    for winner, loser in zip(winners[both_cut].tolist(), losers[both_cut].tolist(), strict=True):
        common = _box(grid.tile(int(seam.tile[winner]))).intersection(_box(grid.tile(int(seam.tile[loser]))))
        a, b = polygons[winner].intersection(common), polygons[loser].intersection(common)
        if a.intersection(b).area >= JOIN_IOU * a.union(b).area:
            joined.setdefault(winner, []).append(loser)
    return joined


def _box(tile: Tile) -> shapely.Polygon:
    return shapely.box(tile.x, tile.y, tile.x + tile.width, tile.y + tile.height)


def _join(nuclei: Nuclei, join: _Join) -> Nuclei:
    """Return one nucleus from its pieces: outlines united, type of the largest, embedding averaged by area."""
    parts = nuclei.select(np.array(join.pieces))
    weights = join.areas
    largest = parts.select(np.array([int(weights.argmax())]))
    united = shapely.union_all(join.polygons)
    whole = max(shapely.get_parts(shapely.get_parts(united)), key=lambda part: (part.area, part.bounds))
    ring = shapely.get_coordinates(whole.simplify(0).exterior)[:-1]
    embedding = None
    if parts.embedding is not None:
        embedding = np.average(parts.embedding, axis=0, weights=weights)[None].astype(np.float32)
    return replace(
        largest,
        centroid=np.array([[whole.centroid.x, whole.centroid.y]]),
        bbox=np.concatenate([parts.bbox[:, :2].min(axis=0), parts.bbox[:, 2:].max(axis=0)])[None],
        contour_offsets=np.array([0, len(ring)], dtype=np.int64),
        contour_points=ring,
        embedding=embedding,
        measurements={name: np.full(1, np.nan, np.float32) for name in parts.measurements},  # of the whole: not known
    )
