from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import shapes

from cellvit.errors import ConfigError
from cellvit.evaluation.bootstrap import MIN_IMAGES, image_weights, percentile_interval
from cellvit.evaluation.model_card.scores import SCORES, estimate_scores, image_sums, resampled_sums, scores_of
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.evaluation.scoring import ScoreSettings, pooled_scores, score_nuclei

CLASSES = ("Background", "Small", "Large")
SETTINGS = ScoreSettings(class_names=CLASSES, radius=4)


squares = partial(shapes.squares, shape=(48, 48))


def scored(truth, pred, true_types, pred_types):
    target = nuclei_from_labels(truth, None if true_types is None else np.array([0, *true_types]))
    return score_nuclei(nuclei_from_labels(pred, np.array([0, *pred_types])), target, SETTINGS)


def random_image(seed):
    rng = np.random.default_rng(seed)
    corners = [(r, c) for r in range(0, 40, 12) for c in range(0, 40, 12) if rng.random() < 0.6]
    moved = [(r + rng.integers(0, 4), c + rng.integers(0, 4)) for r, c in corners if rng.random() < 0.8]
    true_types = None if seed == 3 else rng.integers(1, 3, len(corners))  # one image without types
    return scored(squares(*corners), squares(*moved), true_types, rng.integers(0, 3, len(moved)))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(0, 99))
def test_every_stratum_keeps_its_size_and_the_seed_decides(strata, seed):
    weights = image_weights(strata, resamples=7, seed=seed)
    assert weights.shape == (7, len(strata))
    assert weights.min() >= 0
    for name in set(strata):
        members = np.array(strata) == name
        assert (weights[:, members].sum(axis=1) == members.sum()).all()
    np.testing.assert_array_equal(weights, image_weights(strata, resamples=7, seed=seed))


def test_every_image_is_drawn_equally_often_and_other_seeds_draw_others():
    weights = image_weights(["a", "b", "b", "b", "b"], resamples=4000, seed=0)
    assert (weights[:, 0] == 1).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.07)
    assert (weights == 0).any()
    assert (weights != image_weights(["a", "b", "b", "b", "b"], resamples=4000, seed=1)).any()


def test_a_resample_is_the_drawn_images_scored_again():
    images = [random_image(seed) for seed in range(6)]
    weights = image_weights(["a"] * 4 + ["b"] * 2, resamples=8, seed=5)
    assert (weights > 1).any()
    resampled = scores_of(resampled_sums(image_sums(images), weights), CLASSES)
    assert {*SCORES, "F1/Small", "P/Small", "R/Large", "PQ/Large"} <= resampled.keys()
    for row, counts in enumerate(weights):
        expected = pooled_scores([image for image, n in zip(images, counts, strict=True) for _ in range(n)])
        for name, values in resampled.items():
            assert values[row] == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    assert len(set(resampled["F1_d"])) > 1


def test_estimates_hold_the_pooled_scores():
    images = [random_image(seed) for seed in range(6)]
    estimates = estimate_scores(images, CLASSES, strata=["a"] * 6, resamples=400, seed=0)
    pooled = pooled_scores(images)
    for name in (*SCORES, "F1/Small", "PQ/Large"):
        found = estimates[name]
        assert found.value == pooled[name], name
        assert found.low < found.value < found.high, name


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    square = squares((4, 4))
    images = [scored(square, square if i < 5 else np.zeros_like(square), [1], [1] if i < 5 else []) for i in range(10)]
    found = estimate_scores(images, CLASSES, strata=["a"] * 10, resamples=4000, seed=0)["bPQ"]
    # images of quality 1 in a resample are binomial, 10 draws at 1/2: P(X <= 1) = 0.011, P(X <= 2) = 0.055
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.2, 0.8), abs=1e-5)


def test_fewer_than_three_images_have_no_interval():
    few = [random_image(seed) for seed in range(MIN_IMAGES - 1)]
    assert all(e.low is None and e.high is None for e in estimate_scores(few, CLASSES, **drawn(few)).values())


def test_only_images_with_a_say_count_for_an_interval():
    two, one = squares((4, 4), (24, 24)), squares((4, 4))
    images = [scored(two, two, [1, 2], [1, 2]) for _ in range(2)] + [scored(one, one, [1], [1]) for _ in range(2)]
    images += [scored(one, one, None, [1])]
    estimates = estimate_scores(images, CLASSES, **drawn(images))
    assert estimates["F1/Large"].value == 1
    assert estimates["F1/Large"].low is None  # it occurs in two images
    assert estimates["F1/Small"].low == 1
    empty = [scored(np.zeros_like(one), np.zeros_like(one), [], []) for _ in range(4)]
    nothing = estimate_scores([*empty, *images[:2]], CLASSES, **drawn([*empty, *images[:2]]))
    assert nothing["F1_d"].value == 1
    assert nothing["F1_d"].low is None
    assert all(np.isnan(e.value) and e.low is None for e in estimate_scores(empty, CLASSES, **drawn(empty)).values())


def drawn(images):
    return {"strata": ["a"] * len(images), "resamples": 50, "seed": 0}


def test_percentiles_leave_out_what_says_nothing():
    values = np.array([np.nan, *np.linspace(0, 1, 41), np.nan])
    assert percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()


@pytest.mark.parametrize(("strata", "resamples"), [([], 5), (["a"], 0)])
def test_nothing_to_draw(strata, resamples):
    with pytest.raises(ConfigError, match="at least one of both"):
        image_weights(strata, resamples=resamples, seed=0)
