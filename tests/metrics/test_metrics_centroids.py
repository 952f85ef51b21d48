"""Matching of centroids and the scores of detection, as pure functions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellvit.errors import ConfigError, DataError
from cellvit.metrics.functional import (
    detection_scores,
    match_centroids,
    pairs_within,
    type_counts,
    type_detection_scores,
)


def points(top=6):
    # 32 bits: the squares of smaller distances would be 0 in 64 bits
    return st.integers(0, top).flatmap(
        lambda n: hnp.arrays(np.float64, (n, 2), elements=st.floats(0, 40, width=32, allow_subnormal=False))
    )


def slow_total(pred, target):
    """The least total distance of any one-to-one assignment of the smaller set."""
    if len(pred) > len(target):
        pred, target = target, pred
    totals = [
        sum(math.dist(pred[i], target[j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(len(target)), len(pred))
    ]
    return min(totals)


@settings(max_examples=50, deadline=None)
@given(points(5), points(5))
def test_the_assignment_has_the_least_total_distance(pred, target):
    match = match_centroids(pred, target, radius=1000)
    total = sum(math.dist(pred[i], target[j]) for i, j in match.pairs)
    assert len(match.pairs) == min(len(pred), len(target))
    assert total == pytest.approx(slow_total(pred, target), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(points(), points(), st.floats(0, 30))
def test_every_point_is_in_exactly_one_place_and_pairs_are_near(pred, target, radius):
    match = match_centroids(pred, target, radius=radius)
    assert sorted([*match.pairs[:, 0], *match.unmatched_pred]) == list(range(len(pred)))
    assert sorted([*match.pairs[:, 1], *match.unmatched_target]) == list(range(len(target)))
    assert all(math.dist(pred[i], target[j]) <= radius * (1 + 1e-9) for i, j in match.pairs)
    everything = match_centroids(pred, target, radius=1000)
    assert {tuple(p) for p in match.pairs} <= {tuple(p) for p in everything.pairs}


def test_the_radius_is_applied_after_the_assignment():
    # Totals: 0 + 12.4 for the straight assignment, 3.6 + 10 for the crossed one. The straight one wins and then loses
    # its second pair to the radius, although the crossed one would have kept both.
    pred, target = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[0.0, 0.0], [-2.0, 3.0]])
    match = match_centroids(pred, target, radius=12)
    assert match.pairs.tolist() == [[0, 0]]
    assert match.unmatched_pred.tolist() == match.unmatched_target.tolist() == [1]


def slow_most_pairs(pred, target, radius):
    if len(pred) > len(target):
        pred, target = target, pred
    return max(
        sum(math.dist(pred[i], target[j]) <= radius for i, j in enumerate(order))
        for order in itertools.permutations(range(len(target)), len(pred))
    )


@settings(max_examples=50, deadline=None)
@given(points(5), points(5), st.integers(0, 30))
def test_pairs_within_the_radius_are_as_many_as_can_be(pred, target, radius):
    found = pairs_within(pred, target, radius=radius)
    assert found == pairs_within(target, pred, radius=radius)
    # a distance that is the radius up to rounding may count or not
    assert slow_most_pairs(pred, target, radius - 1e-9) <= found <= slow_most_pairs(pred, target, radius + 1e-9)
    assert found >= len(match_centroids(pred, target, radius=radius).pairs)


def test_the_radius_is_inclusive():
    pred, target = np.array([[0, 0]]), np.array([[0, 12]])
    assert pairs_within(pred, target, radius=12) == 1
    assert pairs_within(pred, target, radius=11.999) == 0
    assert len(match_centroids(pred, target, radius=12).pairs) == 1
    assert len(match_centroids(pred, target, radius=11.999).pairs) == 0


@pytest.mark.parametrize("none", [np.zeros((0, 2)), np.zeros(0), np.array([])])
def test_no_points(none):
    some = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert match_centroids(none, some, radius=12).unmatched_target.tolist() == [0, 1]
    assert match_centroids(some, none, radius=12).unmatched_pred.tolist() == [0, 1]
    both = match_centroids(none, none, radius=12)
    assert both.pairs.shape == (0, 2)
    assert len(both.unmatched_pred) == len(both.unmatched_target) == 0


def test_scores_by_hand():
    score = detection_scores(6, 2, 4)
    assert score.precision == pytest.approx(6 / 8)
    assert score.recall == pytest.approx(6 / 10)
    assert score.f1 == pytest.approx(12 / 18)


def test_scores_of_nothing_are_nan_and_of_misses_zero():
    nothing = detection_scores(0, 0, 0)
    assert np.isnan([nothing.f1, nothing.precision, nothing.recall]).all()
    missed = detection_scores(0, 0, 3)
    assert (missed.f1, missed.recall) == (0, 0)
    assert np.isnan(missed.precision)


@settings(max_examples=50, deadline=None)
@given(points(), points(), st.data())
def test_type_scores_equal_the_slow_loop(pred, target, data):
    classes = 4
    pred_types = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(pred), max_size=len(pred))), int)
    target_types = np.array(data.draw(st.lists(st.integers(1, 3), min_size=len(target), max_size=len(target))), int)
    match = match_centroids(pred, target, radius=12)
    counts = type_counts(match, pred_types=pred_types, target_types=target_types, num_nuclei_classes=classes)
    scores = type_detection_scores(counts)
    for kind in range(1, classes):
        tp = fp = fn = 0
        for i, j in match.pairs:
            found, true = pred_types[i] == kind, target_types[j] == kind
            tp += found and true
            fp += found and not true
            fn += true and not found
        fp_d = sum(pred_types[i] == kind for i in match.unmatched_pred)
        fn_d = sum(target_types[j] == kind for j in match.unmatched_target)
        assert [c[kind] for c in counts] == [tp, fp, fn, fp_d, fn_d]
        expected = [
            (2 * tp, 2 * tp + 2 * fp + 2 * fn + fp_d + fn_d),
            (tp, tp + 2 * fp + fp_d),
            (tp, tp + 2 * fn + fn_d),
        ]
        for values, (part, whole) in zip(scores, expected, strict=True):
            assert values[kind] == pytest.approx(part / whole if whole else math.nan, nan_ok=True)


class TestBadInput:
    some = np.array([[1.0, 2.0]])

    @pytest.mark.parametrize("radius", [-1, float("nan")])
    def test_radius(self, radius):
        with pytest.raises(ConfigError, match="radius"):
            match_centroids(self.some, self.some, radius=radius)

    def test_shape(self):
        with pytest.raises(DataError, match=r"predicted points have shape \(1, 3\)"):
            match_centroids(np.zeros((1, 3)), self.some, radius=12)

    def test_not_finite(self):
        with pytest.raises(DataError, match=r"true point 1 is \[nan, 0.0\]"):
            match_centroids(self.some, np.array([[0, 0], [np.nan, 0]]), radius=12)

    def test_types(self):
        match = match_centroids(self.some, self.some, radius=12)
        one = np.array([1])
        with pytest.raises(DataError, match="one type per point"):
            type_counts(match, pred_types=np.array([1, 1]), target_types=one, num_nuclei_classes=3)
        with pytest.raises(DataError, match="true point is of type 3; there are 3 classes"):
            type_counts(match, pred_types=one, target_types=np.array([3]), num_nuclei_classes=3)
        with pytest.raises(DataError, match="predicted point is of type -1"):
            type_counts(match, pred_types=-one, target_types=one, num_nuclei_classes=3)
