from dataclasses import replace

import numpy as np
import pytest
from export_samples import PANNUKE, make_nuclei, many, nuclei, square
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cellvit.classes import type_color
from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.plotting import draw_comparison, draw_instances, draw_overlay, write_overlay
from cellvit.plotting.legend import draw_legend, legend_entries, scale_bar_um
from cellvit.types import Nuclei

PINK = np.full((64, 80, 3), (230, 180, 200), np.uint8)


def test_outlines_have_the_colours_of_their_types_and_the_image_stays():
    before = PINK.copy()
    # sides through the centres of pixels, so that their lines are one pixel wide
    table = make_nuclei([square(4.5, 4.5), square(30.5, 10.5)], type=[1, 3])
    drawn = draw_overlay(PINK, table, legend=False)
    assert drawn.shape == PINK.shape
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(PINK, before)
    # smoothing mixes in a little of the image
    np.testing.assert_allclose(drawn[8, 4], PANNUKE.colors[1], atol=20)
    np.testing.assert_allclose(drawn[14, 38], PANNUKE.colors[3], atol=20)
    assert drawn[8, 8].tolist() == [230, 180, 200]
    assert drawn[40, 60].tolist() == [230, 180, 200]


def test_the_legend_lies_below_the_tissue_and_lists_every_class():
    for table in (Nuclei.empty(classes=PANNUKE), Nuclei.empty(), make_nuclei([square(4, 4)], classes=None)):
        bare = draw_overlay(PINK, table, legend=False)
        full = draw_overlay(PINK, table)
        np.testing.assert_array_equal(full[:64, :80], bare)
        assert full.shape[0] > 64
        assert (full[64:] < 128).any()  # there is text
    np.testing.assert_array_equal(draw_overlay(PINK, Nuclei.empty(), legend=False), PINK)
    full = draw_overlay(PINK, Nuclei.empty(classes=PANNUKE))
    found = {tuple(c) for c in full[64:].reshape(-1, 3).tolist()}
    assert set(PANNUKE.colors[1:]) <= found


def test_legend_counts():
    table = make_nuclei([square(0, 0)] * 4, type=[1, 1, 7, 0])
    names = [text for _, text in legend_entries(table)]
    expected = [
        "4 nuclei",
        "Neoplastic: 2",
        "Inflammatory: 0",
        "Connective: 0",
        "Dead: 0",
        "Epithelial: 0",
        "Type 7: 1",
    ]
    assert names == [*expected, "No type: 1"]
    assert legend_entries(make_nuclei([square(0, 0)], type=[0], classes=None)) == [(None, "1 nucleus")]


def test_the_legend_says_what_the_types_were_learnt_on():
    classes = replace(PANNUKE, learnt_on="colon (CoNSeP)")
    table = make_nuclei([square(0, 0)], type=[1], classes=classes)
    assert legend_entries(table)[-1] == (None, "types learnt on colon (CoNSeP)")


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(1, 900))
@settings(max_examples=25)
def test_legend_entries_stay_inside_the_panel(texts, width):
    clean = [" ".join(t.split()) for t in texts]
    panel = draw_legend([((255, 0, 0), t) for t in clean], width)
    assert panel.shape[1] >= width
    assert (panel[:, -3:] == 255).all()
    assert (panel[:2] == 255).all()


@given(nuclei())
@settings(max_examples=40)
def test_any_nuclei_can_be_drawn(given_nuclei):
    assert draw_overlay(PINK, given_nuclei, legend=False).shape == PINK.shape


def test_nuclei_far_outside_and_images_of_one_pixel_can_be_drawn():
    far = make_nuclei([square(1e9, -1e12), []])
    assert draw_overlay(np.zeros((1, 1, 3), np.uint8), far).shape[2] == 3
    np.testing.assert_array_equal(draw_overlay(PINK, far.select(np.array([0])), legend=False), PINK)


def test_a_nucleus_without_outline_is_a_dot():
    drawn = draw_overlay(PINK, make_nuclei([[]]), legend=False)
    assert drawn[7, 6].tolist() == list(PANNUKE.colors[1])


@pytest.mark.parametrize(("side", "factor"), [(80, 10), (768, 1), (300, 3), (1, 768)])
def test_small_images_are_enlarged_by_a_whole_factor_with_their_nuclei(side, factor):
    image = np.full((max(1, side // 2), side, 3), 200, np.uint8)
    drawn = draw_overlay(image, make_nuclei([square(4, 4)]), legend=False, min_side=768, thickness=1)
    assert drawn.shape == (image.shape[0] * factor, side * factor, 3)
    if side > 1:
        rows, cols = np.nonzero((drawn != 200).any(axis=2))
        np.testing.assert_allclose([rows.mean(), cols.mean()], factor * 8 - 0.5, atol=0.6)


@pytest.mark.parametrize(("width", "pixel_um"), [(1024, 0.25), (768, 0.083), (900, 14.2)])
def test_the_scale_bar_is_as_long_as_it_says(width, pixel_um):
    bar = scale_bar_um(width, pixel_um)
    with_bar = draw_legend([], width, size=20, pixel_um=pixel_um)
    longest = max(len(run) for row in with_bar for run in np.split(*runs((row == 30).all(axis=1))))
    assert longest + 2 == pytest.approx(round(bar / pixel_um), abs=1)  # the frame is of another grey
    assert width / 13 < bar / pixel_um <= width / 5


def runs(mask):
    """Positions of a mask's true pixels, and where to cut them into runs."""
    places = np.flatnonzero(mask)
    return places, np.flatnonzero(np.diff(places) > 1) + 1


def test_written_pictures_are_what_was_drawn_and_runs_agree(tmp_path):
    table = make_nuclei([square(4, 4)])
    for name in ("a.png", "b.PNG", "c.tif"):
        write_overlay(PINK, table, tmp_path / name)
        with Image.open(tmp_path / name) as file:
            np.testing.assert_array_equal(np.asarray(file), draw_overlay(PINK, table, min_side=768))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    for name in ("a.xyz", "a"):
        with pytest.raises(ConfigError, match=r"use \.png"):
            write_overlay(PINK, table, tmp_path / name)


@pytest.mark.parametrize(
    "image", [PINK[..., 0], PINK.astype(float), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_images_are_refused(image):
    for draw in (lambda: draw_overlay(image, many(0)), lambda: draw_comparison(image, many(0), many(0))):
        with pytest.raises(ImageError, match="give uint8"):
            draw()


def test_coordinates_that_are_not_finite_are_refused():
    table = make_nuclei([square(4, 4)])
    table.contour_points[0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        draw_overlay(PINK, table)


@given(hnp.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_instance_borders_are_those_of_the_loop(instance_map):
    height, width = instance_map.shape
    image = np.full((height, width, 3), 99, np.uint8)
    kinds = np.array([2, 5, 2])
    drawn = draw_instances(image, instance_map, type=kinds, classes=PANNUKE)
    for row in range(height):
        for col in range(width):
            label, border = instance_map[row, col], False
            for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                inside = 0 <= r < height and 0 <= c < width
                border |= (instance_map[r, c] if inside else 0) != label
            expected = type_color(PANNUKE, kinds[label - 1]) if label and border else (99, 99, 99)
            assert tuple(drawn[row, col].tolist()) == expected


def test_instance_maps_that_do_not_fit_are_refused():
    with pytest.raises(ImageError, match="same size"):
        draw_instances(PINK, np.zeros((3, 3), int))
    for bad in (np.full((64, 80), 2), np.full((64, 80), -1)):
        with pytest.raises(ImageError, match="number instances"):
            draw_instances(PINK, bad, type=np.array([1]))
    np.testing.assert_array_equal(draw_instances(PINK, np.zeros((64, 80), int)), PINK)
    assert draw_instances(PINK, np.ones((64, 80), np.int64))[0, 0].tolist() == [0, 220, 0]


@pytest.mark.parametrize("shape", [(256, 256), (1, 1), (40, 600), (700, 900)])
def test_comparisons_hold_three_equal_panels(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    table = make_nuclei([square(4, 4, 20)])
    picture = draw_comparison(image, table, Nuclei.empty())
    assert picture.dtype == np.uint8
    assert picture.shape[1] > 3 * shape[1]
    truth_is_red = (picture == PANNUKE.colors[1]).all(axis=2).any(axis=0)
    third = picture.shape[1] // 3
    assert not truth_is_red[:third].any()
    assert truth_is_red[third : 2 * third].any()


def test_lines_leave_the_inside_of_small_nuclei_to_be_seen_in_a_large_image():
    table = make_nuclei([square(100 + 20 * i, 100, 10) for i in range(5)])
    drawn = draw_overlay(np.full((3000, 3000, 3), 240, np.uint8), table, legend=False)
    inside = drawn[103:108, 103:108]
    assert (inside == 240).all()
