from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from support import shapes

from cellvit.errors import DataError
from cellvit.evaluation.calibration import (
    PIXELS,
    TEMPERATURES,
    TypeSample,
    calibrate,
    fit_temperature,
    mean_probabilities,
    negative_log_likelihood,
    reliability,
    sample_types,
)
from cellvit.evaluation.model_card.pictures import draw_reliability
from cellvit.evaluation.model_card.tables import calibration_notes, calibration_table
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.heads import NucleiTypeHead
from cellvit.heads.base import HeadSizes
from cellvit.postprocess.measure import nuclei_from_instances


def drawn_sample(sharpness, *, nuclei=3000, images=20, seed=0):
    """Return nuclei whose true types are drawn from softmax(z), while the model says softmax(sharpness * z)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (nuclei, 3))
    true = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((nuclei, 1))).sum(axis=1) + 1
    said = log_softmax(sharpness * np.column_stack([np.full(nuclei, -12.0), logits]), axis=1)
    lengths = rng.integers(1, 4, nuclei)
    return TypeSample(
        true=true,
        stated=logits.argmax(axis=1) + 1,
        confidence=softmax(sharpness * logits, axis=1).max(axis=1),
        image=rng.integers(0, images, nuclei),
        log_pixels=np.repeat(said, lengths, axis=0).astype(np.float32),
        offsets=np.concatenate([[0], lengths.cumsum()]),
    )


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_the_temperature_is_what_the_logits_were_multiplied_by(sharpness):
    sample = drawn_sample(sharpness)
    assert fit_temperature(sample) == pytest.approx(sharpness, rel=0.1)
    found = calibrate(sample)
    assert found.temperature == fit_temperature(sample)
    assert found.folds == 5
    assert found.after.nll < found.before.nll - 0.02
    assert found.after.reliability.ece < 0.5 * found.before.reliability.ece
    assert found.after.accuracy == found.before.accuracy == found.accuracy  # all pixels of a nucleus agree
    assert any("lowers the NLL" in note for note in calibration_notes(found, "mean"))


def test_what_is_calibrated_stays_as_it_is():
    sample = drawn_sample(1.0)
    found = calibrate(sample)
    assert found.temperature == pytest.approx(1, rel=0.1)
    assert found.before.reliability.ece < 0.03
    assert found.stated.ece == pytest.approx(found.before.reliability.ece, abs=1e-4)


def test_each_image_is_judged_at_the_temperature_of_the_other():
    sample = drawn_sample(2.0, nuclei=60, images=2)
    found = calibrate(sample)
    assert found.folds == 2
    losses = 0.0
    for image in (0, 1):
        here, other = sample.select(sample.image == image), sample.select(sample.image != image)
        losses += len(here) * negative_log_likelihood(mean_probabilities(here, fit_temperature(other)), here.true)
    assert found.after.nll == pytest.approx(losses / len(sample))
    own = negative_log_likelihood(mean_probabilities(sample, found.temperature), sample.true)
    assert found.after.nll > own


def test_the_seed_decides_the_folds_only():
    sample = drawn_sample(2.0, nuclei=200, images=9)
    one, again, other = calibrate(sample), calibrate(sample), calibrate(sample, seed=1)
    np.testing.assert_equal(asdict(one), asdict(again))  # for which nan is nan
    for name in ("temperature", "before", "stated"):
        np.testing.assert_equal(asdict(one)[name], asdict(other)[name])
    assert one.after.nll != other.after.nll


def test_a_temperature_at_the_end_of_what_is_tried_is_said_aloud():
    found = calibrate(drawn_sample(8.0, nuclei=300))
    assert found.temperature == pytest.approx(TEMPERATURES[1], rel=0.01)
    assert any("at the end of what is tried" in note for note in calibration_notes(found, "majority"))


def test_one_image_fits_no_temperature():
    found = calibrate(drawn_sample(2.0, nuclei=30, images=1))
    assert (found.temperature, found.after, found.folds) == (None, None, 0)
    assert [row["probability"] for row in calibration_table(found)][1:] == ["mean over the nucleus"]
    assert "none could be held out" in calibration_notes(found, "majority")[-1]


def test_no_nucleus_is_an_error():
    with pytest.raises(DataError, match="no predicted nucleus meets"):
        calibrate(drawn_sample(1.0, nuclei=0))


def test_nuclei_without_a_type_have_no_part_in_what_is_stated():
    sample = drawn_sample(1.0, nuclei=4, images=2)
    stated = np.array([0, *np.where(np.arange(3) < 2, sample.true[1:], sample.true[1:] % 3 + 1)])
    sample = TypeSample(
        sample.true, stated, *(getattr(sample, n) for n in ("confidence", "image", "log_pixels")), sample.offsets
    )
    found = calibrate(sample)
    assert (found.nuclei, found.no_type, sum(found.stated.count)) == (4, 1, 3)
    assert found.accuracy == pytest.approx(2 / 3)
    assert sum(found.before.reliability.count) == 4
    assert any("1 of 4 matched nuclei have no type" in note for note in calibration_notes(found, "majority"))


def test_nothing_stated_can_be_drawn():
    sample = drawn_sample(1.0, nuclei=4, images=2)
    none = TypeSample(
        sample.true, np.zeros(4, np.int64), sample.confidence, sample.image, sample.log_pixels, sample.offsets
    )
    found = calibrate(none)
    assert np.isnan([found.accuracy, found.stated.ece]).all()
    plain = draw_reliability({"mean": found.before.reliability})
    both = draw_reliability({"stated": found.stated, "mean": found.before.reliability})
    assert both.shape[2] == 3
    assert len(both) > len(plain)  # one more line in the legend


def test_bins_by_hand():
    confidence = np.array([0.05, 0.1, 0.95, 1.0, 0.95, 0.55])
    right = np.array([False, True, True, True, False, True])
    found = reliability(confidence, right)
    assert found.count == (1, 1, 0, 0, 0, 1, 0, 0, 0, 3)
    assert found.confidence[9] == pytest.approx((0.95 + 1 + 0.95) / 3)
    assert found.accuracy[9] == pytest.approx(2 / 3)
    assert np.isnan([found.confidence[2], found.accuracy[2]]).all()
    assert found.ece == pytest.approx((0.05 + 0.9 + abs(2.9 - 2) + 0.45) / 6)


@given(st.floats(0.3, 3.9), st.integers(0, 1000))
def test_mean_probabilities_are_the_slow_ones(temperature, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 5, 4)
    pixels = np.log(softmax(rng.normal(0, 2, (lengths.sum(), 4)), axis=1))
    offsets = np.concatenate([[0], lengths.cumsum()])
    sample = TypeSample(
        *(np.ones(4, np.int64),) * 2, np.ones(4), np.zeros(4, np.int64), pixels.astype(np.float32), offsets
    )
    for found, start, stop in zip(mean_probabilities(sample, temperature), offsets[:-1], offsets[1:], strict=True):
        mean = np.mean([softmax(pixel / temperature) for pixel in pixels[start:stop]], axis=0)
        np.testing.assert_allclose(found, mean[1:] / mean[1:].sum(), rtol=1e-4)


def test_where_background_takes_everything_all_types_are_alike():
    pixels = np.log(np.array([[1, 1e-12, 1e-12, 1e-12]])).astype(np.float32)
    one = np.ones(1, np.int64)
    sample = TypeSample(one, one, np.ones(1), one, pixels, np.array([0, 1]))
    np.testing.assert_allclose(mean_probabilities(sample, TEMPERATURES[0]), np.full((1, 3), 1 / 3))


def test_parts_are_joined_and_taken_apart():
    parts = [drawn_sample(1.0, nuclei=n, seed=n) for n in (3, 0, 5)]
    whole = TypeSample.concatenate(parts)
    first, last = whole.select(np.arange(8) < 3), whole.select(np.arange(8) >= 3)
    for part, again in ((parts[0], first), (parts[2], last)):
        for name in ("true", "stated", "confidence", "image", "log_pixels", "offsets"):
            np.testing.assert_array_equal(getattr(part, name), getattr(again, name), err_msg=name)


squares = partial(shapes.squares, side=6, shape=(40, 40))


def test_nuclei_of_known_type_are_paired():
    truth = squares((2, 2), (2, 20), (20, 2), (20, 20))
    found = squares((3, 21), (2, 2), (30, 30), (20, 3))  # the second true one, the first, none, the third
    target = nuclei_from_labels(truth, np.array([0, 1, 2, -1, 1]))
    probabilities = softmax(np.random.default_rng(0).normal(size=(3, 40, 40)), axis=0)
    pred = nuclei_from_instances(found, type_map=probabilities)
    sample = sample_types(pred, target, probabilities, radius=4, image=7)
    assert sample.true.tolist() == [2, 1]  # the third is of unknown type
    assert sample.image.tolist() == [7, 7]
    np.testing.assert_array_equal(sample.stated, pred.nuclei.type[:2])
    np.testing.assert_array_equal(sample.confidence, pred.nuclei.type_prob[:2])
    for label, start, stop in zip((1, 2), sample.offsets[:-1], sample.offsets[1:], strict=True):
        expected = np.log(probabilities[:, found == label].T)
        order = np.lexsort(expected.T), np.lexsort(sample.log_pixels[start:stop].T)
        np.testing.assert_allclose(sample.log_pixels[start:stop][order[1]], expected[order[0]], rtol=1e-5)
    assert len(sample_types(pred, target, probabilities, radius=0.5)) == 1


def test_of_large_nuclei_some_pixels_are_kept():
    truth = squares((0, 0), (20, 20), side=16)
    places = np.stack([np.full((40, 40), 0.5), np.arange(1600).reshape(40, 40) / 4000]).astype(np.float64)
    pred, target = nuclei_from_instances(truth), nuclei_from_labels(truth, np.array([0, 1, 1]))
    kept = [sample_types(pred, target, places, radius=3, seed=seed) for seed in (0, 0, 1)]
    assert np.diff(kept[0].offsets).tolist() == [PIXELS, PIXELS]
    pixels = np.rint(np.exp(kept[0].log_pixels[:, 1]) * 4000).astype(int).reshape(2, PIXELS)
    assert [set(truth.ravel()[row]) for row in pixels] == [{1}, {2}]
    assert [len(set(row)) for row in pixels] == [PIXELS, PIXELS]
    np.testing.assert_array_equal(kept[0].log_pixels, kept[1].log_pixels)
    assert (kept[0].log_pixels != kept[2].log_pixels).any()


def test_probabilities_of_another_size_are_refused():
    truth = squares((2, 2))
    with pytest.raises(DataError, match="must show the same pixels"):
        sample_types(nuclei_from_instances(truth), nuclei_from_labels(truth, None), np.zeros((3, 20, 20)), radius=3)


@pytest.mark.parametrize("temperature", [0.7, 1.8])
def test_a_head_of_that_temperature_gives_the_probabilities_that_were_measured(temperature):
    truth = squares((2, 2), (2, 20), (20, 2))
    logits = torch.randn(1, 4, 40, 40) * 3
    sizes = HeadSizes(decoder_channels=4, pooled_channels=4, num_nuclei_classes=4, num_tissue_classes=0)
    plain, warm = (NucleiTypeHead(sizes, temperature=t).activate(logits)[0].numpy() for t in (1.0, temperature))
    sample = sample_types(
        nuclei_from_instances(truth), nuclei_from_labels(truth, np.array([0, 1, 2, 3])), plain, radius=3
    )
    stated = nuclei_from_instances(truth, type_map=warm, type_rule="mean").nuclei
    np.testing.assert_allclose(mean_probabilities(sample, temperature).max(axis=1), stated.type_prob, rtol=1e-5)
