import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import ConfigError
from cellvit.geometry.regions import Region


def slow_mask(geometry, shape, bounds):
    """Every pixel on its own."""
    (x, y, width, height), (rows, columns) = bounds, shape
    mask = np.zeros(shape, bool)
    for row in range(rows):
        for col in range(columns):
            left, top = x + col * width / columns, y + row * height / rows
            pixel = shapely.box(left, top, left + width / columns, top + height / rows)
            mask[row, col] = geometry.intersects(pixel) and geometry.intersection(pixel).area > 0
    return mask


whole = st.integers(-4, 14).map(float)
loose = st.floats(-4, 14).map(lambda v: round(v, 3))


@given(
    st.lists(
        st.one_of(*[st.lists(st.tuples(c, c), min_size=3, max_size=7) for c in (whole, loose)]), min_size=1, max_size=3
    ),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.sampled_from([(0, 0, 8, 8), (2, 1, 8, 4), (-3, -3, 16, 16), (0.5, 2.25, 4, 2)]),
)
@settings(max_examples=200)
def test_the_raster_is_that_of_the_loop(rings, shape, bounds):
    geometry = shapely.union_all(shapely.make_valid([shapely.Polygon(ring) for ring in rings]))
    expected = slow_mask(geometry, shape, bounds)
    found = Region(geometry).mask(shape, bounds)
    for row, col in np.argwhere(found != expected):
        # the two may round a corner that just reaches into a pixel differently, and nothing else
        x, y, width, height = bounds
        left, top = x + col * width / shape[1], y + row * height / shape[0]
        pixel = shapely.box(left, top, left + width / shape[1], top + height / shape[0])
        assert geometry.distance(pixel) < 1e-9
        assert geometry.intersection(pixel).area < 1e-9


def test_a_thin_region_and_a_tiny_one_are_seen_on_a_coarse_raster():
    thin = Region(shapely.LineString([(0, 0), (100, 100)]).buffer(0.001))
    mask = thin.mask((10, 10), (0, 0, 100, 100))
    assert mask.diagonal().all()
    tiny = Region(shapely.box(55.1, 23.2, 55.3, 23.4)).mask((10, 10), (0, 0, 100, 100))
    assert np.argwhere(tiny).tolist() == [[2, 5]]


def test_what_lies_outside_the_raster_is_left_out_however_far():
    far = Region(shapely.box(-1e12, -1e12, 1e12, 5))
    assert far.mask((4, 4), (0, 0, 20, 20)).tolist() == [[True] * 4] + [[False] * 4] * 3
    assert not far.mask((4, 4), (0, 5, 20, 20)).any()
    hole = Region(shapely.box(-50, -50, 50, 50).difference(shapely.box(-10, -10, 30, 30)))
    assert not hole.mask((4, 4), (0, 0, 20, 20)).any()


def test_a_large_raster_is_exact_where_the_region_is_round():
    region = Region(shapely.Point(1000, 900).buffer(700, quad_segs=64))
    mask = region.mask((500, 640), (0, 0, 2560, 2000))
    assert mask.sum() * 16 == pytest.approx(region.area_px, rel=0.01)
    assert mask.sum() * 16 > region.area_px


@pytest.mark.parametrize(("shape", "bounds"), [((0, 4), (0, 0, 8, 8)), ((4, 4), (0, 0, 0, 8)), ((4, 4), (0, 0, 8, -1))])
def test_rasters_without_area_are_refused(shape, bounds):
    with pytest.raises(ConfigError, match="positive width and height"):
        Region(shapely.box(0, 0, 1, 1)).mask(shape, bounds)
