from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import ConfigError
from cellvit.slide import tiling
from cellvit.slide.tiling import TileAxis, TileGrid, cropped_grid
from cellvit.slide.tissue import TissueMask

axes = st.tuples(st.integers(1, 700), st.integers(16, 128)).flatmap(
    lambda size: st.tuples(st.just(size[0]), st.just(size[1]), st.integers(0, size[1] // 2))
)


@given(axes)
def test_tiles_cover_the_axis_without_leaving_it(axis):
    length, tile_size, overlap = axis
    tiles = TileAxis(length, tile_size, overlap)
    covered = np.zeros(length, int)
    for start in tiles.starts:
        assert start >= 0
        assert start + tiles.size <= length
        covered[start : start + tiles.size] += 1
    assert (covered > 0).all()
    shared = tiles.starts[:-1] + tiles.size - tiles.starts[1:]
    assert (shared >= overlap).all()
    assert (np.diff(tiles.starts) > 0).all()


@given(axes, st.lists(st.floats(-1, 701), max_size=20))
def test_each_point_has_exactly_one_owner(axis, points):
    tiles = TileAxis(*axis)
    low = np.concatenate([[-np.inf], tiles.cuts])
    high = np.concatenate([tiles.cuts, [np.inf]])
    for point, owner in zip(points, tiles.owner(points), strict=True):
        assert np.flatnonzero((low <= point) & (point < high)).tolist() == [owner]


@given(axes)
def test_a_core_keeps_half_the_overlap_inside_its_tile(axis):
    length, tile_size, overlap = axis
    tiles = TileAxis(length, tile_size, overlap)
    pixels = np.arange(length)
    start = tiles.starts[tiles.owner(pixels)]
    left = np.where(start > 0, pixels - start, overlap)
    right = np.where(start + tiles.size < length, start + tiles.size - 1 - pixels, overlap)
    assert (left >= overlap / 2 - 0.5).all()
    assert (right >= overlap / 2 - 0.5).all()


@given(axes, axes)
def test_shared_and_cut_agree_with_looking_at_every_pixel(first, second):
    (width, tile_size, overlap), height = first, second[0]
    grid = TileGrid(width=width, height=height, tile_size=tile_size, overlap=overlap)
    times = np.zeros((height, width), int)
    for index in range(len(grid)):
        times[grid.tile(index).slices] += 1
    rng = np.random.default_rng(0)
    for index in rng.choice(len(grid), min(4, len(grid)), replace=False):
        tile = grid.tile(int(index))
        x = np.sort(rng.integers(tile.x, tile.x + tile.width + 1, (8, 2)), axis=1)
        y = np.sort(rng.integers(tile.y, tile.y + tile.height + 1, (8, 2)), axis=1)
        boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])].astype(float)
        seen = [bool((times[int(b[1]) : int(b[3]), int(b[0]) : int(b[2])] > 1).any()) for b in boxes]
        assert grid.shared(int(index), boxes).tolist() == seen
        inside = [
            (b[0] > tile.x or tile.x == 0)
            and (b[1] > tile.y or tile.y == 0)
            and (b[2] < tile.x + tile.width or b[2] == width)
            and (b[3] < tile.y + tile.height or b[3] == height)
            for b in boxes
        ]
        assert (~grid.cut(int(index), boxes)).tolist() == inside


def test_owner_of_a_grid_is_counted_row_by_row():
    grid = TileGrid(width=100, height=60, tile_size=40, overlap=0)
    assert [grid.columns.starts.tolist(), grid.rows.starts.tolist()] == [[0, 40, 60], [0, 20]]
    assert grid.owner([[0, 0], [99, 0], [0, 59], [99, 59], [49.9, 30.1]]).tolist() == [0, 2, 3, 5, 4]


def test_the_published_grid_has_a_margin_of_32_px():
    grid = TileGrid(width=5000, height=1024)
    assert grid.columns.starts.tolist() == [0, 960, 1920, 2880, 3840, 3976]
    assert grid.columns.cuts[:2].tolist() == [992, 1952]
    assert len(TileGrid(width=1024, height=1)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tile_size": 15}, "tile size 15"),
        ({"overlap": -1}, "overlap -1"),
        ({"overlap": 513}, "use 0 to 512"),
        ({"width": 0}, "0 x 10 px"),
    ],
)
def test_impossible_grids_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        TileGrid(**{"width": 10, "height": 10, **changes})


@settings(max_examples=30)
@given(axes, axes, st.integers(0, 2**32 - 1))
def test_cropped_tiles_hold_all_that_is_wanted_with_its_margin_and_little_else(first, second, seed):
    (width, tile_size, overlap), height, step = first, second[0], 16
    grid = TileGrid(width=width, height=height, tile_size=tile_size, overlap=overlap)
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 9), rng.integers(1, 9))) < rng.choice([0.0, 0.1, 0.5, 1.0])
    tissue = TissueMask(mask)
    with patch.object(tiling, "CROP_STEP", step):
        cropped, done = cropped_grid(grid, lambda boxes: tissue.coverage(boxes, (width, height)))
    y, x = np.indices((height, width)).reshape(2, -1)
    points = np.stack([x, y], axis=1) + 0.5
    points = points[tissue.contains(points, (width, height))][:: 1 + width * height // 20_000]
    owner = cropped.owner(points)
    assert set(owner) <= set(done.tolist())
    whole, boxes = grid.boxes_of(np.arange(len(grid))), cropped.boxes_of(np.arange(len(grid)))
    # half the overlap around what is wanted, as far as the tile goes
    margin = np.concatenate([points - overlap / 2 + 0.5, points + overlap / 2 - 0.5], axis=1)
    low, high = np.maximum(margin[:, :2], whole[owner][:, :2]), np.minimum(margin[:, 2:], whole[owner][:, 2:])
    assert (boxes[owner][:, :2] <= low).all()
    assert (boxes[owner][:, 2:] >= high).all()
    assert ((boxes[:, :2] - whole[:, :2]) % step == 0).all()
    assert (((boxes[:, 2:] - whole[:, :2]) % step == 0) | (boxes[:, 2:] == whole[:, 2:])).all()
    for index in done[:4].tolist():
        tile, (left, top, right, bottom) = cropped.tile(index), boxes[index].tolist()
        assert (tile.x, tile.y, tile.width, tile.height) == (left, top, right - left, bottom - top)
        # the first and the last column of blocks are there for something that is wanted
        near = overlap / 2 + step + 1
        for side in ((left, left + near), (right - near, right)):
            part = np.array([[side[0] - near, top - near, side[1] + near, bottom + near]])
            assert tissue.coverage(part, (width, height))[0] > 0


def test_where_the_last_tile_is_shifted_the_one_before_does_the_work():
    grid = TileGrid(width=1100, height=1024)
    cropped, done = cropped_grid(grid, lambda boxes: np.float64((boxes[:, 2:] > boxes[:, :2]).all(axis=1)))
    assert done.tolist() == [0, 1]
    assert grid.columns.starts.tolist() == [0, 76]
    assert cropped.boxes_of(done).tolist() == [[0, 0, 1024, 1024], [76 + 768, 0, 1100, 1024]]
    assert cropped.owner([[991, 0], [992, 0]]).tolist() == [0, 1]  # half the overlap before the end of the first
