"""Outlines along the edges of pixels, against the masks they are made from, OpenCV and scikit-image."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import regionprops

from cellvit.evaluation.rasterize import draw_outlines
from cellvit.geometry.outlines import cut_where_touching, edge_rings, outer_rings
from cellvit.geometry.polygons import polygon_area, polygon_centroid, ring_bounds
from cellvit.io.frames import find_border, from_pixel_centres, to_pixel_centres
from cellvit.postprocess.measure import nuclei_from_instances

maps = hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 2))


def pixels_of(mask):
    """Return the pixels that an outline should enclose: the largest 8-connected piece, filled, cut at its corners."""
    for structure in (np.ones((3, 3)), None):
        pieces, count = ndimage.label(mask, structure)
        mask = pieces == 1 + np.bincount(pieces.ravel(), minlength=count + 1)[1:].argmax()
        mask = ndimage.binary_fill_holes(mask)
    return mask


@given(maps)
@settings(max_examples=100)
def test_rings_of_a_map_are_those_of_the_borders_that_opencv_finds(instances):
    rings = outer_rings(instances)
    points, offsets = cut_where_touching(rings.points, rings.offsets, rings.touching)
    found = [points[start:stop].tolist() for start, stop in pairwise(offsets)]
    expected, firsts = [], []
    for label in np.unique(instances[instances > 0]):
        pieces, count = ndimage.label(instances == label, np.ones((3, 3)))
        for piece in range(1, count + 1):
            border = find_border((pieces == piece).view(np.uint8))
            expected.append(edge_rings(border, np.array([0, len(border)]))[0].tolist())
            firsts.append(int(np.flatnonzero(pieces == piece)[0]))
    assert found == expected
    assert rings.first.tolist() == firsts


def outlined(instances):
    return nuclei_from_instances(instances, min_contour_points=1)


@given(maps)
@settings(max_examples=150)
def test_outlines_enclose_exactly_their_pixels(instances):
    found = outlined(instances)
    nuclei = found.nuclei
    for i, (start, stop) in enumerate(pairwise(nuclei.contour_offsets)):
        polygon = shapely.Polygon(nuclei.contour_points[start:stop])
        expected = pixels_of(found.instance_map == i + 1)
        assert polygon.is_valid
        assert polygon.area == expected.sum()
        assert len(shapely.get_coordinates(polygon.simplify(0))) == stop - start + 1  # no point on a straight line
        # IoU of the mask and the outline drawn again is 1
        np.testing.assert_array_equal(draw_outlines(nuclei[i : i + 1], instances.shape) == 1, expected)


@given(maps)
@settings(max_examples=50)
def test_the_pieces_are_those_of_a_union_of_squares(instances):
    found = outlined(instances)
    for i in range(len(found.nuclei)):
        rows, columns = np.nonzero(found.instance_map == i + 1)
        union = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
        polygons = [shapely.Polygon(part.exterior) for part in shapely.get_parts(union)]
        outline = shapely.Polygon(found.nuclei.contour(i))
        assert any(outline.covers(polygon) and polygon.area > 0 for polygon in polygons)
        assert outline.difference(shapely.union_all(polygons)).area == 0 or len(polygons) > 1


def discs(seed, *, size=160, step=32):
    """Return a map of ellipses."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((size, size), np.int32)
    rows, columns = np.indices(instances.shape)
    for label, (y, x) in enumerate(np.ndindex(size // step, size // step), start=1):
        a, b, turn = rng.uniform(4, 14), rng.uniform(4, 14), rng.uniform(0, np.pi)
        dx, dy = columns - step * x - step / 2, rows - step * y - step / 2
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        instances[(u / a) ** 2 + (v / b) ** 2 <= 1] = label
    return instances


def test_area_ratio_and_centre_are_those_of_the_pixels():
    instances = discs(0)
    nuclei = outlined(instances).nuclei
    measured = regionprops(instances)
    area = polygon_area(nuclei.contour_points, nuclei.contour_offsets)
    assert (area / [one.area for one in measured]).tolist() == [1.0] * len(nuclei)
    # scikit-image counts (row, column) from the centres of pixels
    np.testing.assert_allclose(nuclei.centroid, [one.centroid[::-1] for one in measured] + np.array(0.5))
    np.testing.assert_allclose(polygon_centroid(nuclei.contour_points, nuclei.contour_offsets), nuclei.centroid)
    np.testing.assert_array_equal(ring_bounds(nuclei.contour_points, nuclei.contour_offsets), nuclei.bbox)


def test_a_pocket_behind_a_corner_is_a_hole_and_a_piece_behind_one_is_cut_off():
    pocket = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]])
    assert outlined(pocket).nuclei.contour(0).tolist() == [[0, 0], [0, 4], [3, 4], [3, 3], [4, 3], [4, 0]]
    pieces = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    found = outlined(pieces).nuclei  # of equals the first
    assert found.contour(0).tolist() == [[0, 0], [0, 2], [2, 2], [2, 0]]
    assert found.centroid.tolist() == [[2, 2]]  # of all pixels
    assert found.bbox.tolist() == [[0, 0, 4, 4]]


@pytest.mark.parametrize("pixel", [(1.0, 1.0), (0.5, 0.5), (1.97, 2.04), (0.37, 0.41)])
def test_border_pixels_and_back_at_any_resolution(pixel):
    nuclei = outlined(discs(1)).nuclei.transform(scale=pixel, shift=(300, 7))
    points = nuclei.contour_points.round(2)
    centres, offsets = to_pixel_centres(points, nuclei.contour_offsets, pixel=pixel)
    assert len(centres) < len(points)
    np.testing.assert_allclose(
        ring_bounds(centres, offsets) + 0.5,
        nuclei.bbox + np.array([0.5, 0.5, -0.5, -0.5]) * np.tile(pixel, 2),
        atol=0.0101,
    )
    back, offsets = from_pixel_centres(centres, offsets, nuclei.bbox)
    np.testing.assert_array_equal(offsets, nuclei.contour_offsets)
    np.testing.assert_allclose(back, points, atol=0.05)


def test_outlines_through_centres_that_follow_no_pixels_are_drawn():
    slanted = np.array([[1.2, 1.2], [7.9, 3.1], [2.5, 6.8]])
    points, offsets = from_pixel_centres(slanted, np.array([0, 3]), np.full((1, 4), np.nan))
    assert points.min() >= 1
    assert polygon_area(points, offsets)[0] > polygon_area(slanted, np.array([0, 3]))[0]
    triangle = np.array([[0.0, 0], [0, 6], [9, 6]])
    points, offsets = to_pixel_centres(triangle, np.array([0, 3]))
    assert points.tolist() == [[0, 0], [0, 5], [7, 5], [6, 4], [5, 4], [4, 3], [2, 2], [1, 1]] or len(points) > 3
    assert not np.mod(points, 1).any()


def test_outlines_without_points_or_of_nan_pass():
    for convert in (lambda p, o: from_pixel_centres(p, o, np.full((len(o) - 1, 4), np.nan)), to_pixel_centres):
        points, offsets = convert(np.zeros((0, 2)), np.array([0, 0, 0]))
        assert (len(points), offsets.tolist()) == (0, [0, 0, 0])
        points, offsets = convert(np.array([[np.nan, 1], [2, 3], [4, 4]]), np.array([0, 0, 3, 3]))
        assert offsets.tolist() == [0, 0, 3, 3]


def test_an_outline_of_seventy_thousand_points():
    comb = np.ones((3, 70_001), np.int32)
    comb[1, ::2] = comb[0, ::2] = 0
    nuclei = outlined(comb).nuclei
    assert len(nuclei.contour(0)) > 70_000
    assert polygon_area(nuclei.contour_points, nuclei.contour_offsets)[0] == comb.sum()
    assert shapely.Polygon(nuclei.contour(0)).is_valid
    back = from_pixel_centres(*to_pixel_centres(nuclei.contour_points, nuclei.contour_offsets), nuclei.bbox)
    np.testing.assert_array_equal(back[0], nuclei.contour_points)
