import pickle

import cv2
import numpy as np
import pytest

from cellvit.data.augmentation.elastic import ElasticAffine
from cellvit.data.augmentation.transforms import PUBLISHED, build_augmentation, seed_augmentation
from cellvit.errors import ConfigError

PALETTE = np.random.default_rng(5).integers(0, 256, (64, 3), dtype=np.uint8)
EXTRA = ("scale", "hed_jitter", "resolution", "stain_mix", "jpeg", "auto_contrast")
GEOMETRIC = ["rotate90", "horizontal_flip", "vertical_flip", "random_resized_crop", "elastic", "scale"]
EXACT = ["rotate90", "horizontal_flip", "vertical_flip"]
SIZE = 96


@pytest.fixture(scope="module")
def labels():
    """Discs of different radius; some touch the border."""
    instance_map = np.zeros((SIZE, SIZE), np.int16)
    rows, cols = np.mgrid[:SIZE, :SIZE]
    rng = np.random.default_rng(1)
    for label in range(1, 25):
        r, c = rng.integers(0, SIZE, 2)
        instance_map[(rows - r) ** 2 + (cols - c) ** 2 < rng.integers(20, 90)] = label
    return instance_map


def test_published_values():
    probabilities = {name: values["p"] for name, values in PUBLISHED.items()}
    assert probabilities == {
        "rotate90": 0.5,
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "downscale": 0.15,
        "blur": 0.2,
        "gauss_noise": 0.25,
        "color_jitter": 0.2,
        "superpixels": 0.1,
        "zoom_blur": 0.1,
        "random_resized_crop": 0.1,
        "elastic": 0.2,
    }
    assert dict(PUBLISHED["color_jitter"]) == {
        "p": 0.2,
        "brightness": 0.25,
        "contrast": 0.25,
        "saturation": 0.1,
        "hue": 0.05,
    }
    assert dict(PUBLISHED["elastic"]) == {"p": 0.2, "alpha": 0.5, "sigma": 25.0, "alpha_affine": 15.0}
    assert [t.p for t in build_augmentation().transforms] == list(probabilities.values())


@pytest.mark.parametrize("name", GEOMETRIC)
def test_image_and_labels_stay_aligned(name, labels):
    """Warp a picture of the coordinates, and the coordinates as labels: they must agree to half a pixel."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    image = np.stack([2 * rows, 2 * cols, 0 * rows], axis=-1).astype(np.uint8)
    masks = [labels, rows.astype(np.int16), cols.astype(np.int16), labels]
    augmentation = build_augmentation({name: {"p": 1.0}}, size=SIZE)
    changed = 0
    for seed in range(12):
        seed_augmentation(augmentation, seed)
        done = augmentation(image=image, masks=masks)
        assert [m.shape for m in done["masks"]] == [(SIZE, SIZE)] * 4
        assert {m.dtype for m in done["masks"]} == {np.dtype(np.int16)}
        instance_map, row, col, types = done["masks"]
        shift = np.stack([done["image"][..., 0] / 2 - row, done["image"][..., 1] / 2 - col])
        assert np.abs(shift).max() <= (0 if name in EXACT else 0.8)
        assert np.abs(shift.mean(axis=(1, 2))).max() < 0.1
        np.testing.assert_array_equal(types, labels[row, col])
        np.testing.assert_array_equal(instance_map > 0, types > 0)
        changed += (row != rows).any() or (col != cols).any()
    assert changed > 6


@pytest.mark.parametrize("name", ["elastic", "scale"])
def test_no_label_is_in_two_far_places(name, labels):
    config = {"elastic": {"p": 1, "alpha_affine": 40}, "scale": {"p": 1, "limit": [0.5, 0.6]}}[name]
    augmentation = build_augmentation({name: config}, size=SIZE)
    split = 0
    before = {i: cv2.connectedComponents((labels == i).astype(np.uint8))[0] - 1 for i in np.unique(labels[labels > 0])}
    for seed in range(10):
        seed_augmentation(augmentation, seed)
        instance_map, copy = augmentation(image=PALETTE[labels], masks=[labels, labels])["masks"]
        split += len(np.unique(instance_map)) > len(np.unique(copy))
        for label in np.unique(instance_map[instance_map > labels.max()]):
            assert cv2.connectedComponents((instance_map == label).astype(np.uint8))[0] == 2
        for label in np.unique(copy[copy > 0]):
            if before[label] == 1 and (instance_map == label).sum() > 0:
                assert cv2.connectedComponents((instance_map == label).astype(np.uint8))[0] - 1 <= 4
    assert split > 5


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) | set(EXTRA)))
def test_every_augmentation_keeps_shape_and_type_and_is_seeded(name, labels):
    augmentation = build_augmentation({name: {"p": 1.0}}, size=SIZE)
    # not all of the greys, for a stretch of contrast would change nothing
    image = np.random.default_rng(2).integers(20, 236, (SIZE, SIZE, 3), dtype=np.uint8)
    results = []
    for seed in (3, 3, 4, 5, 6):
        seed_augmentation(augmentation, seed)
        done = augmentation(image=image.copy(), masks=[labels, labels])
        assert done["image"].shape == image.shape
        assert done["image"].dtype == np.uint8
        if name not in GEOMETRIC:
            np.testing.assert_array_equal(done["masks"][0], labels)
        results.append(done["image"])
    np.testing.assert_array_equal(results[0], results[1])
    if name not in ("horizontal_flip", "vertical_flip", "downscale", "auto_contrast"):
        assert any((results[0] != r).any() for r in results[2:])
    assert any((r != image).any() for r in results)
    again = pickle.loads(pickle.dumps(augmentation))  # loader processes may be spawned
    seed_augmentation(again, 3)
    np.testing.assert_array_equal(again(image=image, masks=[labels, labels])["image"], results[0])


def test_transforms_decide_independently():
    augmentation = build_augmentation({"horizontal_flip": {}, "vertical_flip": {}}, size=4)
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    counts = {}
    for seed in range(400):
        seed_augmentation(augmentation, seed)
        corner = int(augmentation(image=image, masks=[])["image"][0, 0, 0])
        counts[corner] = counts.get(corner, 0) + 1
    assert sorted(counts) == [0, 9, 36, 45]
    assert min(counts.values()) > 65


def test_noise_variance_is_uniform_and_noise_is_independent():
    augmentation = build_augmentation({"gauss_noise": {"p": 1.0}}, size=64)
    image = np.full((64, 64, 3), 128, np.uint8)
    variances, correlations = [], []
    for seed in range(600):
        seed_augmentation(augmentation, seed)
        noise = augmentation(image=image, masks=[])["image"].astype(float) - 128
        variances.append(noise.var())
        correlations.append(np.corrcoef(noise.reshape(-1, 3).T)[0, 1])
        assert abs(noise.mean()) < 0.3
    rounding = 1 / 12
    quartiles = np.array([12.5, 25.0, 37.5]) + rounding
    np.testing.assert_allclose(np.quantile(variances, [0.25, 0.5, 0.75]), quartiles, atol=3)  # 3 standard errors
    assert max(variances) < 52
    assert abs(np.mean(correlations)) < 0.01


def test_noise_is_cut_off_at_black_and_white():
    augmentation = build_augmentation({"gauss_noise": {"p": 1.0, "variance_limit": 2500}}, size=64)
    for value in (0, 255):
        image = np.full((64, 64, 3), value, np.uint8)
        seed_augmentation(augmentation, 1)
        noisy = augmentation(image=image, masks=[])["image"]
        assert 0.4 < (noisy == value).mean() < 0.7  # half of the noise would leave the range
        assert abs(noisy.astype(int) - value).max() < 255


def test_blur_box_is_at_most_nine():
    augmentation = build_augmentation({"blur": {"p": 1.0}}, size=31)
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    widths = set()
    for seed in range(60):
        seed_augmentation(augmentation, seed)
        widths.add(int((augmentation(image=image, masks=[])["image"][:, 15, 0] > 0).sum()))
    assert widths == {3, 5, 7, 9}


def test_downscale_repeats_pixels():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    small = build_augmentation({"downscale": {"p": 1.0}}, size=32)(image=image, masks=[])["image"]
    blocks = small.reshape(16, 2, 16, 2, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert np.isin(small.reshape(-1, 3).view("u1,u1,u1"), image.reshape(-1, 3).view("u1,u1,u1")).all()


def test_superpixels_flatten_a_share():
    rows, cols = np.mgrid[:SIZE, :SIZE]
    image = np.stack([2 * rows, 2 * cols, rows + cols], axis=-1).astype(np.uint8)

    def colours(**values):
        augmentation = build_augmentation({"superpixels": {"p": 1.0, "max_size": SIZE, **values}}, size=SIZE)
        seed_augmentation(augmentation, 0)
        return len(np.unique(augmentation(image=image, masks=[])["image"].reshape(-1, 3), axis=0))

    original = len(np.unique(image.reshape(-1, 3), axis=0))
    assert colours(p_replace=0.0) == original
    assert colours(p_replace=1.0) <= 250
    assert 0.7 * original < colours(p_replace=0.1) < original


def test_published_displacement_is_too_small_to_matter():
    warp = ElasticAffine(alpha=0.5, sigma=25.0, alpha_affine=0.0)
    largest = max(np.abs(warp._displacement(256, 256)).max() for _ in range(10))
    assert largest < 0.05
    params = warp.get_params_dependent_on_data({"shape": (20, 30, 3)}, {})
    np.testing.assert_allclose(params["map_x"], np.tile(np.arange(30), (20, 1)), atol=1e-4)
    strong = ElasticAffine(alpha=500.0, sigma=10.0, alpha_affine=0.0)
    moved = strong.get_params_dependent_on_data({"shape": (64, 64, 3)}, {})["map_y"] - np.arange(64)[:, None]
    assert 2 < np.abs(moved).max() < 100
    assert np.abs(np.diff(moved, axis=0)).max() < 5  # smooth


def test_affine_moves_the_corners_by_the_like_of_its_strength():
    warp = ElasticAffine(alpha=0.0, sigma=1.0, alpha_affine=15.0)
    warp.set_random_seed(0)
    centre = []
    for _ in range(50):
        params = warp.get_params_dependent_on_data({"shape": (256, 256, 3)}, {})
        centre.append([params["map_x"][128, 128] - 128, params["map_y"][128, 128] - 128])
    assert 4 < np.std(centre) < 10
    assert np.abs(centre).max() < 20


def test_no_stain_jitter_changes_nothing():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    same = build_augmentation({"hed_jitter": {"p": 1.0, "scale": 0.0, "shift": 0.0}})(image=image, masks=[])["image"]
    assert np.abs(same.astype(int) - image).max() <= 1


def lower_resolution(image, **settings):
    augmentation = build_augmentation({"resolution": {"p": 1.0, **settings}}, size=len(image))
    seed_augmentation(augmentation, 0)
    return augmentation(image=image, masks=[])["image"]


@pytest.mark.parametrize("scale", [(0.1, 0.1), (0.4, 0.9), (0.5, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("shape", [(64, 64), (50, 31), (1, 7)])
def test_lower_resolution_keeps_size_and_colour(scale, shape):
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([40 + 2 * rows, 200 - 2 * cols, 90 + rows + cols], axis=-1).astype(np.uint8)
    done = lower_resolution(smooth, scale=scale)
    assert done.shape == smooth.shape
    assert done.dtype == np.uint8
    assert np.abs(done.mean((0, 1)) - smooth.mean((0, 1))).max() < 1
    flat = np.full((*shape, 3), (255, 0, 117), np.uint8)
    np.testing.assert_array_equal(lower_resolution(flat, scale=scale), flat)
    if scale == (1.0, 1.0):
        np.testing.assert_array_equal(done, smooth)


def test_lower_resolution_loses_what_is_finer_than_it():
    rows, cols = np.mgrid[:64, :64]
    for period, least, most in ((2, 0.0, 0.05), (16, 0.8, 1.1)):
        wave = 128 + 80 * np.cos(2 * np.pi * (rows + 0.5) / period) * np.ones_like(cols)
        stripes = np.repeat(wave[..., None], 3, axis=-1).round().astype(np.uint8)
        kept = lower_resolution(stripes, scale=(0.4, 0.4))[8:-8].std() / max(stripes[8:-8].std(), 1)
        assert least <= kept <= most
    checks = np.repeat((255 * ((rows + cols) % 2))[..., None], 3, axis=-1).astype(np.uint8)
    assert checks.std() > 127
    assert lower_resolution(checks, scale=(0.5, 0.5)).std() < 1


def test_empty_configuration_changes_nothing(labels):
    done = build_augmentation({})(image=PALETTE[labels], masks=[labels])
    np.testing.assert_array_equal(done["image"], PALETTE[labels])


def test_order_is_the_published_one():
    reverse = {name: {} for name in reversed(PUBLISHED)}
    names = [type(t).__name__ for t in build_augmentation(reverse).transforms]
    assert names == [type(t).__name__ for t in build_augmentation().transforms]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mixup": {}}, "no augmentation 'mixup'; known: rotate90, horizontal_flip"),
        ({"blur": {"radius": 3}}, "takes no parameter 'radius'; it takes: p, limit"),
        ({"blur": {"p": 1.5}}, "p=1.5; give a probability"),
        ({"blur": {"p": "often"}}, "p='often'"),
        ({"blur": {"limit": 2}}, "smallest box"),
        ({"random_resized_crop": {"scale": [0.9, 0.2]}}, "low <= high"),
        ({"random_resized_crop": {"scale": 1}}, "'random_resized_crop' does not work"),
        ({"elastic": {"sigma": 0}}, "out of range"),
        ({"scale": {"limit": [0, 1]}}, "out of range"),
        ({"superpixels": {"segments": 0}}, "out of range"),
        ({"hed_jitter": {"scale": 2}}, "not in"),
        ({"resolution": {"scale": [0.9, 0.4]}}, "low <= high"),
        ({"resolution": {"scale": [0, 0.5]}}, "low <= high"),
        ({"resolution": {"scale": [0.5, 1.5]}}, "low <= high"),
        ({"resolution": {"scale": [0.5]}}, "'resolution' does not work"),
        ({"resolution": {"scale": [0.4, 0.5, 0.9]}}, "'resolution' does not work"),
        ({"resolution": {"scale": 0.5}}, "'resolution' does not work"),
        ({"gauss_noise": {"variance_limit": -1}}, "'gauss_noise' does not work"),
    ],
)
def test_wrong_configuration_is_explained(config, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build_augmentation(config)
