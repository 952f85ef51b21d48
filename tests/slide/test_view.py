import drawn_pyramids as drawn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellvit.errors import ConfigError
from cellvit.slide import resampling
from cellvit.slide.resampling import best_level, level_ratios, resize_box
from cellvit.slide.view import SlideView

RNG = np.random.default_rng(8)
NOISE = RNG.integers(0, 256, (611, 743, 3), dtype=np.uint8)
SCALES = [1.0, 0.5, 2.0, 0.37, 1 / 7, 1.99]
BOUNDS = [None, (101, 57, 500, 433)]


def view_of(levels, scale, *, bounds=None):
    return SlideView(drawn.ArraySlide(levels, bounds=bounds), mpp=(0.25, 0.25), target_mpp=0.25 / scale)


VIEWS = {
    (scale, bounds): view_of([NOISE, drawn.shrunk(NOISE, 2), drawn.shrunk(NOISE, 3.37)], scale, bounds=bounds)
    for scale in SCALES
    for bounds in BOUNDS
}
WHOLE = {key: view.read(0, 0, view.width, view.height) for key, view in VIEWS.items()}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bounds", BOUNDS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_pixel_does_not_depend_on_the_box_it_is_read_in(scale, bounds, data):
    view, whole = VIEWS[scale, bounds], WHOLE[scale, bounds]
    x = data.draw(st.integers(0, view.width - 1))
    y = data.draw(st.integers(0, view.height - 1))
    width = data.draw(st.integers(1, view.width - x))
    height = data.draw(st.integers(1, view.height - y))
    np.testing.assert_array_equal(view.read(x, y, width, height), whole[y : y + height, x : x + width])


@pytest.mark.parametrize("limit", [1, 40_000, 200_000])
@pytest.mark.parametrize("scale", [0.37, 1.99])
def test_nor_on_how_much_is_read_at_once(monkeypatch, scale, limit):
    view, whole = VIEWS[scale, None], WHOLE[scale, None]
    monkeypatch.setattr(resampling, "_READ_PIXELS", limit)
    view.slide.largest_read = 0
    np.testing.assert_array_equal(view.read(0, 0, view.width, view.height), whole)
    block = (128 / scale / level_ratios(view.slide.level_sizes)[view.level][0] + 25) ** 2
    assert view.slide.largest_read <= max(limit, block)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_at_full_resolution_pixels_stay_as_they_are(bounds):
    x, y, width, height = bounds or (0, 0, 743, 611)
    for scale in (1.0, 1.04, 0.96):  # nearly the same is the same
        view = view_of([NOISE], scale, bounds=bounds)
        assert view.scale == (1.0, 1.0)
        assert (view.width, view.height, view.level) == (width, height, 0)
        np.testing.assert_array_equal(view.read(0, 0, width, height), NOISE[y : y + height, x : x + width])


def test_a_level_that_fits_is_not_resampled_either():
    image = NOISE[:610, :740]
    view = view_of([image, drawn.shrunk(image, 2)], 0.5)
    assert view.level == 1
    np.testing.assert_array_equal(view.read(0, 0, 370, 305), drawn.shrunk(image, 2))
    shifted = view_of([image, drawn.shrunk(image, 2)], 0.5, bounds=(100, 60, 200, 300))
    np.testing.assert_array_equal(shifted.read(0, 0, 100, 150), drawn.shrunk(image, 2)[30:180, 50:150])


@pytest.mark.parametrize("scale", [0.5, 2.0, 0.37, 1 / 7, 1.99])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_view_is_the_scanned_part_resampled_in_one_go(scale, bounds):
    x, y, width, height = bounds or (0, 0, 743, 611)
    image = NOISE // 4 + 96  # where nothing overshoots: Pillow takes the axes in the order that suits the size
    view = view_of([image], scale, bounds=bounds)
    part = Image.fromarray(image[y : y + height, x : x + width])
    expected = np.asarray(part.resize((view.width, view.height), Image.Resampling.LANCZOS)).astype(int)
    difference = np.abs(view.read(0, 0, view.width, view.height) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.parametrize("scale", [*SCALES, 4.0, 1 / 32])
@pytest.mark.parametrize("bounds", [None, (100, 56, 500, 432)])
def test_a_slide_that_is_dark_to_its_edge_gets_no_light_rim(scale, bounds):
    x, y, width, height = bounds or (0, 0, 743, 611)
    image = np.full((611, 743, 3), 250, np.uint8)
    image[y : y + height, x : x + width] = 31
    view = view_of([image, image[::2, ::2][:305, :371], image[::4, ::4][:152, :185]], scale, bounds=bounds)
    assert (view.read(0, 0, view.width, view.height) == 31).all()
    assert (view.thumbnail(97) == 31).all()


def test_size_scale_and_level():
    levels = [np.zeros((round(3000 / r), round(4000 / r), 3), np.uint8) for r in (1, 2, 4, 16)]
    slide = drawn.ArraySlide(levels)
    for target, level, width in [(0.25, 0, 4000), (0.5, 1, 2000), (0.48, 1, 2083), (0.47, 0, 2128), (1.0, 2, 1000)]:
        view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=target)
        assert (view.level, view.width) == (level, width)
        assert view.scale == (view.width / 4000, view.height / 3000)
    oblong = SlideView(slide, mpp=(0.25, 0.5), target_mpp=0.5)
    assert (oblong.width, oblong.height, oblong.level) == (2000, 3000, 0)
    assert oblong.scale == (0.5, 1.0)
    tiny = SlideView(drawn.ArraySlide([np.zeros((7, 9, 3), np.uint8)]), mpp=(0.25, 0.25), target_mpp=8.0)
    assert (tiny.width, tiny.height) == (1, 1)
    assert tiny.read(0, 0, 1, 1).shape == (1, 1, 3)


@pytest.mark.parametrize(("mpp", "target"), [(0.25, 8.1), (1.01, 0.25), (float("nan"), 0.25), (-0.25, 0.25)])
def test_resolutions_too_far_apart_are_refused(mpp, target):
    with pytest.raises(ConfigError, match="too far from the model's"):
        SlideView(drawn.ArraySlide([NOISE]), mpp=(0.25, mpp), target_mpp=target)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 740, 5, 5), (0, 0, 5, 0), (0, 0, 744, 5), (0, 600, 5, 12)])
def test_a_part_outside_the_view_is_refused(box):
    with pytest.raises(ConfigError, match="does not lie inside a view of 743 x 611 px"):
        VIEWS[1.0, None].read(*box)


def test_ratios_of_levels():
    assert level_ratios([(100_003, 70_001), (25_000, 17_500), (6250, 4375)]) == [(1, 1), (4, 4), (16, 16)]
    assert level_ratios([(1001, 701), (501, 351)]) == [(1, 1), (2, 2)]  # filled up
    assert level_ratios([(3001, 1000), (11, 3)])[1] == (256, 256)
    assert level_ratios([(900, 300), (300, 100)])[1] == (3, 3)
    width, height = level_ratios([(3001, 2203), (891, 654)])[1]
    assert (width, height) == pytest.approx((3.37, 3.37), rel=1e-3)


def test_the_coarsest_level_that_is_fine_enough():
    sizes = [(8000, 6000), (4000, 3000), (1000, 750)]
    expected = {0.5: 0, 1: 0, 1.9: 0, 1.91: 1, 2: 1, 7.6: 1, 7.62: 2, 8: 2, 100: 2}
    assert {pixel: best_level(sizes, (pixel, pixel)) for pixel in expected} == expected
    assert best_level(sizes, (8, 2)) == 1  # the finer axis decides


# Coordinates


@pytest.mark.parametrize("target", [0.25, 0.125, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("bounds", [None, (311, 173, 1400, 1277)])
def test_discs_are_found_where_they_were_drawn_also_within_bounds(target, bounds):
    image, centres = drawn.draw(1801, 1503)
    x, y, width, height = bounds or (0, 0, 1801, 1503)
    slide = drawn.ArraySlide([drawn.shrunk(image, ratio) for ratio in (1, 2, 3.37, 4)], bounds=bounds)
    view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=target)
    picture = view.read(0, 0, view.width, view.height)
    discs = view.to_level0(drawn.table(drawn.found(picture) + 0.5)).centroid - 0.5

    def inner(points):
        return points[((points > [x + 16, y + 16]) & (points < [x + width - 16, y + height - 16])).all(axis=1)]

    whole = inner(centres)
    distances = np.linalg.norm(whole[:, None] - discs[None], axis=2).min(axis=1)
    assert len(whole) > 250
    assert distances.max() < 0.5


def test_the_discs_of_a_thumbnail_lie_where_they_were_drawn():
    image, centres = drawn.draw(1801, 1503)
    slide = drawn.ArraySlide([drawn.shrunk(image, ratio) for ratio in (1, 2)], bounds=(100, 50, 1600, 1400))
    view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.25)
    thumbnail = view.thumbnail(700)
    assert thumbnail.shape == (612, 700, 3)
    points = (drawn.found(thumbnail) + 0.5) * [1600 / 700, 1400 / 612] - 0.5 + [100, 50]
    inner = centres[((centres > [120, 70]) & (centres < [1680, 1430])).all(axis=1)]
    assert np.linalg.norm(inner[:, None] - points[None], axis=2).min(axis=1).max() < 0.5


@pytest.mark.parametrize(("scale", "bounds"), [(1.0, None), (0.37, (101, 57, 500, 433)), (2.0, (101, 57, 500, 433))])
def test_points_and_boxes_go_back_to_the_slide(scale, bounds):
    view = VIEWS[scale, bounds]
    x, y, width, height = bounds or (0, 0, 743, 611)
    points = np.array([[0.0, 0], [view.width, view.height], [17.25, 3.5]])
    boxes = [[0, 0, view.width, view.height], [1, 2, 4, 9], [-3, -2, view.width + 4, 9]]
    nuclei = view.to_level0(drawn.table(points, boxes))
    across, down = view.width / width, view.height / height
    for column, scale_of, origin in ((0, across, x), (1, down, y)):
        expected = [value / scale_of + origin for value in points[:, column]]
        np.testing.assert_allclose(nuclei.centroid[:, column], expected, atol=1e-9)
        np.testing.assert_allclose(nuclei.contour_points[:, column], expected, atol=1e-9)
    np.testing.assert_allclose(nuclei.bbox[0], [x, y, x + width, y + height], atol=1e-9)
    np.testing.assert_allclose(nuclei.bbox[1], [x + 1 / across, y + 2 / down, x + 4 / across, y + 9 / down], atol=1e-9)
    np.testing.assert_allclose(nuclei.bbox[2], [x, y, x + width, y + 9 / down], atol=1e-9)


# Thumbnails


def test_a_thumbnail_is_never_enlarged_and_read_in_strips(monkeypatch):
    view = VIEWS[2.0, None]
    np.testing.assert_array_equal(view.thumbnail(), NOISE)
    assert VIEWS[0.37, (101, 57, 500, 433)].thumbnail(250).shape == (216, 250, 3)
    assert view.thumbnail(1).shape == (1, 1, 3)
    slide = drawn.ArraySlide([np.tile(NOISE, (5, 4, 1))])
    view = SlideView(slide, mpp=(0.25, 0.25), target_mpp=0.25)
    expected = view.thumbnail(300)
    monkeypatch.setattr(resampling, "_READ_PIXELS", 100_000)
    monkeypatch.setattr(resampling, "_BLOCK_SOURCE", 256)
    slide.largest_read = 0
    small = view.thumbnail(300)
    assert slide.largest_read < 310**2
    assert np.abs(small.astype(int) - expected).max() <= 2
    means = np.tile(NOISE, (5, 4, 1)).mean((0, 1))
    np.testing.assert_allclose(small.mean((0, 1)), means, atol=1)


def test_a_box_beyond_an_image_repeats_its_edge():
    image = NOISE[:9, :12]
    same = resize_box(image, (12, 9), (0, 0, 12, 9), filter=Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(same, image)
    moved = resize_box(image, (12, 9), (-2, 1, 10, 10), filter=Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(moved, np.pad(image, ((0, 1), (2, 0), (0, 0)), mode="edge")[1:10, :12])
