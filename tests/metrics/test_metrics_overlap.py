"""Dice, Jaccard and AJI over a data set, and the integer arithmetic under them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellvit.errors import DataError
from cellvit.metrics import METRICS, AggregatedJaccard, BinaryOverlap, NucleiMetric
from cellvit.metrics._shared import fixed_ratio
from cellvit.metrics.functional import aggregated_jaccard, dice, jaccard


@given(whole=st.integers(1, 2**43), share=st.fractions(0, 1))
def test_fixed_ratio_is_exact_to_its_last_bit(whole, share):
    part = int(share * whole)
    found = fixed_ratio(torch.tensor([part]), torch.tensor([whole])).item()
    assert found == math.floor(Fraction(part, whole) * 2**40)


class TestBinaryOverlap:
    def test_equals_the_functions_image_by_image(self):
        rng = np.random.default_rng(0)
        pred, target = rng.random((2, 7, 12, 9)) < rng.random((2, 7, 1, 1))
        pred[2], target[2] = False, False
        metric = BinaryOverlap()
        metric.update(torch.from_numpy(pred[:3]), torch.from_numpy(target[:3]).long())
        metric.update(torch.from_numpy(pred[3:]).to(torch.uint8), torch.from_numpy(target[3:]))
        result = metric.compute()
        expected = np.array([(dice(p, t), jaccard(p, t)) for p, t in zip(pred, target, strict=True)])
        assert np.isnan(expected[2]).all()
        np.testing.assert_allclose([result["Dice"], result["Jaccard"]], np.nanmean(expected, axis=0), rtol=1e-6)

    def test_a_map_against_itself_is_exactly_one(self):
        metric = BinaryOverlap()
        maps = torch.rand(5, 30, 30) > 0.5
        metric.update(maps, maps)
        assert metric.compute() == {"Dice": 1, "Jaccard": 1}

    def test_empty_images_are_left_out_and_empty_batches_add_nothing(self):
        metric, empty = BinaryOverlap(), torch.zeros(2, 4, 4, dtype=torch.bool)
        metric.update(empty, empty)
        metric.update(empty[:0], empty[:0])
        metric.update(torch.zeros(2, 0, 4, dtype=torch.bool), torch.zeros(2, 0, 4, dtype=torch.bool))
        assert all(value.isnan() for value in metric.compute().values())
        metric.update(empty, ~empty, valid=torch.tensor([True, False]))
        assert metric.compute() == {"Dice": 0, "Jaccard": 0}
        assert metric.overlap_count == 1

    def test_bad_maps(self):
        maps = torch.zeros(2, 4, 4, dtype=torch.long)
        with pytest.raises(DataError, match=r"\(2, 4, 4\) and \(1, 4, 4\) do not fit"):
            BinaryOverlap().update(maps, maps[:1])
        with pytest.raises(DataError, match="one shape"):
            BinaryOverlap().update(maps[0], maps[0])
        with pytest.raises(DataError, match=r"torch.float32 and torch.int64; pass 0 and 1"):
            BinaryOverlap().update(maps.float(), maps)

    @pytest.mark.parametrize("valid", [torch.ones(3, dtype=torch.bool), torch.ones(2), torch.ones(2, 1) > 0])
    def test_bad_masks(self, valid):
        maps = torch.zeros(2, 4, 4, dtype=torch.long)
        with pytest.raises(DataError, match="for a batch of 2; pass a boolean tensor"):
            BinaryOverlap().update(maps, maps, valid=valid)

    @pytest.mark.gpu
    def test_the_device_changes_no_bit(self):
        maps = torch.rand(2, 6, 64, 64) > 0.6
        here, there = BinaryOverlap(), BinaryOverlap().cuda()
        here.update(*maps)
        there.update(*maps.cuda())
        found = there.compute()
        assert found["Dice"].is_cuda
        assert {name: value.cpu() for name, value in found.items()} == here.compute()


class TestAggregatedJaccard:
    def test_is_the_mean_over_images_that_are_not_empty(self):
        metric, rng = AggregatedJaccard(), np.random.default_rng(1)
        images = [rng.integers(0, 4, (2, 9, 9)) for _ in range(4)]
        for pred, target in images:
            metric.update(pred, torch.from_numpy(target))
        metric.update(images[0][0] * 0, images[0][0] * 0)
        assert metric.compute()["AJI"].item() == pytest.approx(np.mean([aggregated_jaccard(p, t) for p, t in images]))

    def test_nothing_is_nan(self):
        metric = AggregatedJaccard()
        metric.update(np.zeros((3, 3), int), np.zeros((3, 3), int))
        assert metric.compute()["AJI"].isnan()

    def test_maps_must_fit(self):
        with pytest.raises(DataError, match="same pixels"):
            AggregatedJaccard().update(np.zeros((3, 3), int), np.zeros((3, 4), int))


def test_registered_names():
    assert METRICS.get("binary-overlap") is BinaryOverlap
    assert METRICS.get("aggregated-jaccard") is AggregatedJaccard
    assert issubclass(AggregatedJaccard, NucleiMetric)
    assert not issubclass(BinaryOverlap, NucleiMetric)
