from itertools import pairwise

import numpy as np
from export_samples import grid_outlines, loose_outlines, make_nuclei, star_outlines
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon

from cellvit.geometry import polygons as geometry

ragged = st.lists(loose_outlines, max_size=6).map(make_nuclei)


@given(ragged)
def test_box_conversions_are_inverse_and_swap_axes(nuclei):
    there = geometry.bbox_xyxy_to_rowcol(nuclei.bbox)
    np.testing.assert_array_equal(geometry.bbox_rowcol_to_xyxy(there), nuclei.bbox)
    for (xmin, ymin, xmax, ymax), corners in zip(nuclei.bbox.tolist(), there.tolist(), strict=True):
        assert corners == [[ymin, xmin], [ymax, xmax]]


def test_swap_exchanges_coordinates():
    assert geometry.swap_xy_rowcol(np.array([[1, 2], [3, 4]])).tolist() == [[2, 1], [4, 3]]


@given(ragged)
def test_open_undoes_close(nuclei):
    points, offsets = nuclei.contour_points, nuclei.contour_offsets
    closed, bounds = geometry.close_rings(points, offsets)
    for i in range(len(nuclei)):
        outline = nuclei.contour(i).tolist()
        assert closed[bounds[i] : bounds[i + 1]].tolist() == outline + outline[:1]
    # a closed ring of one point is that point twice, and opens to one
    again, opened = geometry.open_rings(closed, bounds)
    np.testing.assert_array_equal(again, points)
    np.testing.assert_array_equal(opened, offsets)


@given(st.lists(st.one_of(star_outlines(), grid_outlines), max_size=6), st.integers(0, 2))
def test_area_is_that_of_the_loop(contours, skip):
    nuclei = make_nuclei(contours)
    offsets = nuclei.contour_offsets[skip:] if skip < len(nuclei.contour_offsets) else nuclei.contour_offsets
    found = geometry.polygon_area(nuclei.contour_points, offsets)
    assert found.shape == (len(offsets) - 1,)
    for i, (start, stop) in enumerate(pairwise(offsets)):
        ring = nuclei.contour_points[start:stop]
        total = 0.0
        for k in range(len(ring)):
            (x, y), (u, v) = ring[k] - ring[0], ring[(k + 1) % len(ring)] - ring[0]
            total += x * v - u * y
        np.testing.assert_allclose(found[i], abs(total) / 2, rtol=1e-9, atol=1e-9)


@given(star_outlines())
def test_area_agrees_with_shapely(outline):
    found = geometry.polygon_area(outline, np.array([0, len(outline)]))[0]
    np.testing.assert_allclose(found, Polygon(outline).area, rtol=1e-6)


def test_area_of_a_small_nucleus_far_from_the_origin_keeps_its_digits():
    ring = np.array([[0.0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]) + 2.0**30
    assert geometry.polygon_area(ring, np.array([0, 4])).tolist() == [0.25]


@given(ragged)
def test_bounds_are_those_of_the_loop(nuclei):
    found = geometry.ring_bounds(nuclei.contour_points, nuclei.contour_offsets)
    for i in range(len(nuclei)):
        ring = nuclei.contour(i)
        expected = [*ring.min(0), *ring.max(0)] if len(ring) else [np.nan] * 4
        np.testing.assert_array_equal(found[i], expected)


@given(ragged, st.data())
def test_select_rings_picks_and_repeats(nuclei, data):
    rows = data.draw(st.lists(st.integers(0, len(nuclei) - 1), max_size=5)) if len(nuclei) else []
    index = np.array(rows, np.int64)
    points, offsets = geometry.select_rings(nuclei.contour_points, nuclei.contour_offsets, index)
    assert len(offsets) == len(rows) + 1
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(points[offsets[i] : offsets[i + 1]], nuclei.contour(row))
    mask = np.arange(len(nuclei)) % 2 == 0
    by_mask = geometry.select_rings(nuclei.contour_points, nuclei.contour_offsets, mask)[0]
    by_index = geometry.select_rings(nuclei.contour_points, nuclei.contour_offsets, np.flatnonzero(mask))[0]
    np.testing.assert_array_equal(by_mask, by_index)


def test_box_area_of_a_box_inside_out_is_zero():
    assert geometry.bbox_area(np.array([[0.0, 0, 2, 3], [2, 0, 0, 3]])).tolist() == [6.0, 0.0]
