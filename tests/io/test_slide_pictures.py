from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest
import scipy.ndimage
from export_samples import PANNUKE, make_nuclei, many, square
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellvit.errors import ConfigError, DataError, ImageError, OutputError
from cellvit.plotting import draw_overlay
from cellvit.plotting.density import (
    _columns,
    _nice_top,
    choose_sigma,
    count_into,
    panel_shape,
    relative_error,
    smooth_density,
)
from cellvit.plotting.hotspots import _densest
from cellvit.plotting.legend import arrange, count_entries, draw_legend
from cellvit.plotting.overlay import onto_picture
from cellvit.plotting.slides import write_closeups, write_density, write_slide_overlay
from cellvit.types import Nuclei

WIDE = (0, 0, 50_020, 50_020)  # of the nuclei of `many`
PINK = np.full((200, 300, 3), (230, 180, 200), np.uint8)


class Stream:
    """Nuclei in chunks of a size; counts how often they were asked for, and keeps none."""

    def __init__(self, nuclei, size=7):
        self.nuclei, self.size, self.passes = nuclei, size, 0
        self.classes, self.embedding_dim = nuclei.classes, None

    def __len__(self):
        return len(self.nuclei)

    def __iter__(self):
        self.passes += 1
        yield Nuclei.empty(classes=self.classes)
        for start in range(0, len(self.nuclei), self.size):
            yield self.nuclei.select(np.arange(start, min(start + self.size, len(self.nuclei))))


class Pixels:
    """A slide whose pixels say where they are: red is the column, green the row, both modulo 200."""

    def __init__(self, bounds=(0, 0, 4000, 3000)):
        self.bounds, self.read = bounds, []

    def read_region(self, x, y, width, height, *, level=0):
        assert level == 0
        self.read.append((x, y, width, height))
        row, col = np.mgrid[y : y + height, x : x + width]
        return np.stack([col % 200, row % 200, np.full_like(row, 77)], axis=2).astype(np.uint8)


def load(path):
    with Image.open(path) as file:
        return np.asarray(file)


def at(points, type=None, classes=PANNUKE, side=20.0):
    """Square nuclei around points."""
    shapes = [square(x - side / 2, y - side / 2, side) for x, y in points]
    return make_nuclei(shapes, type=type, classes=classes)


# dots


def test_each_nucleus_is_a_dot_of_its_colour_where_it_lies(tmp_path):
    nuclei = at([(120.0, 90.0), (1200.0, 700.0)], type=[1, 3])
    path = tmp_path / "overlay.png"
    write_slide_overlay(Stream(nuclei), PINK, path, bounds=(20, 10, 3000, 2000))
    picture = load(path)
    faded = picture[100, 250].tolist()
    assert all(f > p for f, p in zip(faded, (230, 180, 200), strict=True))
    assert picture[8, 10].tolist() == list(PANNUKE.colors[1])  # (120 - 20) / 10, (90 - 10) / 10
    assert picture[69, 118].tolist() == list(PANNUKE.colors[3])
    drawn = (picture[:200] != faded).any(axis=2)
    assert 2 <= drawn.sum() <= 20
    assert set(zip(*(np.argwhere(drawn) // 20).T.tolist(), strict=True)) == {(0, 0), (3, 5)}


def test_the_legend_below_counts_all_nuclei(tmp_path):
    nuclei = many(100)
    write_slide_overlay(Stream(nuclei), PINK, tmp_path / "a.png", bounds=WIDE)
    entries = count_entries(dict(zip(*np.unique(nuclei.type, return_counts=True), strict=True)), PANNUKE)
    assert entries[0] == (None, "100 nuclei")
    np.testing.assert_array_equal(load(tmp_path / "a.png")[200:], draw_legend(entries, 300))


def test_dots_are_as_large_as_nuclei_on_small_slides_and_stay_visible_on_large_ones(tmp_path):
    sizes = []
    for scale in (0.4, 0.1, 0.01):
        bounds = (0, 0, round(300 / scale), round(200 / scale))
        nuclei = at([(150 / scale, 100 / scale)], side=40.0)
        write_slide_overlay(Stream(nuclei), PINK, tmp_path / "a.png", bounds=bounds)
        sizes.append((load(tmp_path / "a.png")[:200] == PANNUKE.colors[1]).all(axis=2).sum())
    assert sizes[0] > 80
    assert sizes[1] == sizes[2] == 5
    crowded = at(np.random.default_rng(0).uniform(0, 20_000, (4000, 2)).tolist(), side=40.0)
    write_slide_overlay(Stream(crowded, 900), PINK, tmp_path / "a.png", bounds=(0, 0, 20_000, 20_000))
    picture = load(tmp_path / "a.png")[:200]
    assert 3000 < (picture == PANNUKE.colors[1]).all(axis=2).sum() <= 4000


def test_the_most_frequent_type_of_a_pixel_is_seen_and_of_equals_the_rarer(tmp_path):
    points = [(500, 500)] * 3 + [(501, 500)] * 2 + [(900, 900), (902, 900)] + [(100, 100)] * 9
    kinds = [1] * 3 + [2] * 2 + [1, 5] + [1] * 9
    write_slide_overlay(Stream(at(points, type=kinds)), PINK, tmp_path / "a.png", bounds=(0, 0, 30_000, 20_000))
    picture = load(tmp_path / "a.png")
    assert picture[5, 5].tolist() == list(PANNUKE.colors[1])
    assert picture[9, 9].tolist() == list(PANNUKE.colors[5])


@pytest.mark.parametrize("thumbnail", [PINK, np.full((2000, 3000, 3), 200, np.uint8)])
def test_small_slides_show_outlines(tmp_path, thumbnail):
    height, width = thumbnail.shape[:2]
    bounds = (40, 60, width * 3 // 2, height * 3 // 2)
    nuclei = at([(100.0, 130.0), (200.0, 200.0)], type=[2, 4])
    write_slide_overlay(Stream(nuclei, 100), thumbnail, tmp_path / "a.png", bounds=bounds)
    moved = onto_picture(nuclei, (40, 60), (2 / 3, 2 / 3))
    np.testing.assert_array_equal(load(tmp_path / "a.png"), draw_overlay(thumbnail, moved))


def test_whole_coordinates_are_corners_of_pixels_on_every_picture():
    pixel = at([(10.5, 20.5)])  # covers [10, 11) x [20, 21) of the slide
    same = onto_picture(pixel, (10, 20), (1.0, 1.0))
    assert same.centroid.tolist() == [[0.5, 0.5]]
    assert onto_picture(pixel, (8, 20), (0.25, 0.25)).centroid.tolist() == [[2.5 / 4, 0.5 / 4]]


@pytest.mark.parametrize("bounds", [WIDE, (0, 0, 500, 300)])
@pytest.mark.parametrize("sizes", [(1000, 3), (1000, 1)])
def test_how_the_stream_is_cut_changes_no_byte(tmp_path, bounds, sizes):
    # on the small slide nuclei of one size, that touch none of another type
    grid = [(x * 40.0 + 20, y * 40.0 + 20) for x in range(12) for y in range(7)]
    nuclei = many(400) if bounds is WIDE else at(grid, type=np.arange(len(grid)) % 5 + 1)
    for size in sizes:
        stream = Stream(nuclei, size)
        write_slide_overlay(stream, PINK, tmp_path / f"o{size}.png", bounds=bounds)
        assert stream.passes == 1
        write_density(stream, PINK, tmp_path / f"d{size}.png", bounds=bounds, mpp=0.5)
        assert stream.passes == 2
        write_closeups(stream, Pixels(bounds), tmp_path / f"c{size}.png", mpp=0.5)
        assert stream.passes == 4
    for letter in "odc":
        assert (tmp_path / f"{letter}{sizes[0]}.png").read_bytes() == (
            tmp_path / f"{letter}{sizes[1]}.png"
        ).read_bytes()


@given(
    st.lists(st.tuples(st.floats(-30, 130), st.floats(-30, 130), st.integers(-1, 3)), max_size=30),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 90), st.integers(1, 90)),
)
@settings(max_examples=60)
def test_counts_are_those_of_the_loop(rows, shape, bounds):
    nuclei = at([(x, y) for x, y, _ in rows], type=[k for *_, k in rows])
    found = {}
    count_into(found, nuclei, bounds, (shape[1] / bounds[2], shape[0] / bounds[3]), shape)
    expected = {}
    for (x, y), kind in zip(nuclei.centroid, nuclei.type.tolist(), strict=True):
        col = int((x - bounds[0]) * (shape[1] / bounds[2]) // 1)
        row = int((y - bounds[1]) * (shape[0] / bounds[3]) // 1)
        if 0 <= row < shape[0] and 0 <= col < shape[1]:
            expected[kind, row, col] = expected.get((kind, row, col), 0) + 1
    got = {(k, int(r), int(c)): int(m[r, c]) for k, m in found.items() for r, c in np.argwhere(m)}
    assert got == expected


# density


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1, 30), st.floats(1, 30), st.floats(1, 300))
@settings(max_examples=40)
def test_smoothing_keeps_the_number_of_nuclei_and_invents_none(height, width, across, down, sigma):
    counts = np.random.default_rng(0).poisson(0.3, (height, width))
    density = smooth_density(counts, (across, down), sigma)
    assert density.sum() * across * down / 1e6 == pytest.approx(counts.sum(), rel=1e-4)
    assert density.min() >= 0


def test_smoothing_is_that_of_a_filter_which_reflects():
    counts = np.random.default_rng(0).poisson(0.1, (60, 45))
    expected = scipy.ndimage.gaussian_filter(counts.astype(float), (5, 10), mode="reflect", truncate=8)
    np.testing.assert_allclose(smooth_density(counts, (1000.0, 2000.0), 10_000.0) * 2, expected, atol=1e-6)


def test_a_single_nucleus_is_a_gaussian_of_the_stated_width():
    counts = np.zeros((201, 201), np.int32)
    counts[100, 100] = 1
    density = smooth_density(counts, (5.0, 10.0), 50.0)
    y, x = (np.mgrid[:201, :201] - 100) * np.array([10.0, 5.0])[:, None, None]
    expected = np.exp(-(x**2 + y**2) / (2 * 50**2)) / (2 * np.pi * 0.05**2)
    np.testing.assert_allclose(density, expected, atol=expected.max() * 0.002)


@given(st.floats(1e-3, 1e6))
def test_scales_end_at_a_round_number_not_far_above(value):
    top = _nice_top(value)
    assert value <= top <= 2.001 * value
    assert f"{top:.0e}".startswith(("1", "2", "3", "4", "6", "8"))
    assert f"{top:.6e}"[1:8] == ".000000"


def test_the_gaussian_grows_with_the_pixels():
    assert [choose_sigma((p, p)) for p in (0.5, 33.0, 34.0, 1e6)] == [50, 50, 100, 5000]
    assert _nice_top(0.0) == 1


def test_a_grid_leaves_few_cells_empty():
    assert [_columns(n, (800, 600)) for n in (1, 2, 3, 4, 6)] == [1, 2, 3, 2, 3]
    assert _columns(6, (300, 1000)) < 3


def test_thumbnails_are_brought_to_a_size_that_holds_text():
    assert panel_shape(np.zeros((2048, 1024, 3))) == (720, 360)
    assert panel_shape(np.zeros((10, 40, 3))) == (90, 360)
    assert panel_shape(np.zeros((500, 600, 3))) == (500, 600)
    assert panel_shape(np.zeros((1, 5000, 3))) == (1, 720)


def test_heat_is_where_the_nuclei_are(tmp_path):
    thumbnail = np.full((400, 600, 3), 240, np.uint8)
    nuclei = at([(4500 + i, 1000 + i) for i in range(50)], classes=None, type=[0] * 50)
    path = tmp_path / "density.png"
    write_density(Stream(nuclei), thumbnail, path, bounds=(0, 0, 6000, 4000), mpp=0.25)
    picture = load(path).astype(int)[:, :600]  # the panel of all nuclei
    colourful = np.ptp(picture, axis=2) > 60
    title = next(row for row in range(100) if (picture[row] == picture[row, 0]).all() and picture[row, 0, 0] < 255)
    rows, cols = np.nonzero(colourful[title : title + 400])
    assert abs(rows.mean() - 102) < 3
    assert abs(cols.mean() - 452) < 3
    assert rows.max() - rows.min() < 8 * 50 / 2.5  # a pixel of the panel is 2.5 microns


@pytest.mark.parametrize("number", [1, 4, 100])
def test_the_error_of_nuclei_in_one_place_is_that_of_their_number(number):
    counts = np.zeros((80, 90), np.int32)
    counts[40, 45] = number
    for sigma in (20.0, 1.0):  # the second is narrower than the pixels allow
        error = relative_error(counts, (4.0, 5.0), sigma)
        np.testing.assert_allclose(error[38:43, 43:48], number**-0.5, rtol=0.01)  # one place: the same all around
    assert np.isinf(relative_error(counts * 0, (4.0, 5.0), 20.0)).all()


def test_colours_stay_on_the_tissue_and_few_nuclei_have_no_map(tmp_path):
    thumbnail, tissue = np.full((400, 600, 3), 240, np.uint8), np.zeros((20, 30), bool)
    tissue[:, 15:] = True
    points = [(x, y) for x in (2880 - 15, 3120) for y in np.linspace(1900, 2100, 40)]
    pictures = []
    for kept in (len(points), 49):
        nuclei = at(points[:kept], classes=None, type=[0] * kept)
        args = {"bounds": (0, 0, 6000, 4000), "mpp": 0.25, "tissue": tissue}
        write_density(Stream(nuclei), thumbnail, tmp_path / "a.png", **args)
        pictures.append(np.ptp(load(tmp_path / "a.png").astype(int), axis=2) > 60)
    assert pictures[0][:350, 305:600].any()
    assert not pictures[0][:350, :295].any()
    assert not pictures[1].any()


def test_the_edge_of_the_tissue_is_drawn_with_its_name_and_a_scale_bar(tmp_path):
    tissue = np.zeros((20, 30), bool)
    tissue[5:15, 10:20] = True
    empty, path = Nuclei.empty(classes=PANNUKE), tmp_path / "a.png"
    sizes = []
    for where in ({}, {"tissue": tissue}, {"tissue": tissue, "mpp": 0.5}, {"tissue": tissue | True}):
        write_slide_overlay(Stream(empty), PINK, path, bounds=(0, 0, 600, 400), **where)
        picture = load(path)
        dark = (picture[:200] < 80).all(axis=2)
        assert dark.any() == ("tissue" in where and not where["tissue"].all())
        if dark.any():
            rows, cols = np.nonzero(dark)
            assert (rows.min(), rows.max(), cols.min(), cols.max()) == (50, 149, 100, 199)
        sizes.append((picture[200:] < 80).all(axis=2).sum())
    assert sizes[0] == sizes[3] < sizes[1] < sizes[2]


def test_there_is_a_panel_for_all_and_for_each_type_that_occurs(tmp_path):
    panels = []
    for kinds in ([0, 0], [1, 1], [1, 3], [1, 3, 0]):
        nuclei = at([(500.0 * i + 200, 900) for i in range(len(kinds))], type=kinds, classes=PANNUKE)
        write_density(Stream(nuclei), np.full_like(PINK, 0), tmp_path / "a.png", bounds=(0, 0, 3000, 2000), mpp=0.5)
        # tissue as dark as this is the same grey wherever there are no nuclei, such as at the top of each panel
        tissue = (load(tmp_path / "a.png") == round(255 * 0.45)).all(axis=2)
        panels.append(count_parts(tissue))
    assert panels == [1, 2, 3, 4]


def count_parts(mask):
    """Number of connected parts of more than some pixels."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return int((stats[1:, cv2.CC_STAT_AREA] > 2000).sum())


@pytest.mark.parametrize("mpp", [(0.25, 0.5), 0.25])
def test_microns_may_differ_along_x_and_y(tmp_path, mpp):
    write_density(Stream(many(50)), PINK, tmp_path / "a.png", bounds=WIDE, mpp=mpp, sigma_um=300.0)
    write_closeups(Stream(many(50)), Pixels(WIDE), tmp_path / "b.png", mpp=mpp)
    slide = Pixels(WIDE)
    write_closeups(Stream(many(50)), slide, tmp_path / "b.png", mpp=mpp, count=1)
    assert slide.read[0][2:] == ((512, 256) if isinstance(mpp, tuple) else (512, 512))


# close-ups


def dense(seed=0, bounds=(300, 200, 4000, 3000)):
    """Nuclei everywhere, and more in three places."""
    rng = np.random.default_rng(seed)
    low, high = np.array(bounds[:2]), np.array(bounds[:2]) + bounds[2:]
    spots = [(1000, 900), (3000, 2500), (3900, 800)]
    points = [rng.uniform(low, high, (150, 2))] + [
        rng.normal(s, 60, (n, 2)) for s, n in zip(spots, (90, 70, 50), strict=True)
    ]
    return at(np.concatenate(points).clip(low + 20, high - 20).tolist(), type=rng.integers(1, 6, 360))


def test_the_densest_places_are_shown_in_order_and_do_not_overlap(tmp_path):
    slide = Pixels((300, 200, 4000, 3000))
    write_closeups(Stream(dense()), slide, tmp_path / "a.png", mpp=0.25, count=4)
    assert len(slide.read) == 4
    for (x, y, width, height), spot in zip(slide.read, [(1000, 900), (3000, 2500), (3900, 800)], strict=False):
        assert (width, height) == (512, 512)
        assert abs(x + 256 - spot[0]) < 200
        assert abs(y + 256 - spot[1]) < 200
    for (x0, y0, w, h), (x1, y1, _, _) in combinations(slide.read, 2):
        assert abs(x0 - x1) >= w or abs(y0 - y1) >= h
    for x, y, width, height in slide.read:
        assert 300 <= x <= x + width <= 4300
        assert 200 <= y <= y + height <= 3200


@given(
    st.lists(st.tuples(st.floats(-5, 60), st.floats(-5, 60)), max_size=25),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.integers(1, 5),
)
@settings(max_examples=100)
def test_places_hold_as_many_nuclei_as_any_other_and_lie_on_the_slide(points, area, count):
    bounds = (3, 7, *area)
    size = (min(16, area[0]), min(8, area[1]))
    nuclei = at(points)
    found = _densest(Stream(nuclei), bounds, size, count)
    x, y = nuclei.centroid.T
    number = lambda a, b: int(((x >= a) & (x < a + size[0]) & (y >= b) & (y < b + size[1])).sum())  # noqa: E731
    for left, top, width, height in found:
        assert (width, height) == size
        assert 3 <= left <= 3 + area[0] - width
        assert 7 <= top <= 7 + area[1] - height
    if min(area) >= 16:
        steps = [(3 + i * 4, 7 + j * 2) for i in range(area[0] // 4 - 3) for j in range(area[1] // 2 - 3)]
        best = max(number(a, b) for a, b in steps)
        assert (number(*found[0][:2]) if found else 0) == best
        for one, other in combinations(found, 2):
            assert abs(one[0] - other[0]) >= size[0] or abs(one[1] - other[1]) >= size[1]


def test_a_close_up_shows_the_pixels_of_the_slide_with_outlines_in_place(tmp_path):
    slide = Pixels()
    nuclei = at([(1000.5, 700.5), (1040.5, 730.5), (3000.5, 2000.5)], type=[1, 3, 5], side=24.0)
    write_closeups(Stream(nuclei), slide, tmp_path / "a.png", mpp=0.25, count=1)
    (x, y, width, height) = slide.read[0]
    assert (width, height) == (512, 512)
    picture = load(tmp_path / "a.png")
    top = next(r for r in range(100) if picture[r, 0].tolist() == [x % 200, y % 200, 77])
    panel = picture[top : top + 512, :512]
    left, above = 1000 - x - 12, 700 - y - 12
    # smoothing mixes in a little of the slide
    np.testing.assert_allclose(panel[above + 12, left], PANNUKE.colors[1], atol=20)
    np.testing.assert_allclose(panel[730 - y, 1040 - x - 12], PANNUKE.colors[3], atol=20)
    untouched = (panel[..., 2] == 77).mean()
    assert untouched > 0.99
    raw = slide.read_region(x, y, 512, 512)
    np.testing.assert_array_equal(panel[..., :2][panel[..., 2] == 77], raw[..., :2][panel[..., 2] == 77])


def test_coarse_slides_are_enlarged_and_small_ones_shown_whole(tmp_path):
    slide = Pixels()
    write_closeups(Stream(at([(1000.0, 700.0)])), slide, tmp_path / "a.png", mpp=1.0, count=1)
    assert slide.read[0][2:] == (128, 128)
    assert load(tmp_path / "a.png").shape[1] == 512
    small = Pixels((50, 60, 100, 90))
    write_closeups(Stream(at([(70.0, 80.0), (120.0, 110.0)])), small, tmp_path / "b.png", mpp=0.25)
    assert small.read == [(50, 60, 100, 90)]


def test_a_nucleus_cut_by_the_edge_of_a_place_is_drawn_but_not_counted(tmp_path):
    inside = at([(1000.0 + 30 * i, 700.0) for i in range(8)])
    slide = Pixels()
    write_closeups(Stream(inside), slide, tmp_path / "a.png", mpp=0.25, count=1)
    x, y, *_ = slide.read[0]
    cut = replace(at([(x - 5.0, y + 100.0)], type=[2], side=40.0))
    both = Nuclei.concatenate([inside, cut])
    write_closeups(Stream(both), Pixels(), tmp_path / "b.png", mpp=0.25, count=1)
    one, two = load(tmp_path / "a.png"), load(tmp_path / "b.png")
    changed = np.argwhere((one != two).any(axis=2))
    assert len(changed) > 20
    assert changed[:, 1].max() < 30  # nothing but the outline at the left edge: no text has changed


# all of them


def writers(bounds=WIDE):
    return {
        "overlay": lambda nuclei, path: write_slide_overlay(Stream(nuclei), PINK, path, bounds=bounds),
        "density": lambda nuclei, path: write_density(Stream(nuclei), PINK, path, bounds=bounds, mpp=0.25),
        "closeups": lambda nuclei, path: write_closeups(Stream(nuclei), Pixels(bounds), path, mpp=0.25),
    }


@pytest.mark.parametrize("name", writers())
@pytest.mark.parametrize(
    "nuclei", [Nuclei.empty(), Nuclei.empty(classes=PANNUKE), at([(-500.0, 9.0), (90_000.0, 9.0)])]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_slides_without_nuclei_give_a_picture(tmp_path, name, nuclei, suffix):
    path = tmp_path / f"a{suffix}"
    writers()[name](nuclei, path)
    assert load(path).shape[2] == 3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", writers())
def test_nuclei_without_types_or_outlines_can_be_drawn(tmp_path, name):
    for nuclei in (
        replace(many(30), classes=None),
        at([(100.0, 100.0)], classes=None, type=[-1]),
        make_nuclei([[], []]),
    ):
        for bounds in (WIDE, (0, 0, 500, 400), (0, 0, 3, 2)):
            writers(bounds)[name](nuclei, tmp_path / "a.png")
            assert min(load(tmp_path / "a.png").shape[:2]) > 20


@pytest.mark.parametrize("name", writers())
def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(tmp_path, name):
    write = writers()[name]
    with pytest.raises(ConfigError, match=r"use \.png"):
        write(many(3), tmp_path / "a.xyz")
    with pytest.raises(OutputError, match="create it first"):
        write(many(3), tmp_path / "none" / "a.png")
    broken = many(3)
    broken.centroid[1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        write(broken, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_work_are_refused(tmp_path):
    path, stream = tmp_path / "a.png", Stream(many(3))
    with pytest.raises(ConfigError, match="have no area"):
        write_slide_overlay(stream, PINK, path, bounds=(0, 0, 0, 5))
    with pytest.raises(ConfigError, match="have no area"):
        write_density(stream, PINK, path, bounds=(0, 0, 5, -1), mpp=0.5)
    with pytest.raises(ImageError, match="give uint8"):
        write_slide_overlay(stream, PINK[..., 0], path, bounds=WIDE)
    with pytest.raises(ImageError, match="give uint8"):
        write_density(stream, PINK / 255, path, bounds=WIDE, mpp=0.5)
    for mpp in (0.0, float("nan"), (0.5, -1.0)):
        with pytest.raises(ConfigError, match="microns per pixel"):
            write_density(stream, PINK, path, bounds=WIDE, mpp=mpp)
        with pytest.raises(ConfigError, match="microns per pixel"):
            write_closeups(stream, Pixels(), path, mpp=mpp)
    with pytest.raises(ConfigError, match="smooths nothing"):
        write_density(stream, PINK, path, bounds=WIDE, mpp=0.5, sigma_um=0.0)
    with pytest.raises(ConfigError, match="at least one"):
        write_closeups(stream, Pixels(), path, mpp=0.5, count=0)
    assert stream.passes == 0


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_a_page_shows_every_panel_whole(shapes, columns, gap):
    panels = [np.full((*shape, 3), i + 1, np.uint8) for i, shape in enumerate(shapes)]
    page = arrange(panels, columns, gap=gap)
    for i, panel in enumerate(panels):
        assert (page == i + 1).all(axis=2).sum() == panel.shape[0] * panel.shape[1]
