import cv2
import numpy as np
import pytest

from cellvit.data.augmentation.stains import LAB_MEAN, Jpeg, StainMix
from cellvit.data.augmentation.transforms import build_augmentation, seed_augmentation
from cellvit.errors import ConfigError


def tissue(seed=0):
    """A smooth picture in the colours of H&E, with a corner of glass."""
    rng = np.random.default_rng(seed)
    lab = np.array([160, 150, 115]) + cv2.GaussianBlur(rng.normal(0, 60, (64, 64, 3)), (0, 0), 2)
    image = cv2.cvtColor(lab.clip(0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
    image[:16, :16] = 245
    return image


def lab_mean(image):
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    return lab[16:, 16:].reshape(-1, 3).mean(0)


def apply(name, image, seed, **settings):
    augmentation = build_augmentation({name: {"p": 1.0, **settings}}, size=64)
    seed_augmentation(augmentation, seed)
    labels = np.zeros(image.shape[:2], np.int16)
    return augmentation(image=image, masks=[labels, labels])["image"]


def test_colours_move_to_those_of_the_data_sets():
    transform, image = StainMix(spread=0.0, p=1.0), tissue()
    values = transform.get_params()
    np.testing.assert_allclose(values["mean"], LAB_MEAN[0])
    moved = transform.apply(image, share=1.0, mean=values["mean"], std=values["std"])
    assert np.abs(lab_mean(moved) - LAB_MEAN[0]).max() < 4  # RGB cuts off a few colours
    np.testing.assert_array_equal(
        transform.apply(image, share=0.0, mean=values["mean"], std=values["std"]).shape, image.shape
    )
    half = transform.apply(image, share=0.5, mean=values["mean"], std=values["std"])
    assert np.abs(lab_mean(half) - (lab_mean(image) + LAB_MEAN[0]) / 2).max() < 4


def test_share_0_changes_no_more_than_the_colour_space_rounds():
    image = tissue()
    same = apply("stain_mix", image, 0, strength=0.0)
    assert np.abs(same.astype(int) - image).mean() < 2


def test_glass_alone_stays_as_it_is():
    image = np.full((64, 64, 3), 244, np.uint8)
    np.testing.assert_array_equal(apply("stain_mix", image, 3), image)


@pytest.mark.parametrize("name", ["stain_mix", "jpeg"])
def test_the_seed_decides_and_the_input_stays(name):
    image = tissue()
    before = image.copy()
    first, again, other = (apply(name, image, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(image, before)
    assert first.dtype == np.uint8
    assert first.shape == image.shape


def test_jpeg_of_lower_quality_is_farther_from_the_image():
    image = tissue()
    error = [np.abs(apply("jpeg", image, 0, quality=(q, q)).astype(int) - image).mean() for q in (20, 60, 95)]
    assert error[0] > error[1] > error[2]
    assert error[2] < 6


def test_auto_contrast_stretches_channels_between_their_percentiles():
    image = np.random.default_rng(3).normal([120, 150, 90], [10, 25, 15], (96, 96, 3)).clip(0, 255).astype(np.uint8)
    low, high = np.percentile(image.reshape(-1, 3), (1, 99), axis=0)
    expected = ((image - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(apply("auto_contrast", image, 0, cutoff=1) - expected).mean() < 3
    assert np.abs(apply("auto_contrast", image, 0) - expected).mean() > 5  # 0.1 and 99.9


def test_jpeg_keeps_red_red():
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    red, green, blue = apply("jpeg", image, 0).reshape(-1, 3).mean(0)
    assert red > 190
    assert max(green, blue) < 10


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("stain_mix", {"strength": 1.5}),
        ("stain_mix", {"spread": -1.0}),
        ("jpeg", {"quality": (0, 50)}),
        ("jpeg", {"quality": (60, 50)}),
        ("jpeg", {"quality": (60, 101)}),
    ],
)
def test_impossible_settings_are_refused(name, settings):
    with pytest.raises(ConfigError, match=name):
        build_augmentation({name: settings})


def test_classes_refuse_them_too():
    with pytest.raises(ValueError, match="quality"):
        Jpeg(quality=(5, 1))
