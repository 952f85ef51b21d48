"""Star-convex targets against slow geometry, and under flips, turns and shifts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.rays import ray_directions, star_area
from cellvit.geometry.star import object_probability, radial_distances


def random_map(seed, *, shape=(9, 11), num=4):
    """Rectangles over each other: touching, cut by the border, in several pieces, with gaps in the labels."""
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, np.int64)
    for label in rng.choice(np.arange(1, 30), num, replace=False):
        top, left = rng.integers(-2, shape[0]), rng.integers(-2, shape[1])
        bottom, right = top + rng.integers(1, 7), left + rng.integers(1, 7)
        instances[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = label
    instances[rng.random(shape) < 0.1] = 0
    return torch.from_numpy(instances)


def others(instances, row, col):
    """All pixels ``(x, y)`` that are not of the nucleus at a pixel, those around the image too."""
    framed = np.pad(instances.numpy(), 1, constant_values=-1)
    rows, cols = np.nonzero(framed != instances[row, col].item())
    return cols - 1.0, rows - 1.0


def slow_probability(instances):
    distance = np.zeros(instances.shape)
    for row, col in np.argwhere(instances.numpy() > 0):
        x, y = others(instances, row, col)
        distance[row, col] = np.hypot(x - col, y - row).min()
    for label in np.unique(instances[instances > 0]):
        distance[instances == label] /= distance[instances == label].max()
    return distance


def slow_distances(instances, num_rays):
    """Where each ray first enters the inside of a foreign pixel's square."""
    distance = np.zeros((num_rays, *instances.shape))
    for row, col in np.argwhere(instances.numpy() > 0):
        x, y = others(instances, row, col)
        for ray, direction in enumerate(ray_directions(num_rays)):
            enter, leave = np.full(len(x), 0.0), np.full(len(x), np.inf)
            for centre, towards in ((x - col, direction[0]), (y - row, direction[1])):
                if towards == 0:
                    leave[np.abs(centre) >= 0.5] = -1
                    continue
                sides = (centre - 0.5) / towards, (centre + 0.5) / towards
                enter, leave = np.maximum(enter, np.minimum(*sides)), np.minimum(leave, np.maximum(*sides))
            distance[ray, row, col] = enter[enter < leave - 1e-9].min()
    return distance


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20))
def test_targets_equal_slow_geometry(seed):
    instances = torch.stack([random_map(seed), random_map(seed + 1)])
    probability, distances = object_probability(instances), radial_distances(instances, 8)
    for i in range(2):
        np.testing.assert_allclose(probability[i], slow_probability(instances[i]), atol=1e-6)
        np.testing.assert_allclose(distances[i], slow_distances(instances[i], 8), atol=1e-5)


@pytest.mark.parametrize("num_rays", [3, 5, 32])
def test_any_number_of_rays(num_rays):
    instances = random_map(3, shape=(14, 12), num=6)
    found = radial_distances(instances[None], num_rays)[0]
    np.testing.assert_allclose(found, slow_distances(instances, num_rays), atol=1e-5)


def test_large_nuclei_equal_slow_geometry():
    """Long rays, for which many pixels are not looked at."""
    rows, cols = np.indices((40, 48))
    drawn = np.where(np.hypot(rows - 18, cols - 20) < 16, 1, 0)
    drawn[np.hypot(rows - 30, cols - 40) < 12] = 2
    drawn[20:22, 5:9] = 0  # a hole
    instances = torch.from_numpy(drawn)
    np.testing.assert_allclose(radial_distances(instances[None])[0], slow_distances(instances, 32), atol=1e-5)
    np.testing.assert_allclose(object_probability(instances[None])[0], slow_probability(instances), atol=1e-6)


def maps_of(instances):
    return object_probability(instances[None])[0], radial_distances(instances[None])[0]


# What a change of the image does to the direction of a ray: k of the new image was `rays[k]` of the old one.
RAYS = np.arange(32)
CHANGES = {
    "flip left and right": (lambda v: v.flip(-1), (16 - RAYS) % 32),
    "flip top and bottom": (lambda v: v.flip(-2), -RAYS % 32),
    "turn left": (lambda v: v.rot90(1, (-2, -1)), (RAYS + 8) % 32),
    "transpose": (lambda v: v.mT, (8 - RAYS) % 32),
}


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**20))
def test_flips_and_turns_commute_with_the_targets(change, seed):
    apply, rays = CHANGES[change]
    instances = random_map(seed, shape=(16, 21), num=6)
    probability, distances = maps_of(instances)
    changed = maps_of(apply(instances).contiguous())
    torch.testing.assert_close(changed[0], apply(probability))
    torch.testing.assert_close(changed[1], apply(distances)[rays])


@settings(max_examples=10)
@given(seed=st.integers(0, 2**20), down=st.integers(1, 9), right=st.integers(1, 9))
def test_targets_move_with_the_nuclei(seed, down, right):
    inner = random_map(seed)
    small, large = torch.zeros(11, 13).long(), torch.zeros(21, 23).long()
    small[1:-1, 1:-1] = inner  # a rim of background, or the image would end nuclei elsewhere
    large[down : down + 11, right : right + 13] = small
    for before, after in zip(maps_of(small), maps_of(large), strict=True):
        torch.testing.assert_close(after[..., down : down + 11, right : right + 13], before)
        assert after.sum() == pytest.approx(before.sum().item(), rel=1e-5)


def test_images_of_a_batch_and_labels_do_not_influence_each_other():
    maps = [random_map(seed, shape=(20, 20)) for seed in range(4)]
    together = torch.stack(maps)
    for function in (object_probability, radial_distances):
        apart = torch.cat([function(m[None]) for m in maps])
        torch.testing.assert_close(function(together), apart)
        torch.testing.assert_close(function((together * 7).int()), apart)


def test_the_polygon_of_a_disc_has_its_area():
    rows, cols = torch.meshgrid(torch.arange(41), torch.arange(41), indexing="ij")
    disc = ((rows - 20) ** 2 + (cols - 20) ** 2 <= 15.3**2).long()
    distances = radial_distances(disc[None])[0, :, 20, 20]
    area = star_area(distances[None].numpy())
    assert area[0] == pytest.approx(disc.sum().item(), rel=0.03)


def test_no_nuclei_and_nothing_but_one():
    empty = torch.zeros(2, 5, 6).long()
    assert object_probability(empty).shape == (2, 5, 6)
    assert not object_probability(empty).any()
    assert not radial_distances(empty).any()
    full = torch.ones(1, 33, 33).long()
    assert object_probability(full)[0].argmax() == 33 * 16 + 16
    right, down, left, up = radial_distances(full)[0, ::8, 10, 20].tolist()
    assert (right, down, left, up) == (12.5, 22.5, 20.5, 10.5)  # the border of the image ends a ray
    assert object_probability(torch.ones(1, 1, 1).long()).item() == 1


def test_a_diagonal_ray_passes_between_pixels_that_touch_at_a_corner():
    instances = torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 0, 0]]])
    assert radial_distances(instances, 8)[0, 1, 0, 0].item() == pytest.approx(1.5 * 2**0.5)


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"torch.float32 \(1, 2, 2\)"):
        object_probability(torch.zeros(1, 2, 2))
    with pytest.raises(DataError, match=r"\(2, 2\)"):
        radial_distances(torch.zeros(2, 2).long())
    with pytest.raises(ConfigError, match="num_rays 2"):
        radial_distances(torch.zeros(1, 2, 2).long(), 2)


@pytest.mark.gpu
def test_the_device_makes_no_difference():
    instances = torch.stack([random_map(seed, shape=(64, 64), num=20) for seed in range(4)])
    for function in (object_probability, radial_distances):
        torch.testing.assert_close(function(instances.cuda()).cpu(), function(instances))
