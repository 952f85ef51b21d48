"""PQ, IoU, AJI, Dice and Jaccard against slow loops, by hand, and as properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellvit.errors import ConfigError, DataError
from cellvit.metrics.functional import (
    aggregated_jaccard,
    dice,
    instance_overlaps,
    jaccard,
    label_iou,
    match_instances,
    panoptic_quality,
    typed_panoptic_quality,
)


def maps(height=7, width=8, top=6):
    return hnp.arrays(np.int32, (height, width), elements=st.integers(0, top))


@st.composite
def similar_maps(draw):
    """Two maps that agree in most pixels, so that pairs above IoU 0.5 exist."""
    target = np.kron(draw(maps(3, 3, 5)), np.ones((3, 3), np.int32))
    noise, where = draw(maps(9, 9, 5)), draw(hnp.arrays(np.float64, (9, 9), elements=st.floats(0, 1)))
    return np.where(where > 0.8, noise, target), target


def labels_of(instances):
    return sorted(set(instances.ravel().tolist()) - {0})


def slow_iou(pred, target):
    """IoU of every pair of labels, one full-size mask per label."""
    result = {}
    for p in labels_of(pred):
        for t in labels_of(target):
            shared = int(((pred == p) & (target == t)).sum())
            result[p, t] = shared / int(((pred == p) | (target == t)).sum())
    return result


def slow_quality(pred, target, threshold=0.5):
    iou = slow_iou(pred, target)
    matched = [pair for pair, value in iou.items() if value > threshold]
    tp = len(matched)
    fp, fn = len(labels_of(pred)) - tp, len(labels_of(target)) - tp
    dq = tp / (tp + 0.5 * fp + 0.5 * fn + 1e-6)
    sq = sum(iou[pair] for pair in matched) / (tp + 1e-6)
    return dq, sq, dq * sq, tp, fp, fn


def slow_best_total(pred, target):
    """The largest total IoU of any one-to-one assignment."""
    iou, rows, columns = slow_iou(pred, target), labels_of(pred), labels_of(target)
    if len(rows) > len(columns):
        iou, rows, columns = {(t, p): v for (p, t), v in iou.items()}, columns, rows
    return max(sum(iou[pair] for pair in zip(rows, order, strict=False)) for order in itertools.permutations(columns))


def slow_aggregated_jaccard(pred, target):
    shared, union, used = 0, 0, set()
    for t in labels_of(target):
        mask = target == t
        best, best_iou = None, (0.0, 0)
        for p in labels_of(pred):
            common = ((pred == p) & mask).sum()
            value = (common / ((pred == p) | mask).sum(), common)
            if value > best_iou:
                best, best_iou = p, value
        if best is None:
            union += mask.sum()
        else:
            shared += ((pred == best) & mask).sum()
            union += ((pred == best) | mask).sum()
            used.add(best)
    union += sum((pred == p).sum() for p in labels_of(pred) if p not in used)
    return shared / union


@settings(max_examples=60, deadline=None)
@given(similar_maps())
def test_panoptic_quality_equals_the_slow_loop(pair):
    pred, target = pair
    score = panoptic_quality(pred, target)
    if not labels_of(target):
        assert np.isnan([score.dq, score.sq, score.pq]).all()
        assert score.fp == len(labels_of(pred))
    else:
        assert score[:6] == pytest.approx(slow_quality(pred, target))


@settings(max_examples=40, deadline=None)
@given(maps())
def test_a_map_against_itself_is_one(target):
    score = panoptic_quality(target, target)
    if labels_of(target):
        assert score.pq == pytest.approx(1, abs=1e-5)
        assert (score.tp, score.fp, score.fn) == (len(labels_of(target)), 0, 0)
        assert aggregated_jaccard(target, target) == 1
        assert dice(target, target) == jaccard(target, target) == 1


@settings(max_examples=40, deadline=None)
@given(similar_maps(), st.sampled_from([1, 1000, 10**9]), st.randoms(use_true_random=False))
def test_relabelling_changes_nothing(pair, step, random):
    pred, target = pair
    new = [step * k for k in random.sample(range(1, 100), 6)]
    renamed = np.array([0, *new], np.int64)[pred]
    np.testing.assert_equal(panoptic_quality(renamed, target), panoptic_quality(pred, target))
    np.testing.assert_equal(panoptic_quality(target, renamed), panoptic_quality(target, pred))
    # Choices between equals may follow the order of the labels, so that is kept where they can occur.
    gaps = np.array([0, *sorted(new)], np.int64)[pred]
    np.testing.assert_equal(aggregated_jaccard(gaps, target), aggregated_jaccard(pred, target))
    low = {"iou_threshold": 0.3}
    np.testing.assert_equal(panoptic_quality(target, gaps, **low), panoptic_quality(target, pred, **low))


@settings(max_examples=30, deadline=None)
@given(similar_maps())
def test_pred_and_target_swap_fp_and_fn(pair):
    pred, target = pair
    one, other = panoptic_quality(pred, target), panoptic_quality(target, pred)
    assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
    assert one.iou == pytest.approx(other.iou)


@settings(max_examples=30, deadline=None)
@given(maps(top=5), maps(top=5))
def test_low_thresholds_take_the_best_assignment(pred, target):
    match = match_instances(pred, target, iou_threshold=0.0)
    if labels_of(pred) and labels_of(target):
        assert match.iou.sum() == pytest.approx(slow_best_total(pred, target))
    assert len(set(match.pairs[:, 0])) == len(set(match.pairs[:, 1])) == len(match.pairs)
    assert sorted([*match.pairs[:, 0], *match.unmatched_pred]) == labels_of(pred)
    assert sorted([*match.pairs[:, 1], *match.unmatched_target]) == labels_of(target)


@settings(max_examples=40, deadline=None)
@given(maps(), maps())
def test_aggregated_jaccard_equals_the_slow_loop(pred, target):
    if labels_of(pred) or labels_of(target):
        assert aggregated_jaccard(pred, target) == pytest.approx(slow_aggregated_jaccard(pred, target))


@settings(max_examples=30, deadline=None)
@given(maps(), maps())
def test_overlaps_equal_the_slow_loop(pred, target):
    found = instance_overlaps(pred, target)
    pairs = zip(found.pred_labels[found.pred], found.target_labels[found.target], strict=True)
    table = dict(zip(pairs, found.iou, strict=True))
    assert table == pytest.approx({pair: value for pair, value in slow_iou(pred, target).items() if value > 0})


@settings(max_examples=30, deadline=None)
@given(similar_maps(), st.data())
def test_typed_quality_equals_scoring_each_type_alone(pair, data):
    pred, target = pair
    pred_types, target_types = (
        np.array(data.draw(st.lists(st.integers(low, 3), min_size=5, max_size=5))) for low in (0, 1)
    )
    threshold = data.draw(st.sampled_from([0.3, 0.5, 0.7]))
    score = typed_panoptic_quality(
        pred,
        target,
        pred_types=pred_types,
        target_types=target_types,
        num_nuclei_classes=4,
        iou_threshold=threshold,
    )
    np.testing.assert_equal(score.binary, panoptic_quality(pred, target, iou_threshold=threshold))
    for kind in (1, 2, 3):
        only_pred = np.where(np.append(0, pred_types)[pred] == kind, pred, 0)
        only_target = np.where(np.append(0, target_types)[target] == kind, target, 0)
        alone = panoptic_quality(only_pred, only_target, iou_threshold=threshold)
        np.testing.assert_equal(score.types[kind - 1], alone)


def test_quality_by_hand():
    target = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3, 3]])
    pred = np.array([[5, 5, 5, 0, 0, 0, 6, 6, 3, 3]])
    # IoU: 3/4; 1/3 (no match); 2/2. So tp 2, fp 1, fn 1.
    score = panoptic_quality(pred, target)
    assert (score.tp, score.fp, score.fn) == (2, 1, 1)
    assert score.dq == pytest.approx(2 / 3, abs=1e-5)
    assert score.sq == pytest.approx(1.75 / 2, abs=1e-5)
    assert score.pq == pytest.approx(1.75 / 3, abs=1e-5)
    low = panoptic_quality(pred, target, iou_threshold=0.3)
    assert (low.tp, low.fp, low.fn) == (3, 0, 0)


def test_an_iou_of_exactly_the_threshold_is_no_match():
    assert panoptic_quality(np.array([[1, 1]]), np.array([[1, 0]])).tp == 0
    assert panoptic_quality(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 1, 0]]), iou_threshold=0.75).tp == 0


def test_no_background_loses_no_instance():
    full = np.array([[1, 1, 2, 2]])
    assert panoptic_quality(full, full).tp == 2


def test_empty_images():
    empty, one = np.zeros((4, 4), np.int32), np.eye(4, dtype=np.int32)
    for threshold in (0.5, 0.2):
        both = panoptic_quality(empty, empty, iou_threshold=threshold)
        assert np.isnan(both.pq)
        assert (both.tp, both.fp, both.fn) == (0, 0, 0)
        wrong = panoptic_quality(one, empty, iou_threshold=threshold)
        assert np.isnan([wrong.dq, wrong.sq, wrong.pq]).all()
        assert wrong.fp == 1
        missed = panoptic_quality(empty, one, iou_threshold=threshold)
        assert (missed.dq, missed.sq, missed.pq, missed.fn) == (0, 0, 0, 1)
    assert np.isnan(aggregated_jaccard(empty, empty))
    assert aggregated_jaccard(one, empty) == aggregated_jaccard(empty, one) == 0
    assert np.isnan([dice(empty, empty), jaccard(empty, empty)]).all()
    assert dice(one, empty) == jaccard(empty, one) == 0
    assert label_iou(empty, one).shape == (0, 1)
    assert panoptic_quality(np.zeros((0, 5), np.int32), np.zeros((0, 5), np.int32)).fp == 0


def test_label_iou_is_target_by_prediction():
    target, pred = np.array([[1, 1, 2, 0, 3]]), np.array([[1, 0, 2, 2, 2]])
    np.testing.assert_allclose(label_iou(target, pred), [[0.5, 0], [0, 1 / 3], [0, 1 / 3]])


def test_a_taken_prediction_can_be_taken_again_by_aji():
    target, pred = np.array([[1, 1, 2, 2]]), np.array([[7, 7, 7, 7]])
    assert aggregated_jaccard(pred, target) == pytest.approx((2 + 2) / (4 + 4))


def test_dice_and_jaccard_by_hand():
    pred, target = np.array([[1, 1, 0, 0]]), np.array([[0, 5, 5, 5]])
    assert dice(pred, target) == pytest.approx(2 / 5)
    assert jaccard(pred, target) == pytest.approx(1 / 4)


class TestTypes:
    nuclei = np.array([[1, 0, 2, 0, 3]])

    def score(self, pred_types, target_types):
        return typed_panoptic_quality(
            self.nuclei,
            self.nuclei,
            pred_types=np.array(pred_types),
            target_types=np.array(target_types),
            num_nuclei_classes=4,
        )

    def test_a_wrong_type_costs_both_types(self):
        one, two, three = self.score([1, 2, 2], [1, 1, 2]).types
        assert (one.tp, one.fp, one.fn) == (1, 0, 1)
        assert (two.tp, two.fp, two.fn) == (1, 1, 0)
        assert np.isnan(three.pq)

    def test_a_predicted_type_that_does_not_occur_is_nan(self):
        one, two, _ = self.score([1, 1, 2], [1, 1, 1]).types
        assert np.isnan(two.pq)
        assert two.fp == 1
        assert one.fn == 1

    def test_an_unknown_type_leaves_only_the_binary_score(self):
        score = self.score([1, 1, 2], [1, -1, 2])
        assert score.types == ()
        assert score.binary.tp == 3

    def test_labels_with_gaps_use_their_own_row(self):
        gaps = np.array([[4, 0, 2]])
        score = typed_panoptic_quality(
            gaps,
            gaps,
            pred_types=np.array([0, 1, 0, 2]),
            target_types=np.array([3, 1, 3, 2]),
            num_nuclei_classes=4,
        )
        assert [s.tp for s in score.types] == [1, 1, 0]

    def test_a_label_without_type_is_an_error(self):
        with pytest.raises(DataError, match=r"labels reach up to 3, but their types have shape \(2,\)"):
            self.score([1, 1], [1, 1, 1])

    @pytest.mark.parametrize(("pred_types", "target_types"), [([1, 4, 1], [1, 1, 1]), ([-1, 1, 1], [1, 1, 1])])
    def test_a_predicted_type_outside_the_classes_is_an_error(self, pred_types, target_types):
        with pytest.raises(DataError, match=r"predicted nucleus \d is of type"):
            self.score(pred_types, target_types)

    def test_a_true_type_outside_the_classes_is_an_error(self):
        with pytest.raises(DataError, match="true nucleus 2 is of type 9; there are 4 classes"):
            self.score([1, 1, 1], [1, 9, 1])


class TestBadInput:
    good = np.zeros((3, 4), np.int32)

    def test_shapes(self):
        with pytest.raises(DataError, match=r"\(3, 4\) and the true map \(4, 3\)"):
            panoptic_quality(self.good, self.good.T)
        with pytest.raises(DataError, match="one shape"):
            dice(self.good, self.good.T)

    def test_a_batch_is_refused(self):
        with pytest.raises(DataError, match="one image"):
            panoptic_quality(self.good[None], self.good[None])

    def test_floats_and_booleans(self):
        with pytest.raises(DataError, match="float64"):
            panoptic_quality(self.good.astype(float), self.good)
        with pytest.raises(DataError, match="true instance map is of type bool"):
            panoptic_quality(self.good, self.good > 0)

    def test_negative_labels(self):
        with pytest.raises(DataError, match="label -3"):
            panoptic_quality(self.good - 3, self.good)

    @pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
    def test_threshold(self, threshold):
        with pytest.raises(ConfigError, match="iou_threshold"):
            panoptic_quality(self.good, self.good, iou_threshold=threshold)

    def test_gaps_in_label_iou(self):
        with pytest.raises(DataError, match="relabel"):
            label_iou(np.array([[0, 2]]), np.array([[0, 1]]))
