from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.slide import stitching as seams
from cellvit.slide.stitching import SeamReplay, StreamingStitcher, TileNuclei, merge_tiles
from cellvit.slide.tiling import TileGrid
from cellvit.types import Nuclei, NucleiClasses

CLASSES = NucleiClasses(("background", "a", "b"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


def boxes_to_nuclei(boxes, *, types=None, embedding=None):
    """Return rectangular nuclei of half-open pixel boxes."""
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    x0, y0, x1, y1 = boxes.T
    corners = np.stack([x0, y0, x0, y1, x1, y1, x1, y0], axis=1).reshape(-1, 2)
    n = len(boxes)
    return Nuclei(
        centroid=(boxes[:, :2] + boxes[:, 2:]) / 2,
        bbox=boxes,
        type=np.asarray([1] * n if types is None else types, np.int32),
        type_prob=np.ones(n, np.float32),
        contour_offsets=np.arange(n + 1, dtype=np.int64) * 4,
        contour_points=corners,
        label=np.arange(1, n + 1, dtype=np.int32),
        embedding=None if embedding is None else np.asarray(embedding, np.float32),
        classes=CLASSES,
    )


def seen_by_tiles(grid, boxes):
    """Return what perfect tiles see of boxes on the whole image: their crops."""
    boxes, found = np.asarray(boxes, float).reshape(-1, 4), []
    for index in range(len(grid)):
        tile = grid.tile(index)
        corner, size = np.tile([tile.x, tile.y], 2), np.tile([tile.width, tile.height], 2)
        local = np.clip(boxes - corner, 0, size)
        found.append((index, boxes_to_nuclei(local[(local[:, 2] > local[:, 0]) & (local[:, 3] > local[:, 1])])))
    return found


def in_tiles(grid, *per_tile):
    """Return hand-made findings: boxes in image coordinates, one list per tile."""
    found = []
    for index, boxes in enumerate(per_tile):
        tile = grid.tile(index)
        local = np.asarray(boxes, float).reshape(-1, 4) - np.tile([tile.x, tile.y], 2)
        found.append((index, boxes_to_nuclei(local)))
    return found


def box_set(nuclei):
    return sorted(map(tuple, nuclei.bbox.tolist()))


TWO = TileGrid(width=180, height=100, tile_size=100, overlap=20)  # tiles [0, 100) and [80, 180), cut at 89.5


def test_a_nucleus_of_one_tile_is_kept_in_image_coordinates():
    merged = merge_tiles(TWO, in_tiles(TWO, [(10, 10, 20, 20)], [(150, 50, 160, 70)]))
    assert box_set(merged) == [(10, 10, 20, 20), (150, 50, 160, 70)]
    assert merged.centroid.tolist() == [[15, 15], [155, 60]]
    assert merged.contour(1).min(axis=0).tolist() == [150, 50]
    assert merged.label.tolist() == [1, 2]
    assert merged.classes is CLASSES


def test_a_nucleus_seen_twice_is_kept_once():
    merged = merge_tiles(TWO, in_tiles(TWO, [(82, 10, 95, 30)], [(82, 10, 95, 30)]))
    assert box_set(merged) == [(82, 10, 95, 30)]


def test_a_nucleus_both_tiles_own_is_kept_once():
    # seen a little differently, so that each tile has the centre in its own core
    merged = merge_tiles(TWO, in_tiles(TWO, [(81, 10, 97, 30)], [(83, 10, 98, 30)]))
    assert len(merged) == 1


def test_a_nucleus_both_tiles_leave_to_the_other_is_kept_once():
    merged = merge_tiles(TWO, in_tiles(TWO, [(83, 10, 98, 30)], [(81, 10, 97, 30)]))
    assert len(merged) == 1


def test_a_nucleus_only_the_neighbour_of_its_owner_sees_is_kept():
    merged = merge_tiles(TWO, in_tiles(TWO, [(91, 10, 98, 20)], []))
    assert box_set(merged) == [(91, 10, 98, 20)]


def test_the_whole_outline_wins_over_the_cut_one_although_its_centre_lies_elsewhere():
    # the first tile owns it (its part ends at 100), the second sees all of it
    merged = merge_tiles(TWO, in_tiles(TWO, [(77, 10, 100, 30)], [(82, 10, 105, 30)]))
    assert box_set(merged) == [(82, 10, 105, 30)]


def test_a_whole_outline_wins_over_a_cut_one_of_the_owner():
    left, right = in_tiles(TWO, [(77, 10, 100, 30)], [(82, 10, 105, 30)])
    lopsided = replace(right[1], centroid=np.array([[8.0, 20.0]]))  # heavy on the left: at 88 in the image
    assert box_set(merge_tiles(TWO, [left, (1, lopsided)])) == [(82, 10, 105, 30)]


def test_a_rim_of_a_nucleus_beyond_the_edge_is_dropped():
    merged = merge_tiles(TWO, in_tiles(TWO, [], [(80, 10, 84, 30)]))
    assert len(merged) == 0


def test_touching_nuclei_of_different_tiles_are_both_kept():
    merged = merge_tiles(TWO, in_tiles(TWO, [(78, 10, 89, 30)], [(88, 10, 99, 30)]))
    assert len(merged) == 2


def test_one_clump_and_its_two_halves_do_not_stay_together():
    merged = merge_tiles(TWO, in_tiles(TWO, [(84, 10, 94, 30)], [(84, 10, 89, 30), (90, 10, 95, 30)]))
    assert box_set(merged) == [(84, 10, 94, 30)]


def test_a_nucleus_longer_than_the_overlap_is_joined():
    left, right = (60, 10, 100, 20), (80, 10, 130, 20)
    first, second = in_tiles(TWO, [left], [right])
    first = (0, boxes_to_nuclei([left], types=[2], embedding=[[0.0, 4.0]]))
    second = (1, boxes_to_nuclei([(0, 10, 50, 20)], types=[1], embedding=[[9.0, 4.0]]))
    merged = merge_tiles(TWO, [first, second])
    assert box_set(merged) == [(60, 10, 130, 20)]
    outline = shapely.Polygon(merged.contour(0))
    assert outline.equals(shapely.box(60, 10, 130, 20))
    assert len(merged.contour(0)) == 4
    np.testing.assert_allclose(merged.centroid, [[95, 15]])
    assert merged.type.tolist() == [1]  # of the larger piece
    np.testing.assert_allclose(merged.embedding, [[5.0, 4.0]])  # 40 and 50 columns


def test_cut_pieces_that_disagree_are_not_joined():
    merged = merge_tiles(TWO, in_tiles(TWO, [(60, 10, 100, 20)], [(80, 17, 130, 60)]))
    assert (merged.bbox[:, 2] - merged.bbox[:, 0] <= 50).all()


def test_a_piece_that_covers_another_nucleus_too_is_not_joined():
    merged = merge_tiles(TWO, in_tiles(TWO, [(60, 10, 100, 20), (82, 21, 98, 24)], [(80, 10, 130, 24)]))
    assert box_set(merged) == [(60, 10, 100, 20), (82, 21, 98, 24)]


def test_joined_nuclei_keep_their_place_in_the_table():
    found = in_tiles(TWO, [(5, 5, 9, 9), (60, 40, 100, 50), (5, 80, 9, 90)], [(80, 40, 130, 50), (150, 5, 159, 9)])
    merged = merge_tiles(TWO, found)
    assert merged.bbox[:, 0].tolist() in ([5, 60, 5, 150], [5, 5, 60, 150])
    assert merged.label.tolist() == [1, 2, 3, 4]
    assert [len(merged.contour(i)) for i in range(4)] == [4] * 4


def test_no_nuclei_give_all_columns():
    empty = Nuclei.empty(embedding_dim=3, classes=CLASSES)
    merged = merge_tiles(TWO, [(0, empty), (1, empty)])
    assert len(merged) == 0
    assert merged.embedding.shape == (0, 3)
    assert merged.classes is CLASSES


def test_one_pixel_wide_outlines_are_compared_too():
    line = Nuclei.concatenate([boxes_to_nuclei([(85, 10, 86, 30)])])
    other = boxes_to_nuclei([(5, 10, 6, 30)])
    assert len(merge_tiles(TWO, [(0, line), (1, other)])) == 1


def test_bow_tie_outlines_do_not_stop_the_merge():
    nuclei = boxes_to_nuclei([(82, 10, 98, 30)])
    points = nuclei.contour_points[[0, 2, 1, 3]]
    twisted = replace(nuclei, contour_points=points)
    shifted = twisted.transform(shift=(-80, 0))
    assert len(merge_tiles(TWO, [(0, twisted), (1, shifted)])) == 1


@pytest.mark.parametrize("overlap", [24, 40])
@pytest.mark.parametrize("tile_size", [80, 110, 200, 1024])
def test_tiles_of_any_size_give_back_nuclei_up_to_the_overlap(tile_size, overlap):
    rng = np.random.default_rng(3)
    cells = [(x, y) for y in range(0, 420, 26) for x in range(0, 500, 26)]
    sizes = rng.integers(3, 25, (len(cells), 2))
    boxes = [(x, y, min(x + w, 510), min(y + h, 430)) for (x, y), (w, h) in zip(cells, sizes, strict=True)]
    grid = TileGrid(width=510, height=430, tile_size=tile_size, overlap=overlap)
    merged = merge_tiles(grid, seen_by_tiles(grid, boxes))
    assert box_set(merged) == sorted(boxes)


@settings(max_examples=50)
@given(st.data())
def test_long_nuclei_across_any_seam_come_back_whole(data):
    vertical = data.draw(st.booleans())
    start, length = data.draw(st.integers(0, 130)), data.draw(st.integers(8, 90))
    box = (start, 40, min(start + length, 180), 50)
    grid = TWO
    if vertical:
        box, grid = (40, box[0], 50, box[2]), TileGrid(width=100, height=180, tile_size=100, overlap=20)
    assert box_set(merge_tiles(grid, seen_by_tiles(grid, [box]))) == [box]


def random_findings(rng, grid, count):
    """Return nuclei a careless model might find: drawn ones, moved and dropped at random in each tile."""
    centers = rng.uniform(0, [grid.width, grid.height], (count, 2))
    sizes = rng.integers(4, 22, (count, 2))
    found = []
    for index in range(len(grid)):
        moved = np.rint(centers + rng.normal(0, 2, centers.shape))
        boxes = np.concatenate([moved, moved + sizes], axis=1)[rng.random(count) < 0.9]
        tile = grid.tile(index)
        corner, size = np.tile([tile.x, tile.y], 2), np.tile([tile.width, tile.height], 2)
        local = np.clip(boxes - corner, 0, size)
        found.append((index, boxes_to_nuclei(local[(local[:, 2] > local[:, 0]) & (local[:, 3] > local[:, 1])])))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_agrees_with_a_slow_loop(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    grid = TileGrid(width=200, height=170, tile_size=90, overlap=24)
    found = random_findings(rng, grid, 60)
    monkeypatch.setattr(seams, "JOIN_IOU", 2.0)  # joining is tested above
    merged = merge_tiles(grid, found)

    every = []
    for index, part in found:
        placed = TileNuclei.place(grid, index, part)
        for i in range(len(part)):
            polygon = shapely.box(*placed.nuclei.bbox[i])
            x, y = placed.nuclei.centroid[i]
            key = (placed.cut[i], not placed.owned[i], -polygon.area, y, x, index)
            every.append((key, index, polygon, placed.nuclei.bbox[i], placed.owned[i] or not placed.cut[i]))
    kept = []
    for _, index, polygon, box, eligible in sorted(every, key=lambda item: item[0]):
        rival = any(
            other != index and polygon.intersection(area).area > seams.SAME_NUCLEUS_SHARE * min(polygon.area, area.area)
            for other, area, _ in kept
        )
        if eligible and not rival:
            kept.append((index, polygon, tuple(box)))
    assert box_set(merged) == sorted(box for _, _, box in kept)


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_tiles_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    grid = TileGrid(width=260, height=200, tile_size=90, overlap=30)
    found = random_findings(rng, grid, 80)
    reference = merge_tiles(grid, found)
    for _ in range(3):
        shuffled = [found[i] for i in rng.permutation(len(found))]
        merged = merge_tiles(grid, shuffled)
        np.testing.assert_array_equal(merged.bbox, reference.bbox)
        np.testing.assert_array_equal(merged.contour_points, reference.contour_points)


@pytest.mark.parametrize("seed", range(4))
def test_nuclei_of_different_tiles_overlap_by_a_tenth_at_most(seed):
    rng = np.random.default_rng(seed)
    grid = TileGrid(width=200, height=170, tile_size=90, overlap=24)
    found = [(i, unwrap_tta(part)) for i, part in random_findings(rng, grid, 60)]
    merged = merge_tiles(grid, found)
    polygons = [shapely.Polygon(merged.contour(i)) for i in range(len(merged))]
    for i, j in combinations(range(len(merged)), 2):
        common = polygons[i].intersection(polygons[j]).area
        assert common <= seams.SAME_NUCLEUS_SHARE * min(polygons[i].area, polygons[j].area) + 1e-6


def unwrap_tta(nuclei):
    """Return nuclei of one tile without those that overlap an earlier one, as in an instance map."""
    kept = []
    for row, box in enumerate(nuclei.bbox):
        apart = all(not shapely.box(*box).intersects(shapely.box(*nuclei.bbox[other])) for other in kept)
        if apart:
            kept.append(row)
    return nuclei.select(np.array(kept, dtype=int))


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_of_tiles_gives_what_all_tiles_together_give(seed):
    rng = np.random.default_rng(seed)
    grid = TileGrid(width=400, height=330, tile_size=90, overlap=24)
    found = random_findings(rng, grid, 200)
    found = [part for part in found if rng.random() < 0.8]  # tiles without tissue are never computed
    stream, parts, held, done = StreamingStitcher(grid), [], [], 0
    while done < len(grid):
        upto = min(len(grid), done + int(rng.integers(1, 7)))
        placed = [TileNuclei.place(grid, i, part) for i, part in found if done <= i < upto]
        placed = placed or [TileNuclei.place(grid, done, boxes_to_nuclei([]))]
        parts.append(stream.add(TileNuclei.concatenate(placed), done=upto))
        held.append(stream.held)
        done = upto
    streamed, together = Nuclei.concatenate(parts), merge_tiles(grid, found)
    assert box_set(streamed) == box_set(together)
    by_box = {tuple(box): together.contour(i).tolist() for i, box in enumerate(together.bbox.tolist())}
    assert all(by_box[tuple(box)] == streamed.contour(i).tolist() for i, box in enumerate(streamed.bbox.tolist()))
    assert held[-1] == 0
    assert 0 < max(held) < len(together)


def test_a_stream_waits_only_for_tiles_that_can_still_see_a_nucleus():
    grid = TileGrid(width=180, height=180, tile_size=100, overlap=20)
    stream = StreamingStitcher(grid)
    boxes = [(10, 10, 20, 20), (70, 10, 95, 20), (10, 70, 20, 95)]
    first = stream.add(TileNuclei.place(grid, 0, boxes_to_nuclei(boxes)), done=1)
    assert box_set(first) == [boxes[0]]
    nothing = TileNuclei.place(grid, 1, boxes_to_nuclei([]))
    assert box_set(stream.add(nothing, done=2)) == [boxes[1]]  # the second tile saw nothing there
    assert box_set(stream.add(nothing, done=4)) == [boxes[2]]
    with pytest.raises(ValueError, match="take some back"):
        stream.add(nothing, done=3)


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_gives_the_same_nuclei_with_the_columns_that_were_left_out(seed):
    rng = np.random.default_rng(seed)
    grid = TileGrid(width=400, height=330, tile_size=90, overlap=24)
    # long nuclei, which are joined from pieces
    y, x = rng.integers(0, 300, 40), rng.integers(0, 300, 40)
    long = np.stack([x, y, x + 60, y + 8], axis=1)
    found = {i: part for i, part in (*random_findings(rng, grid, 150), *seen_by_tiles(grid, long)) if len(part)}
    found = {i: replace(p, embedding=rng.random((len(p), 3)).astype(np.float32)) for i, p in found.items()}
    empty = replace(boxes_to_nuclei([]), embedding=np.zeros((0, 3), np.float32))
    first, light, replay, joined = StreamingStitcher(grid), StreamingStitcher(grid), SeamReplay(), 0
    for start in range(0, len(grid), 3):
        done = min(len(grid), start + 3)
        parts = [TileNuclei.place(grid, i, found.get(i, empty)) for i in range(start, done)]
        placed = TileNuclei.concatenate(parts)
        step, _ = light.step(replace(placed, nuclei=replace(placed.nuclei, embedding=None)), done=done)
        expected, again = first.add(placed, done=done), replay.add(placed, step)
        joined += len(step.joined)
        for name in ("centroid", "bbox", "contour_points", "contour_offsets", "type", "embedding"):
            np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))
    assert joined > 0
