import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.viewer.quadtree import Quadtree, spread


def bits_in_turn(column, row):
    """The slow way: bits of column and row take turns, the column's first."""
    return sum(((column >> i & 1) << 2 * i) | ((row >> i & 1) << 2 * i + 1) for i in range(16))


@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)), min_size=1))
@settings(max_examples=20)
def test_bits_take_turns(cells):
    column, row = np.array(cells, np.uint32).T
    found = spread(column) | spread(row) << np.uint32(1)
    assert found.tolist() == [bits_in_turn(*cell) for cell in cells]


@pytest.mark.parametrize("size", [(100, 80), (40_000, 30_000), (300_000, 200_000), (2**22, 5)])
def test_every_square_is_one_run_of_points(size):
    tree, rng = Quadtree.covering(*size), np.random.default_rng(0)
    x, y = (rng.uniform(0, side, 2000) for side in size)
    codes = tree.codes(x, y)
    order = np.argsort(codes, kind="stable")
    x, y, codes = x[order], y[order], codes[order]
    kind = rng.integers(0, 3, len(x)).astype(np.uint8)
    for zoom in range(tree.max_zoom + 1):
        side, seen = tree.base >> zoom, 0
        places = {(int(a // side), int(b // side)) for a, b in zip(x, y, strict=True)}
        for column, row in sorted(places)[:40]:
            rows = tree.rows(codes, zoom, column, row)
            inside = (x // side == column) & (y // side == row)
            assert np.flatnonzero(inside).tolist() == list(range(rows.start, rows.stop))
            counts = tree.density(codes[rows], kind[rows], zoom, 3)
            assert counts.shape[0] == 3
            assert counts.sum(axis=(1, 2)).tolist() == np.bincount(kind[rows], minlength=3).tolist()
            seen += 1
        assert seen


def test_density_counts_points_where_they_lie():
    tree = Quadtree.covering(1024, 1024)
    x, y = np.array([3.0, 1020.0, 1021.0]), np.array([700.0, 5.0, 6.0])
    counts = tree.density(tree.codes(x, y), np.array([1, 0, 0], np.uint8), 0, 2)
    assert counts.shape == (2, 64, 64)
    assert counts[1, 700 // 16, 3 // 16] == 1
    assert counts[0, 0, 63] == 2
    assert counts.sum() == 3


def test_what_lies_outside_belongs_to_the_squares_at_the_edge():
    tree = Quadtree.covering(500, 500)
    codes = np.sort(tree.codes(np.array([-5.0, 9000.0]), np.array([-1.0, 9000.0])))
    assert tree.rows(codes, 1, 0, 0) == slice(0, 1)
    assert tree.rows(codes, 1, 1, 1) == slice(1, 2)
    assert tree.has(1, 1, 1)
    assert not tree.has(1, 2, 0)
    assert not tree.has(9, 0, 0)
    assert not tree.has(0, -1, 0)
