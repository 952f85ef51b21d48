"""Maps of turned images, brought back: targets of the turned instance map, restored, are those of the map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellvit.data.targets import hv_map_from_instances
from cellvit.errors import ConfigError
from cellvit.geometry.star import object_probability, radial_distances
from cellvit.geometry.symmetry import Symmetry, symmetries
from cellvit.heads import BinaryHead, HVHead, ObjectProbabilityHead, RadialDistancesHead, TissueHead
from cellvit.testing.head import SIZES

EIGHT = symmetries(8)
MIRROR = Symmetry(flip_x=True)


def drawn(seed, height=40, width=56):
    """Return an instance map of blobs of any shape."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width)), 2.5)
    return ndimage.label(noise > np.median(noise) + 0.01)[0].astype(np.int32)


def restored_hv(instances, symmetry):
    view = symmetry.apply(torch.from_numpy(instances)).contiguous().numpy()
    return HVHead(SIZES).restore(torch.from_numpy(hv_map_from_instances(view))[None], symmetry)[0].numpy()


def pixels_of_one_step(instances):
    """Return, per pixel and axis, how much one pixel is in the published map of its nucleus at most."""
    step = np.zeros((2, *instances.shape))
    for label in range(1, instances.max() + 1):
        for channel, position in enumerate(np.nonzero(instances == label)[::-1]):
            centre = int(np.floor(position.mean() + 0.5))
            shorter = min(centre - position.min(), position.max() - centre)
            step[channel][instances == label] = 1 / (shorter + 1)
    return step


@given(st.integers(0, 10_000), st.sampled_from(EIGHT))
@settings(max_examples=40)
def test_restored_hv_targets_are_within_one_pixel_of_the_true_distance(seed, symmetry):
    instances = drawn(seed)
    target, restored = hv_map_from_instances(instances), restored_hv(instances, symmetry)
    # each is at most one pixel from the true distance, on one side the target and on the other the restored one
    assert (np.abs(restored - target) <= 2 * pixels_of_one_step(instances) + 1e-6).all()
    mirrored = [symmetry.flip_x, symmetry.flip_y]
    for channel in np.flatnonzero(np.logical_not(mirrored)):  # an axis that is not mirrored has no offset
        np.testing.assert_array_equal(restored[channel], target[channel])


def test_the_mean_of_an_image_and_its_mirror_image_is_centred():
    instances = np.zeros((9, 13), np.int32)
    instances[2:7, 3:10] = 1  # the centre is a pixel
    target, restored = hv_map_from_instances(instances), restored_hv(instances, MIRROR)
    assert target[0, 4, 6] == 0.25
    assert restored[0, 4, 6] == -0.25
    mean = (target + restored)[0, 4, 3:10] / 2
    np.testing.assert_allclose(mean, -mean[::-1])
    assert (np.diff(mean) > 0).all()


@pytest.mark.parametrize("symmetry", EIGHT)
def test_restored_radial_distances_and_probabilities_are_those_of_the_image(symmetry):
    instances = torch.from_numpy(drawn(3))[None]
    view = symmetry.apply(instances).contiguous()
    rays = RadialDistancesHead(SIZES, num_rays=8)
    restored = rays.restore(radial_distances(view, 8), symmetry)
    torch.testing.assert_close(restored, radial_distances(instances, 8))
    probability = ObjectProbabilityHead(SIZES).restore(object_probability(view)[:, None], symmetry)
    torch.testing.assert_close(probability[:, 0], object_probability(instances))


def test_rays_need_a_number_that_the_view_leaves_in_place():
    maps = torch.rand(1, 6, 4, 5)
    head = RadialDistancesHead(SIZES, num_rays=6)
    assert head.restore(maps, MIRROR).shape == maps.shape
    with pytest.raises(ConfigError, match="6 rays"):
        head.restore(maps, Symmetry(transpose=True))


def test_maps_are_moved_and_vectors_of_images_are_not():
    binary = torch.rand(2, 2, 3, 4)
    assert torch.equal(BinaryHead(SIZES).restore(binary, MIRROR), binary.flip(-1))
    tissue = torch.rand(2, 7)
    assert torch.equal(TissueHead(SIZES).restore(tissue, Symmetry(transpose=True, flip_y=True)), tissue)
