"""Polygons from maps: against suppression one by one, on drawn nuclei, and at the edges of what can be given."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_nuclei import draw_ellipses
from support.drawn_stars import counted, exact, noisy_star_maps, polygons_of, star_maps, suppress_one_by_one

from cellvit.errors import ConfigError, DataError
from cellvit.plugins.components import build
from cellvit.postprocess import POSTPROCESSORS, StarPostprocessor
from cellvit.postprocess.nms import Shapes, non_maximum_suppression
from cellvit.testing import PostprocessorContract


class TestStarNMS(PostprocessorContract):
    def make(self):
        return StarPostprocessor()

    def maps(self):
        return star_maps(draw_ellipses(12, (130, 150), radius=(8, 12), gap=3, seed=1))

    def empty_maps(self):
        return star_maps(np.zeros((48, 64), np.int32))


def random_shapes(seed, *, num=40, size=40, radius=(2, 12), num_rays=32, ties=False):
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(size * size, num, replace=False))
    distances = rng.uniform(*radius, (num, 1)) * rng.uniform(0.6, 1.4, (num, num_rays))
    prob = rng.choice([0.5, 0.7, 0.9], num) if ties else rng.random(num)
    return Shapes(at % size, at // size, distances.astype(np.float32)), prob.astype(np.float32)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    threshold=st.sampled_from([0.0, 0.2, 0.4, 0.7]),
    num_rays=st.sampled_from([3, 8, 32]),
    ties=st.booleans(),
)
def test_suppression_equals_the_rule_one_by_one(seed, threshold, num_rays, ties):
    shapes, prob = random_shapes(seed, num_rays=num_rays, ties=ties)
    kept, pixels = non_maximum_suppression(shapes, prob, threshold=threshold)
    assert kept.tolist() == suppress_one_by_one(*shapes, prob, threshold)
    assert len(pixels) == len(kept)


@pytest.mark.parametrize("radius", [(0.05, 2), (15, 60)])
def test_very_small_and_very_large_shapes_equal_the_rule_too(radius):
    for seed in range(5):
        shapes, prob = random_shapes(seed, radius=radius, size=80)
        kept, _ = non_maximum_suppression(shapes, prob, threshold=0.3)
        assert kept.tolist() == suppress_one_by_one(*shapes, prob, 0.3)


def test_suppression_on_maps_of_nuclei_equals_the_rule():
    maps = noisy_star_maps(draw_ellipses(30, (110, 120), seed=3))
    prob = maps["object_probability"][0]
    y, x = np.nonzero(prob >= 0.7)
    assert len(x) > 300
    shapes = Shapes(x, y, maps["radial_distances"][:, y, x].T)
    kept, _ = non_maximum_suppression(shapes, prob[y, x], threshold=0.4)
    assert kept.tolist() == suppress_one_by_one(*shapes, prob[y, x], 0.4)
    assert 20 < len(kept) < 60


@pytest.mark.parametrize("radius", [(4, 8), (8, 12), (15, 40), (80, 120)])
def test_overlap_in_pixels_is_close_to_that_of_the_polygons(radius):
    shapes, _ = random_shapes(0, radius=radius, num=25, size=int(2 * radius[0]))
    polygons = polygons_of(*shapes)
    errors = [
        (counted(a, b, x, y) - exact(a, b)) / min(a.area, b.area)
        for a, x, y in zip(polygons, shapes.x, shapes.y, strict=True)
        for b in polygons
    ]
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.03


def shape_iou(labels, instances, label):
    """Return the best overlap of a drawn nucleus with a found one."""
    mask = instances == label
    found = np.bincount(labels[mask])
    found[0] = 0
    best = int(found.argmax())
    return found[best] / (mask | (labels == best)).sum() if found[best] else 0.0


@settings(max_examples=8)
@given(seed=st.integers(0, 2**20), radius=st.sampled_from([(4, 7), (6, 13), (15, 30)]))
def test_separated_nuclei_come_back_from_their_targets(seed, radius):
    instances = draw_ellipses(12, (128, 160), radius=radius, gap=2, seed=seed)
    # An ellipse whose tip only shows at the border is no nucleus that could come back.
    small = np.flatnonzero(np.bincount(instances.ravel()) < 12)
    instances[np.isin(instances, small)] = 0
    prediction = StarPostprocessor()(star_maps(instances))
    drawn = np.unique(instances[instances > 0])
    assert len(prediction.nuclei) == len(drawn)
    assert min((shape_iou(prediction.instance_map, instances, i) for i in drawn), default=1) > 0.8


def test_touching_nuclei_come_back_from_noisy_maps():
    instances = draw_ellipses(110, (256, 320), seed=1)
    prediction = StarPostprocessor()(noisy_star_maps(instances))
    found = [shape_iou(prediction.instance_map, instances, i) > 0.5 for i in range(1, instances.max() + 1)]
    assert np.mean(found) > 0.9
    assert abs(len(prediction.nuclei) - len(found)) < 0.1 * len(found)


def test_the_more_probable_of_two_lies_on_top_and_ids_follow_the_reading_order():
    prob, distances = np.zeros((1, 30, 40), np.float32), np.full((32, 30, 40), 6, np.float32)
    prob[0, 15, 22], prob[0, 14, 12] = 0.9, 0.8
    prediction = StarPostprocessor()({"object_probability": prob, "radial_distances": distances})
    assert prediction.instance_map[14, 12] == 1
    assert prediction.instance_map[15, 22] == 2
    assert prediction.instance_map[15, 17] == 2  # in both
    assert (prediction.instance_map == 2).sum() == 113  # pixels in a circle of radius 6, of 32 corners
    assert len(prediction.nuclei) == 2


def test_a_nucleus_that_others_cover_is_none():
    """Each of its neighbours shares less than the threshold with it, and together they hide it."""
    prob, distances = np.zeros((1, 40, 40), np.float32), np.full((32, 40, 40), 3, np.float32)
    prob[0, 20, 20] = 0.6
    for col in (16, 24):
        prob[0, 20, col], distances[:, 20, col] = 0.9, 5.5
    y, x = np.nonzero(prob[0])
    kept, _ = non_maximum_suppression(Shapes(x, y, distances[:, y, x].T), prob[0, y, x], threshold=0.9)
    assert len(kept) == 3
    maps = {"object_probability": prob, "radial_distances": distances}
    prediction = StarPostprocessor(nms_threshold=0.9)(maps)
    assert np.unique(prediction.instance_map).tolist() == [0, 1, 2]
    assert len(prediction.nuclei) == 2


def test_types_are_counted_in_the_nuclei():
    instances = draw_ellipses(6, (80, 90), gap=3, seed=2)
    maps = star_maps(instances)
    plain = StarPostprocessor()(maps).nuclei
    assert (plain.type == 1).all()
    assert ((plain.type_prob > 0.2) & (plain.type_prob < 0.8)).all()  # mean object probability
    types = (1 + np.indices(instances.shape)[1] // 45).astype(np.int16)
    nuclei = StarPostprocessor()(maps | {"nuclei_type_map": types}).nuclei
    for row, label in enumerate(nuclei.label):
        assert label == row + 1
        assert nuclei.type[row] == (1 if nuclei.centroid[row][0] < 44.5 else 2)
    probabilities = np.stack([types == 0, types == 1, types == 2]).astype(np.float32)
    again = StarPostprocessor()(maps | {"nuclei_type_map": probabilities}).nuclei
    assert again.type.tolist() == nuclei.type.tolist()


def test_no_candidates_give_all_columns():
    maps = star_maps(np.zeros((32, 48), np.int32))
    prediction = StarPostprocessor()(maps | {"embedding_map": np.zeros((7, 2, 3), np.float32)})
    assert prediction.instance_map.shape == (32, 48)
    assert prediction.nuclei.contour_points.shape == (0, 2)
    assert prediction.nuclei.embedding.shape == (0, 7)


def test_one_nucleus_that_fills_the_image():
    prediction = StarPostprocessor()(star_maps(np.ones((40, 40), np.int32)))
    assert len(prediction.nuclei) == 1
    assert (prediction.instance_map > 0).mean() > 0.97


def test_every_pixel_a_candidate():
    maps = {"object_probability": np.ones((1, 64, 48), np.float32), "radial_distances": np.full((32, 64, 48), 5.0)}
    prediction = StarPostprocessor()({k: v.astype(np.float32) for k, v in maps.items()})
    assert prediction.instance_map[0, 0] == 1  # of equals, the first in reading order
    assert len(prediction.nuclei) > 30
    assert (prediction.instance_map > 0).mean() > 0.9


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30])
def test_distances_without_extent_are_no_nuclei(value):
    maps = star_maps(np.ones((20, 20), np.int32))
    distances = np.full_like(maps["radial_distances"], value)
    assert len(StarPostprocessor()(maps | {"radial_distances": distances}).nuclei) == 0


def test_rays_are_cut_at_the_largest_distance():
    prob, distances = np.zeros((1, 90, 90), np.float32), np.full((32, 90, 90), 1e6, np.float32)
    prob[0, 45, 45] = 1
    nuclei = StarPostprocessor(max_distance=20)({"object_probability": prob, "radial_distances": distances}).nuclei
    assert nuclei.bbox.tolist() == [[25, 25, 66, 66]]


def test_thresholds():
    instances = draw_ellipses(8, (80, 90), gap=3, seed=4)
    maps = star_maps(instances)
    assert len(StarPostprocessor(prob_threshold=1.0)(maps).nuclei) == 8
    lower = {name: value * 0.4 if name == "object_probability" else value for name, value in maps.items()}
    assert len(StarPostprocessor()(lower).nuclei) == 0
    assert len(StarPostprocessor(prob_threshold=0.2)(lower).nuclei) == 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_number_types(dtype):
    maps = {name: value.astype(dtype) for name, value in star_maps(draw_ellipses(8, (80, 90), gap=3, seed=4)).items()}
    assert len(StarPostprocessor()(maps).nuclei) == 8


@pytest.mark.parametrize("name", ["object_probability", "radial_distances"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(name, value):
    maps = star_maps(draw_ellipses(4, (48, 64), seed=0))
    maps[name][0, 3, 4] = value
    with pytest.raises(DataError, match=f"{name} holds 1 values"):
        StarPostprocessor()(maps)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("object_probability", np.zeros((8, 9), np.float32), r"\(1, H, W\)"),
        ("object_probability", np.zeros((2, 8, 9), np.float32), r"\(2, 8, 9\)"),
        ("object_probability", np.zeros((1, 8, 9), np.int64), "int64"),
        ("object_probability", np.zeros((1, 0, 9), np.float32), "at least one pixel"),
        ("radial_distances", np.zeros((32, 9, 9), np.float32), r"\(K, 8, 9\)"),
        ("radial_distances", np.zeros((2, 8, 9), np.float32), "at least 3 rays"),
        ("radial_distances", np.zeros((1, 32, 8, 9), np.float32), "without a batch axis"),
    ],
)
def test_maps_of_another_form_are_refused(name, value, message):
    maps = star_maps(np.zeros((8, 9), np.int32))
    with pytest.raises(DataError, match=message):
        StarPostprocessor()(maps | {name: value})


@pytest.mark.parametrize(
    "setting",
    [
        {"prob_threshold": 0},
        {"prob_threshold": 1.1},
        {"nms_threshold": 1},
        {"nms_threshold": -0.1},
        {"max_distance": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        StarPostprocessor(**setting)


def test_it_is_built_by_name_and_remembers_its_settings():
    built = build(POSTPROCESSORS, {"class_path": "star-nms", "init_args": {"prob_threshold": 0.3}})
    assert isinstance(built, StarPostprocessor)
    assert built.init_args == {"prob_threshold": 0.3}


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_image_turns_the_nuclei(turns):
    instances = draw_ellipses(10, (90, 90), gap=3, seed=6)
    found = StarPostprocessor()(star_maps(instances)).instance_map
    turned = StarPostprocessor()(star_maps(np.rot90(instances, turns))).instance_map
    back = np.rot90(turned, -turns)
    assert found.max() == back.max() == instances.max()
    assert ((found > 0) == (back > 0)).mean() > 0.98  # which of equally central pixels proposes may differ


def test_half_precision_maps_of_a_network():
    maps = {k: torch.from_numpy(v).bfloat16().float().numpy() for k, v in TestStarNMS().maps().items()}
    assert len(StarPostprocessor()(maps).nuclei) == 12
