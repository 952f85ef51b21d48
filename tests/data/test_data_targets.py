import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from cellvit.data.targets import (
    hv_map_from_instances,
    make_targets,
    relabel,
    separate_mirrored,
    type_map_from_instances,
)
from cellvit.errors import DataError

MAPS = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 4), fill=st.just(0))


def raw_distances(instance_map):
    """Raw distances by the published rule, one nucleus after the other; nan where there is none."""
    height, width = instance_map.shape
    raw = np.full((2, height, width), np.nan)
    for label in np.unique(instance_map[instance_map > 0]):
        mask = instance_map == label
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom, left, right = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
        top -= 2 if top >= 2 else 0
        left -= 2 if left >= 2 else 0
        bottom += 2 if bottom <= height - 2 else 0
        right += 2 if right <= width - 2 else 0
        crop = mask[top:bottom, left:right]
        if min(crop.shape) < 2:
            continue
        centre = [int(c + 0.5) for c in ndimage.center_of_mass(crop)]
        y, x = np.meshgrid(
            np.arange(1, crop.shape[0] + 1) - centre[0], np.arange(1, crop.shape[1] + 1) - centre[1], indexing="ij"
        )
        raw[0, top:bottom, left:right][crop] = x[crop]
        raw[1, top:bottom, left:right][crop] = y[crop]
    return raw


def normalise(raw, instance_map):
    out = np.zeros(raw.shape, np.float32)
    for label in np.unique(instance_map[instance_map > 0]):
        for channel in range(2):
            values = raw[channel][instance_map == label].astype(np.float32)
            if np.isnan(values).any():
                continue
            lowest, highest = values.min(), values.max()
            values = np.where(values < 0, values / -np.float32(lowest or 1), values / np.float32(highest or 1))
            out[channel][instance_map == label] = values
    return out


def literal_hv(instance_map):
    return normalise(raw_distances(instance_map), instance_map)


@given(MAPS)
def test_fast_hv_equals_the_literal_rule(instance_map):
    np.testing.assert_array_equal(hv_map_from_instances(instance_map), literal_hv(instance_map))


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (128, 128)])
def test_fast_hv_equals_the_literal_rule_on_larger_maps(shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(shape[0]).random(shape), 3)
    instance_map = ndimage.label(noise > 0.5)[0]
    assert instance_map.max() > 5
    np.testing.assert_array_equal(hv_map_from_instances(instance_map), literal_hv(instance_map))


def test_single_pixel_has_value_one_and_a_line_is_constant_in_its_thin_axis():
    instance_map = np.zeros((9, 9), np.int32)
    instance_map[1, 1] = 1
    instance_map[4, 2:8] = 2
    hv = hv_map_from_instances(instance_map)
    assert hv[:, 1, 1].tolist() == [1, 1]
    assert (hv[1, 4, 2:8] == 1).all()
    assert hv[0, 4, 2] == -1
    assert hv[0, 4, 7] == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 8), (3, 8)])
def test_thin_nucleus_without_room_is_left_zero(shape):
    instance_map = np.zeros(shape, np.int32)
    instance_map[shape[0] // 2, :] = 1
    np.testing.assert_array_equal(hv_map_from_instances(instance_map), literal_hv(instance_map))
    if shape[0] == 3:
        assert not hv_map_from_instances(instance_map).any()


def test_empty_map_gives_zeros():
    hv = hv_map_from_instances(np.zeros((5, 7), np.uint16))
    assert hv.shape == (2, 5, 7)
    assert hv.dtype == np.float32
    assert not hv.any()


@given(MAPS)
def test_transposition_swaps_the_channels(instance_map):
    expected = hv_map_from_instances(instance_map)[::-1].transpose(0, 2, 1)
    np.testing.assert_array_equal(hv_map_from_instances(instance_map.T.copy()), expected)


@given(MAPS)
def test_flip_turns_raw_distance_d_into_two_minus_d(instance_map):
    """The sign rule with the published offset: d' = 2 - d, or 1 - d where the centre of mass lies half way.

    Coordinates count from 1 and centres from 0, so the middle is 1, not 0; a tie is rounded up, and mirrored it is
    rounded down.
    """
    raw = raw_distances(instance_map)
    expected = raw.copy()
    for label in np.unique(instance_map[instance_map > 0]):
        mask = instance_map == label
        cols = np.nonzero(mask)[1]
        tie = 2 * cols.sum() % (2 * len(cols)) == len(cols)
        expected[0][mask] = (1 if tie else 2) - expected[0][mask]
    flipped = instance_map[:, ::-1].copy()
    hv = hv_map_from_instances(flipped)
    np.testing.assert_array_equal(hv, normalise(expected[:, :, ::-1], flipped))
    np.testing.assert_array_equal(hv[1], hv_map_from_instances(instance_map)[1][:, ::-1])


@given(MAPS)
def test_labels_and_their_gaps_do_not_matter(instance_map):
    sparse = np.where(instance_map > 0, instance_map * 10**8 + 7, 0)
    np.testing.assert_array_equal(hv_map_from_instances(sparse), hv_map_from_instances(instance_map))


@given(MAPS)
def test_each_side_reaches_its_bound(instance_map):
    hv = hv_map_from_instances(np.pad(instance_map, 2))
    assert hv.min() >= -1
    assert hv.max() <= 1
    for label in np.unique(instance_map[instance_map > 0]):
        values = hv[:, np.pad(instance_map, 2) == label]
        assert (values.max(axis=1) == 1).all()
        assert np.isin(values.min(axis=1) < 0, [False]).all() or values.min() == -1


@given(MAPS)
def test_relabel_is_contiguous_and_keeps_the_partition(instance_map):
    out = relabel(instance_map * 7)
    assert out.dtype == np.int32
    labels = np.unique(out[out > 0])
    assert labels.tolist() == list(range(1, len(labels) + 1))
    pairs = {(a, b) for a, b in zip(instance_map.ravel().tolist(), out.ravel().tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("function", [hv_map_from_instances, relabel, lambda m: type_map_from_instances(m, None)])
@pytest.mark.parametrize(
    "bad", [np.zeros((2, 2, 2), int), np.zeros((2, 2)), np.zeros(3, int), np.array([[0, -1]])], ids=str
)
def test_what_is_no_instance_map_is_refused(function, bad):
    with pytest.raises(DataError, match="instance map"):
        function(bad)


def test_type_map():
    instance_map = np.array([[0, 1, 1], [2, 3, 0]])
    assert type_map_from_instances(instance_map, None).tolist() == [[0, -1, -1], [-1, -1, 0]]
    types = np.array([9, 4, -7, 2], np.int64)
    assert type_map_from_instances(instance_map, types).tolist() == [[0, 4, 4], [-1, 2, 0]]
    assert types[0] == 9
    assert type_map_from_instances(instance_map, np.array([0, 4, 3, 2], np.uint8)).dtype == np.int32
    with pytest.raises(DataError, match="labels up to 3"):
        type_map_from_instances(instance_map, [0, 1, 2])
    with pytest.raises(DataError, match="types of shape"):
        type_map_from_instances(instance_map, np.zeros((4, 1)))


def test_mirror_images_apart_get_labels_of_their_own():
    instance_map = np.array([[5, 5, 0, 5, 5, 0, 5], [0, 0, 0, 0, 5, 5, 0]])
    real = np.zeros(instance_map.shape, bool)
    real[:, 3:] = True
    out = separate_mirrored(instance_map, real)
    # The right pixel is real and stays, the left part is a mirror image and apart; diagonal contact is contact.
    assert out.tolist() == [[6, 6, 0, 5, 5, 0, 5], [0, 0, 0, 0, 5, 5, 0]]
    assert separate_mirrored(instance_map, np.ones_like(real)) is instance_map
    assert not separate_mirrored(np.zeros((3, 3), int), np.zeros((3, 3), bool)).any()


def test_make_targets_follows_the_batch_contract():
    instance_map = np.array([[0, 4, 4], [9, 0, 0], [9, 0, 0]], np.int16)
    targets = make_targets(instance_map, type_map_from_instances(instance_map, None), tissue_type=3)
    assert targets["instance_map"].tolist() == [[0, 1, 1], [2, 0, 0], [2, 0, 0]]
    assert targets["nuclei_binary_map"].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert targets["nuclei_type_map"].tolist() == [[0, -1, -1], [-1, 0, 0], [-1, 0, 0]]
    assert targets["tissue_types"] == 3
    dtypes = {k: v.dtype for k, v in targets.items()}
    assert dtypes.pop("hv_map") == torch.float32
    assert set(dtypes.values()) == {torch.int64}
