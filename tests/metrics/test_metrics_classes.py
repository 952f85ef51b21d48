"""The metric classes: what they average, what they leave out, and that only sums are kept."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from metric_samples import assert_same
from torchmetrics import Metric

from cellvit.errors import ConfigError, DataError
from cellvit.metrics import METRICS, CentroidDetection, NucleiMetric, PanopticQuality, TissueAccuracy
from cellvit.metrics.functional import panoptic_quality, typed_panoptic_quality
from cellvit.postprocess import nuclei_from_instances
from cellvit.types import Nuclei, NucleiPrediction

NAMES = ("background", "tumour", "lymphocyte", "stroma")
TISSUES = ("breast", "colon", "liver")
EMPTY, NO_TYPES = np.zeros((24, 24), np.int32), np.zeros(0, np.int64)


def random_image(seed):
    """Six square nuclei with types, and a prediction that misses, shifts and mistypes some."""
    rng = np.random.default_rng(seed)
    target, pred = np.zeros((24, 24), np.int32), np.zeros((24, 24), np.int32)
    for label, (row, column) in enumerate([(r, c) for r in (1, 13) for c in (1, 9, 17)], start=1):
        target[row : row + 5, column : column + 5] = label
        shift = rng.integers(0, 3)
        if rng.random() < 0.8:
            pred[row + shift : row + shift + 5, column : column + 5] = label
    return pred, rng.integers(1, 4, 6), target, rng.integers(1, 4, 6)


def random_points(seed):
    rng = np.random.default_rng(seed)
    pred, target = rng.random((rng.integers(0, 9), 2)) * 60, rng.random((rng.integers(0, 9), 2)) * 60
    return pred, target, {"pred_types": rng.integers(0, 4, len(pred)), "target_types": rng.integers(1, 4, len(target))}


def build(kind):
    if kind == "panoptic":
        return PanopticQuality(class_names=NAMES, tissue_names=TISSUES), [
            lambda m, s=s: m.update(*random_image(s), tissue=s % 4 - 1) for s in range(12)
        ]
    return CentroidDetection(class_names=NAMES), [
        lambda m, s=s: m.update(random_points(s)[0], random_points(s)[1], **random_points(s)[2]) for s in range(12)
    ]


@pytest.mark.parametrize("kind", ["panoptic", "detection"])
def test_copies_and_pickles(kind):
    metric, updates = build(kind)
    updates[3](metric)
    assert_same(copy.deepcopy(metric).compute(), metric.compute())
    assert_same(pickle.loads(pickle.dumps(metric)).compute(), metric.compute())


def test_registered_names():
    assert METRICS.get("panoptic-quality") is PanopticQuality
    assert METRICS.get("centroid-detection") is CentroidDetection
    assert METRICS.get("tissue-accuracy") is TissueAccuracy
    assert issubclass(PanopticQuality, NucleiMetric)
    assert issubclass(CentroidDetection, NucleiMetric)
    assert issubclass(TissueAccuracy, Metric)


class TestPanopticQuality:
    def test_means_over_images_equal_the_slow_loop(self):
        metric = PanopticQuality(class_names=NAMES)
        binary, multi, typed = [], [], []
        for seed in range(8):
            pred, pred_types, target, target_types = random_image(seed)
            metric.update(pred, pred_types, target, target_types)
            score = typed_panoptic_quality(
                pred, target, pred_types=pred_types, target_types=target_types, num_nuclei_classes=4
            )
            binary.append(score.binary.pq)
            typed.append([s.pq for s in score.types])
            multi.append(np.nanmean(typed[-1]))
        result = metric.compute()
        assert result["bPQ"].item() == pytest.approx(np.mean(binary), abs=1e-6)
        assert result["mPQ"].item() == pytest.approx(np.mean(multi), abs=1e-6)
        for kind, name in enumerate(NAMES[1:]):
            assert result[f"PQ/{name}"].item() == pytest.approx(np.nanmean(np.array(typed)[:, kind]), abs=1e-6)

    def test_keys(self):
        plain = PanopticQuality()
        plain.update(EMPTY, None, EMPTY, None)
        assert list(plain.compute()) == ["bPQ", "bDQ", "bSQ"]
        full = PanopticQuality(class_names=NAMES[:2], tissue_names=TISSUES[:1])
        full.update(EMPTY, NO_TYPES, EMPTY, NO_TYPES)
        assert list(full.compute()) == [
            *("bPQ", "bDQ", "bSQ", "mPQ", "mDQ", "mSQ", "PQ/tumour"),
            *("bPQ_tissue_mean", "bPQ/breast", "mPQ_tissue_mean", "mPQ/breast"),
        ]

    def test_an_image_without_true_nuclei_is_left_out(self):
        metric = PanopticQuality(class_names=NAMES)
        pred, pred_types, target, target_types = random_image(0)
        metric.update(pred, pred_types, EMPTY, NO_TYPES)
        assert all(math.isnan(v) for v in metric.compute().values())
        metric.update(pred, pred_types, target, target_types)
        assert metric.compute()["bPQ"].item() == pytest.approx(panoptic_quality(pred, target).pq)

    def test_an_image_without_predictions_is_zero(self):
        metric = PanopticQuality(class_names=NAMES)
        _, _, target, _ = random_image(0)
        metric.update(EMPTY, NO_TYPES, target, np.full(6, 2))
        result = metric.compute()
        assert result["bPQ"] == result["bDQ"] == result["mPQ"] == result["PQ/lymphocyte"] == 0
        assert math.isnan(result["PQ/tumour"])

    def test_unknown_types_count_for_bpq_only(self):
        metric = PanopticQuality(class_names=NAMES)
        _, types, target, _ = random_image(0)
        metric.update(target, types, target, np.array([1, 1, -1, 1, 1, 1]))
        metric.update(target, types, target, None)
        result = metric.compute()
        assert result["bPQ"].item() == pytest.approx(1, abs=1e-5)
        assert math.isnan(result["mPQ"])
        assert metric.binary_count.sum() == 2

    def test_tissue_mean_is_the_mean_of_means(self):
        metric = PanopticQuality(tissue_names=TISSUES)
        _, _, target, _ = random_image(0)
        for tissue in ("breast", 0, 0):
            metric.update(target, None, target, None, tissue=tissue)
        metric.update(EMPTY, None, target, None, tissue=1)
        metric.update(EMPTY, None, target, None, tissue=-1)
        result = metric.compute()
        assert result["bPQ"].item() == pytest.approx(3 / 5, abs=1e-5)
        assert result["bPQ_tissue_mean"].item() == pytest.approx(1 / 2, abs=1e-5)
        assert result["bPQ/breast"].item() == pytest.approx(1, abs=1e-5)
        assert result["bPQ/colon"] == 0
        assert math.isnan(result["bPQ/liver"])

    def test_tensors_and_tables_are_taken(self):
        pred, pred_types, target, target_types = random_image(1)
        pred = target.copy()
        arrays, tensors, tables = (PanopticQuality(class_names=NAMES, tissue_names=TISSUES) for _ in range(3))
        arrays.update(pred, pred_types, target, target_types, tissue=2)
        tensors.update(*map(torch.from_numpy, (pred, pred_types, target, target_types)), tissue=2)
        tables.update_nuclei(table(pred, pred_types), table(target, target_types), tissue=2)
        assert_same(arrays.compute(), tensors.compute())
        assert_same(arrays.compute(), tables.compute())

    @pytest.mark.parametrize("class_names", [(), NAMES])
    @pytest.mark.parametrize("target_types", [None, [1, 1, -1, 1, 1, 1], [1, 1, 2, 2, 3, 3]])
    def test_predictions_without_a_type_are_left_out_where_true_types_are_known(self, class_names, target_types):
        _, _, target, _ = random_image(0)
        truth = None if target_types is None else np.array(target_types)
        pred_types = np.array([0, 0, 2, 2, 3, 3])
        without, all_of_them = (
            PanopticQuality(class_names=class_names, ignore_background=flag) for flag in (True, False)
        )
        for metric in (without, all_of_them):
            metric.update(target, pred_types, target, truth)
        known = target_types == [1, 1, 2, 2, 3, 3]
        assert without.compute()["bDQ"].item() == pytest.approx(4 / (4 + 2 / 2) if known else 1)
        assert all_of_them.compute()["bDQ"].item() == pytest.approx(1)
        if class_names and known:
            for metric in (without, all_of_them):
                assert metric.compute()["mPQ"].item() == pytest.approx(2 / 3, abs=1e-5)

    def test_types_of_predictions_are_checked_although_no_class_has_a_name(self):
        metric, (_, _, target, _) = PanopticQuality(), random_image(0)
        with pytest.raises(DataError, match=r"predicted labels reach up to 6, but their types have shape \(5,\)"):
            metric.update(target, np.zeros(5, int), target, np.ones(6, int))
        with pytest.raises(DataError, match="predicted instance map holds the label -1"):
            metric.update(target - 1, np.zeros(6, int), target, np.ones(6, int))
        metric.update(EMPTY, NO_TYPES, target, np.ones(6, int))
        assert metric.compute()["bPQ"] == 0

    def test_threshold_is_used(self):
        strict = PanopticQuality(iou_threshold=0.9)
        strict.update(np.array([[1, 1, 1]]), None, np.array([[1, 1, 0]]), None)
        assert strict.compute()["bPQ"] == 0

    @pytest.mark.parametrize("tissue", ["lung", 3, -2])
    def test_unknown_tissue_is_an_error(self, tissue):
        with pytest.raises(DataError, match="tissue"):
            PanopticQuality(tissue_names=TISSUES).update(EMPTY, None, EMPTY, None, tissue=tissue)

    def test_bad_settings(self):
        with pytest.raises(ConfigError, match="'a' is given twice"):
            PanopticQuality(class_names=["bg", "a", "a"])
        with pytest.raises(ConfigError, match="tissue name 'x'"):
            PanopticQuality(tissue_names=["x", "x"])
        with pytest.raises(ConfigError, match="iou_threshold 1"):
            PanopticQuality(iou_threshold=1)


class TestCentroidDetection:
    def test_counts_are_pooled_over_images(self):
        metric = CentroidDetection()
        metric.update(np.array([[0, 0], [50, 50]]), np.array([[0, 3]]))  # one pair, one wrong
        metric.update(np.zeros((0, 2)), np.array([[0, 0], [9, 9], [20, 20]]))  # three missed
        metric.update(np.zeros((0, 2)), np.zeros((0, 2)))  # nothing
        metric.update(np.array([[7, 7]]), np.zeros((0, 2)))  # one wrong
        result = metric.compute()
        assert result["P_d"].item() == pytest.approx(1 / 3)
        assert result["R_d"].item() == pytest.approx(1 / 4)
        assert result["F1_d"].item() == pytest.approx(2 / (2 + 2 + 3))

    def test_types(self):
        metric = CentroidDetection(class_names=NAMES)
        spots = np.arange(4)[:, None] * np.array([[100, 100]])
        metric.update(spots, spots, pred_types=np.array([1, 1, 2, 0]), target_types=np.array([1, 2, 2, 1]))
        metric.update(spots[:1], spots[:0], pred_types=np.array([1]), target_types=NO_TYPES)
        result = metric.compute()
        # tumour: tp 1, fp 1, fn 1 (found without a type), fp_d 1; lymphocyte: tp 1, fn 1.
        assert result["F1/tumour"].item() == pytest.approx(2 / (2 + 2 + 2 + 1))
        assert result["P/tumour"].item() == pytest.approx(1 / (1 + 2 + 1))
        assert result["R/tumour"].item() == pytest.approx(1 / (1 + 2))
        assert result["F1/lymphocyte"].item() == pytest.approx(2 / (2 + 2))
        assert math.isnan(result["F1/stroma"])
        assert result["R_d"] == 1

    def test_unknown_types_count_for_all_nuclei_only(self):
        metric = CentroidDetection(class_names=NAMES)
        spots = np.array([[0, 0], [100, 100]])
        metric.update(spots, spots, pred_types=np.array([1, 1]), target_types=np.array([1, -1]))
        metric.update(spots, spots)
        result = metric.compute()
        assert result["F1_d"] == 1
        assert math.isnan(result["F1/tumour"])

    def test_tensors_and_tables_are_taken(self):
        pred, target, types = random_points(5)
        arrays, tensors, tables = (CentroidDetection(class_names=NAMES) for _ in range(3))
        arrays.update(pred, target, **types)
        tensors.update(
            torch.from_numpy(pred), torch.from_numpy(target), **{k: torch.from_numpy(v) for k, v in types.items()}
        )
        assert_same(arrays.compute(), tensors.compute())
        tables.update_nuclei(
            table(EMPTY, types["pred_types"], centroid=pred), table(EMPTY, types["target_types"], centroid=target)
        )
        assert_same(arrays.compute(), tables.compute())

    def test_image_means_weigh_every_image_alike(self):
        metric = CentroidDetection()
        spots = np.arange(4)[:, None] * np.array([[100, 100]])
        metric.update(spots, spots[:1])  # P 1/4, R 1, F1 2/5
        metric.update(spots[:1], spots[1:3])  # 0
        metric.update(spots[:0], spots)  # P 0 / 0
        metric.update(spots[:2], spots[:0])  # R 0 / 0
        metric.update(spots[:0], spots[:0])  # all 0 / 0
        result = metric.compute()
        assert result["P_d_image_mean"].item() == pytest.approx((1 / 4 + 0 + 0) / 3)
        assert result["R_d_image_mean"].item() == pytest.approx((1 + 0 + 0) / 3)
        assert result["F1_d_image_mean"].item() == pytest.approx((2 / 5 + 0 + 0 + 0) / 4)
        assert result["P_d"].item() == pytest.approx(1 / 7)

    def test_the_most_pairs_within_the_radius_stand_beside_the_published_ones(self):
        metric = CentroidDetection()
        metric.update(np.array([[0, 0], [10, 0]]), np.array([[0, 0], [-2, 3]]))  # one pair as published, two within
        metric.update(np.array([[0, 0]]), np.array([[0, 1], [50, 50]]))  # one of both kinds
        metric.update(np.zeros((0, 2)), np.zeros((0, 2)))
        result = metric.compute()
        assert result["F1_d"].item() == pytest.approx(2 * 2 / 7)
        assert result["F1_d_within"].item() == pytest.approx(2 * 3 / 7)
        assert result["F1_d_image_mean"].item() == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert result["F1_d_within_image_mean"].item() == pytest.approx((1 + 2 / 3) / 2)
        metric.reset()
        metric.update(np.zeros((0, 2)), np.zeros((0, 2)))
        assert math.isnan(metric.compute()["F1_d_within"])

    def test_predictions_without_a_type_are_left_out_where_asked_for(self):
        spots = np.arange(3)[:, None] * np.array([[100, 100]])
        types = {"pred_types": np.array([0, 1, 0]), "target_types": np.array([1, 1, 2])}
        all_of_them, without = (CentroidDetection(class_names=NAMES, ignore_background=b) for b in (False, True))
        for metric in (all_of_them, without):
            metric.update(spots, spots, **types)
            metric.update(spots, spots)  # without types nothing is left out
        assert all_of_them.compute()["R_d"] == 1
        found = without.compute()
        assert found["R_d"].item() == pytest.approx(4 / 6)
        assert found["P_d"] == 1
        assert found["R/tumour"].item() == pytest.approx(1 / (1 + 1))  # one missed, no longer one confused
        assert all_of_them.compute()["R/tumour"].item() == pytest.approx(1 / (1 + 2))
        with pytest.raises(DataError, match=r"3 predicted points have types of shape \(2,\)"):
            without.update(spots, spots, pred_types=np.zeros(2, int))

    def test_true_nuclei_whose_outline_encloses_nothing_are_left_out(self):
        instances = np.zeros((30, 30), np.int32)
        instances[2, 2], instances[6, 6:12], instances[10:14, 20:25] = 1, 2, 3
        truth = nuclei_from_instances(instances, min_contour_points=1)
        truth = replace(truth, nuclei=replace(truth.nuclei, type=np.array([-1, 1, 2], np.int32)))
        found = nuclei_from_instances(instances)
        metric = CentroidDetection(class_names=NAMES)
        metric.update_nuclei(found, truth)
        result = metric.compute()
        assert result["F1_d"] == 1
        assert result["F1/lymphocyte"] == 0  # found as type 1; the nucleus of unknown type is not in the way
        assert result["P/tumour"] == 0
        panoptic = PanopticQuality()
        panoptic.update_nuclei(found, truth)
        assert panoptic.compute()["bDQ"].item() == pytest.approx(1 / (1 + 2 / 2))

    def test_radius_is_used(self):
        near = CentroidDetection(radius=6)
        near.update(np.array([[0, 0]]), np.array([[0, 7]]))
        assert near.compute()["F1_d"] == 0
        with pytest.raises(ConfigError, match="radius -1"):
            CentroidDetection(radius=-1)


class TestTissueAccuracy:
    def test_unknown_images_are_left_out(self):
        metric = TissueAccuracy()
        logits = torch.eye(3)
        metric.update(logits, torch.tensor([0, 2, -1]))
        metric.update(logits[:1], torch.tensor([0]))
        assert metric.compute()["tissue_accuracy"].item() == pytest.approx(2 / 3)

    def test_only_unknown_images_is_nan(self):
        metric = TissueAccuracy()
        metric.update(torch.eye(2), torch.tensor([-1, -1]))
        assert math.isnan(metric.compute()["tissue_accuracy"])

    def test_items_that_are_not_counted_are_left_out(self):
        metric = TissueAccuracy()
        metric.update(torch.eye(3), torch.tensor([0, 2, 2]), valid=torch.tensor([True, True, False]))
        assert metric.compute()["tissue_accuracy"] == 1 / 2
        with pytest.raises(DataError, match=r"valid is torch.int64 \(3,\) for a batch of 3"):
            metric.update(torch.eye(3), torch.tensor([0, 2, 2]), valid=torch.ones(3, dtype=torch.int64))

    def test_shapes(self):
        with pytest.raises(DataError, match=r"\(2, 2\) and ids \(3,\)"):
            TissueAccuracy().update(torch.eye(2), torch.zeros(3))


def table(instance_map, types, *, centroid=None):
    """The instances as a prediction whose rows are the labels 1..N."""
    count = len(types)
    nuclei = Nuclei(
        centroid=np.zeros((count, 2)) if centroid is None else centroid,
        bbox=np.zeros((count, 4)),
        type=types.astype(np.int32),
        type_prob=np.ones(count, np.float32),
        contour_offsets=np.zeros(count + 1, np.int64),
        contour_points=np.zeros((0, 2)),
        label=np.arange(1, count + 1, dtype=np.int32),
    )
    return NucleiPrediction(instance_map=instance_map, nuclei=nuclei)
