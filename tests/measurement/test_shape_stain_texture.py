"""Measurements of labelled pixels against scikit-image, nucleus by nucleus, and what is odd about single pixels."""

import cv2
import numpy as np
import pytest
import skimage.color
import skimage.feature
import skimage.measure
import skimage.segmentation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.measurement.base import MEASUREMENTS, Measurement
from cellvit.measurement.measure import measure_pixels, measured_names
from cellvit.measurement.pixels import LabelledPixels
from cellvit.measurement.stain import ring_pixels
from cellvit.measurement.stains import RUIFROK, Stains, estimate_stains

SIDE = 160
EXACT = {
    "area": "area_px2",
    "perimeter": "perimeter_px",
    "equivalent_diameter_area": "equivalent_diameter_px",
    "axis_major_length": "major_axis_px",
    "axis_minor_length": "minor_axis_px",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
}


def stained(labels, seed=0):
    """Return a picture in which nuclei are violet and all else is pink, with noise."""
    rng = np.random.default_rng(seed)
    colour = np.where((labels > 0)[..., None], [90, 60, 140], [220, 160, 200])
    return np.clip(colour + rng.normal(0, 12, (*labels.shape, 3)), 1, 255).astype(np.uint8)


def ellipses(seed=0):
    """Return a map of nuclei that touch, overlap and are cut by the edges; labels have no gaps."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((SIDE, SIDE), np.int32)
    for number in range(1, 40):
        centre, axes = rng.integers(0, SIDE, 2).tolist(), rng.integers(1, 16, 2).tolist()
        cv2.ellipse(labels, centre, axes, float(rng.integers(0, 180)), 0, 360, number, -1)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


@pytest.fixture(scope="module")
def labels():
    return ellipses()


@pytest.fixture(scope="module")
def image(labels):
    return stained(labels)


@pytest.fixture(scope="module")
def found(labels, image):
    return measure_pixels(LabelledPixels(labels, image, int(labels.max())))


@pytest.fixture(scope="module")
def regions(labels):
    return skimage.measure.regionprops(labels)


def test_shape_is_that_of_scikit_image(found, regions):
    for theirs, ours in EXACT.items():
        np.testing.assert_allclose(found[ours], [getattr(r, theirs) for r in regions], rtol=1e-5, atol=1e-5)
    turn = found["orientation_rad"] - np.array([r.orientation for r in regions])
    round_ones = np.isclose(found["eccentricity"], 0, atol=1e-3)  # their orientation is a matter of rounding
    np.testing.assert_allclose(np.abs(np.sin(turn))[~round_ones], 0, atol=1e-4)
    long = np.array([r.feret_diameter_max for r in regions])
    assert np.abs(found["feret_max_px"] - long).max() < 1.0
    with np.errstate(divide="ignore"):
        circularity = [4 * np.pi * r.area / r.perimeter**2 if r.perimeter else np.nan for r in regions]
    np.testing.assert_allclose(found["circularity"], circularity, rtol=1e-5)


def test_feret_of_a_rectangle_is_that_of_the_middles_of_its_edges():
    labels = np.zeros((12, 20), np.int32)
    labels[2:8, 3:15] = 1
    found = measure_pixels(LabelledPixels(labels, stained(labels), 1))
    assert found["feret_min_px"] == pytest.approx(6)
    assert found["feret_max_px"] == pytest.approx(np.hypot(12, 5))


def test_microns_follow_the_size_of_pixels(labels, image, found):
    scaled = measure_pixels(LabelledPixels(labels, image, int(labels.max()), (0.5, 0.5)))
    for length in ("perimeter", "equivalent_diameter", "major_axis", "minor_axis", "feret_max", "feret_min"):
        np.testing.assert_allclose(scaled[f"{length}_um"], found[f"{length}_px"] / 2, rtol=1e-5)
    np.testing.assert_allclose(scaled["area_um2"], found["area_px2"] / 4, rtol=1e-6)
    np.testing.assert_allclose(scaled["gradient_mean_per_um"], found["gradient_mean_per_px"] * 2, rtol=1e-5)
    oblong = measure_pixels(LabelledPixels(labels, image, int(labels.max()), (0.5, 0.25)))
    np.testing.assert_allclose(oblong["area_um2"], found["area_px2"] / 8, rtol=1e-6)
    assert (oblong["major_axis_um"] <= found["major_axis_px"] / 2 + 1e-5).all()


def test_densities_are_those_of_scikit_image(labels, image, found):
    stains = estimate_stains([image])
    assert stains.doubt == ""
    for vectors in (RUIFROK, stains):
        both = np.array([vectors.hematoxylin, vectors.eosin])
        rest = np.cross(*both)
        matrix = np.linalg.inv(np.vstack([both, rest / np.linalg.norm(rest)]))
        theirs = 6 * skimage.color.separate_stains(image, matrix)[..., :2]  # they count in millionths of the light
        np.testing.assert_allclose(vectors.separate(image), theirs.transpose(2, 0, 1), atol=2e-5)
    densities = RUIFROK.separate(image)
    for name, density in zip(("hematoxylin", "eosin"), densities, strict=True):
        for label in range(1, int(labels.max()) + 1):
            values = density[labels == label].astype(np.float64)
            expected = [values.mean(), values.std(), *np.percentile(values, (10, 50, 90))]
            ours = [found[f"{name}_{what}"][label - 1] for what in ("mean", "sd", "p10", "median", "p90")]
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_ring_is_what_expanded_labels_add(labels, image, found):
    around, owner = ring_pixels(labels, 8.0)
    ours = np.zeros(labels.size, np.int32)
    ours[around] = owner
    theirs = np.where(labels > 0, 0, skimage.segmentation.expand_labels(labels, 8))
    assert (ours.reshape(labels.shape) != theirs).mean() < 0.005  # which of two nuclei is nearer
    assert ((ours.reshape(labels.shape) > 0) == (theirs > 0)).mean() > 0.999
    ring = RUIFROK.separate(image)[1].reshape(-1)[around[owner == 3]]
    assert found["eosin_ring_mean"][2] == pytest.approx(ring.mean(), rel=1e-4)
    assert found["eosin_ring_sd"][2] == pytest.approx(ring.std(), rel=1e-4)


def test_texture_is_that_of_scikit_image(labels, image, found):
    density = RUIFROK.separate(image)[0]
    levels = np.minimum(density / np.float32(0.1), 15).astype(np.uint8)
    for label in (1, 5, 11):
        inside = np.pad(labels == label, 1)
        masked = np.where(inside, np.pad(levels, 1) + 1, 0).astype(np.uint8)
        angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
        counts = skimage.feature.graycomatrix(masked, [1], angles, levels=17, symmetric=True)[1:, 1:]
        matrix = counts.sum(axis=3, keepdims=True)
        matrix = matrix / matrix.sum()
        for name in ("contrast", "homogeneity", "energy", "correlation", "entropy"):
            expected = (
                -np.sum(matrix[matrix > 0] * np.log2(matrix[matrix > 0]))
                if name == "entropy"
                else skimage.feature.graycoprops(matrix, name)[0, 0]
            )
            assert found[f"glcm_{name}"][label - 1] == pytest.approx(expected, rel=1e-4), name


def test_gradient_and_granularity_of_simple_pictures():
    labels = np.zeros((40, 40), np.int32)
    labels[5:35, 5:35] = 1
    ramp = 255 * 10 ** (-0.02 * np.arange(40))  # the density grows by 0.02 per pixel
    image = np.broadcast_to(np.rint(ramp).astype(np.uint8)[None, :, None], (40, 40, 3))
    grey = Stains((3**-0.5,) * 3, (0.0, 2**-0.5, -(2**-0.5)), "of this test")
    found = measure_pixels(LabelledPixels(labels, np.ascontiguousarray(image), 1, None, grey))
    assert found["gradient_mean_per_px"] == pytest.approx(0.02 * 3**0.5, rel=0.02)
    assert found["chromatin_granularity"] < 0.06
    dots = np.full((40, 40, 3), 255, np.uint8)
    dots[6:34:4, 6:34:4] = 60  # clumps of one pixel, all of which a disc of two pixels misses
    found = measure_pixels(LabelledPixels(labels, dots, 1, None, grey))
    assert found["chromatin_granularity"] == pytest.approx(1)


def test_odd_nuclei_have_numbers_or_nan_but_never_an_error():
    labels = np.zeros((9, 9), np.int32)
    labels[0, 0] = 1  # a pixel in the corner
    labels[2, 2:6] = 2  # a line
    labels[5:8, 5:8] = 4
    labels[6, 6] = 0  # a hole; label 3 has no pixel
    found = measure_pixels(LabelledPixels(labels, stained(labels), 4, (0.25, 0.25)))
    for values in found.values():
        assert values.shape == (4,)
        assert values.dtype == np.float32
        assert np.isnan(values[2])
        assert not np.isinf(values).any()
    assert found["area_um2"][[0, 1, 3]].tolist() == [0.0625, 0.25, 0.5]
    assert np.isnan(found["circularity"][0])
    assert np.isnan(found["glcm_contrast"][0])
    assert found["eccentricity"][:2].tolist() == [0, 1]
    assert found["solidity"][3] == pytest.approx(8 / 9)
    assert found["hematoxylin_sd"][0] == 0


def test_without_nuclei_there_are_all_columns():
    for unit, mpp in (("px", None), ("um", (0.25, 0.25))):
        found = measure_pixels(LabelledPixels(np.zeros((4, 4), np.int32), np.zeros((4, 4, 3), np.uint8), 0, mpp))
        assert tuple(found) == measured_names(unit)
        assert all(len(values) == 0 for values in found.values())


@settings(max_examples=25)
@given(hnp.arrays(np.int32, (7, 7), elements=st.integers(0, 3)))
def test_any_map_is_measured_as_scikit_image_does(labels):
    found = measure_pixels(LabelledPixels(labels, stained(labels), 3))
    for region in skimage.measure.regionprops(labels):
        for name in ("area", "perimeter", "axis_major_length", "axis_minor_length"):
            expected = getattr(region, name)
            assert found[EXACT[name]][region.label - 1] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        if region.area > 1 and region.axis_minor_length > 1e-6:  # they cannot draw the hull of a line
            assert found["solidity"][region.label - 1] == pytest.approx(region.solidity, rel=1e-4)


def test_what_does_not_fit_is_refused():
    labels, image = np.ones((3, 3), np.int32), np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(DataError, match="labels span 0 to 1 for 0 nuclei"):
        LabelledPixels(labels, image, 0)
    with pytest.raises(DataError, match="give integers"):
        LabelledPixels(labels.astype(float), image, 1)
    with pytest.raises(ImageError, match="as large as the labels"):
        LabelledPixels(labels, image[:2], 1)


def test_a_plug_in_adds_columns_and_must_not_take_a_name(monkeypatch, labels, image):
    class Twice(Measurement):
        def __call__(self, pixels):
            return {"twice_the_pixels": pixels.spread(2 * pixels.groups.sizes)}

    class Area(Measurement):
        def __call__(self, pixels):
            return {"area_px2": pixels.spread(pixels.groups.sizes)}

    MEASUREMENTS.load()
    monkeypatch.setattr(MEASUREMENTS, "_entries", dict(MEASUREMENTS._entries))
    MEASUREMENTS.register("twice")(Twice)
    pixels = LabelledPixels(labels, image, int(labels.max()))
    found = measure_pixels(pixels)
    np.testing.assert_array_equal(found["twice_the_pixels"], 2 * found["area_px2"])
    MEASUREMENTS.register("zone")(Area)
    with pytest.raises(ConfigError, match=r"'zone' gives \['area_px2'\]"):
        measure_pixels(pixels)


def test_stains_are_found_again():
    rng = np.random.default_rng(0)
    hematoxylin, eosin = (np.array(v) / np.linalg.norm(v) for v in ([0.55, 0.75, 0.37], [0.15, 0.88, 0.45]))
    share = rng.dirichlet((0.35, 0.35), 40_000) * rng.uniform(0.3, 1.2, (40_000, 1))
    density = share @ np.stack([hematoxylin, eosin]) + rng.normal(0, 0.004, (40_000, 3))
    pixels = np.clip(np.rint(255 * 10**-density), 1, 255).astype(np.uint8).reshape(200, 200, 3)
    pixels = np.concatenate([pixels, np.full((200, 200, 3), 245, np.uint8)])  # glass
    found = estimate_stains([pixels[:200], pixels[200:]])
    assert found.doubt == ""
    assert np.degrees(np.arccos(np.dot(found.hematoxylin, hematoxylin))) < 3
    assert np.degrees(np.arccos(np.dot(found.eosin, eosin))) < 3
    assert found == estimate_stains([pixels])


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((100, 100, 3), 250, np.uint8), "too little stained tissue"),
        (np.tile(np.array([150, 80, 160], np.uint8), (100, 100, 1)), "one stain only"),
        (np.random.default_rng(0).integers(20, 200, (100, 100, 3), np.uint8), "not those of haematoxylin"),
    ],
)
def test_where_there_are_no_stains_the_published_ones_are_taken_and_said(pixels, reason):
    found = estimate_stains([pixels])
    assert (found.hematoxylin, found.eosin) == (RUIFROK.hematoxylin, RUIFROK.eosin)
    assert reason in found.doubt
    assert found.facts()["source"] == "Ruifrok and Johnston 2001"
    assert estimate_stains([]).doubt
