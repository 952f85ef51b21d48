"""Patches around rare types: which images are drawn, and where the patch lies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellvit.data import Draw, FolderDataset
from cellvit.data.balance import TypeBalance, count_types
from cellvit.errors import ConfigError

SIZE = 24


def published_corner(shape, *, size, rng):
    """Where a patch lies without balance."""
    return tuple(int(rng.integers(max(length - size, 0) + 1)) for length in shape)


def scattered(numbers, *, spacing=40):
    """An image with nuclei so far apart that no patch shows two: ``numbers[t]`` of type ``t + 1``, of growing size."""
    kinds = np.repeat(np.arange(1, len(numbers) + 1), numbers)
    instance_map = np.zeros((spacing, spacing * len(kinds)), np.uint16)
    for label in range(1, len(kinds) + 1):
        left = spacing * (label - 1) + 18
        instance_map[18 : 21 + label % 2, left : left + 3] = label
    return instance_map, np.r_[0, kinds].astype(np.int32)


def types_shown(types, instance_map, corner, *, size=SIZE):
    top, left = corner
    labels = np.unique(instance_map[top : top + size, left : left + size])
    return types[labels[labels > 0]].tolist()


def chi_square(found, expected):
    return float(((np.asarray(found) - expected) ** 2 / expected).sum())


@st.composite
def numbers_of_nuclei(draw):
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    counts = draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 50)))
    counts[0, 0] += 1
    weights = draw(arrays.arrays(np.float64, shape[0], elements=st.floats(0.01, 1)))
    return counts, weights / weights.sum()


@given(numbers_of_nuclei(), st.floats(0, 1))
def test_probabilities_are_those_of_the_slow_loop_and_sum_to_one(drawn, share):
    counts, weights = drawn
    balance = TypeBalance(counts, weights, share=share)
    present = [t for t in range(counts.shape[1]) if counts[:, t].any()]
    for image, weight in enumerate(weights):
        around = sum(counts[image, t] / counts[:, t].sum() for t in present) / len(present)
        assert balance.weights[image] == pytest.approx((1 - share) * weight + share * around)
    assert balance.weights.sum() == pytest.approx(1)
    assert (balance.weights >= 0).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 60), width=st.integers(1, 60), share=st.sampled_from([0, 0.5]))
def test_without_share_or_types_the_draws_are_those_of_before(seed, height, width, share):
    """The generator is left in the same state, too, so the augmentation stays the same."""
    instance_map = np.ones((height, width), np.uint16)
    typed = np.array([0, 1], np.int32) if share == 0 else None
    counts = np.array([[0, 1], [0, 1 if typed is not None else 0]])
    balance = TypeBalance(counts, np.array([0.5, 0.5]), share=share)
    ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    expected = published_corner((height, width), size=SIZE, rng=theirs)
    assert balance.corner(1, instance_map, typed, size=SIZE, rng=ours) == expected
    assert ours.integers(2**31) == theirs.integers(2**31)


def test_without_share_patches_are_those_of_before(two_datasets):
    data = FolderDataset(two_datasets, crop_size=SIZE, augmentation={}, type_balance=0.0)
    whole = FolderDataset(two_datasets)
    area = np.array([h * w for h, w in data.shapes])
    np.testing.assert_allclose(data.draw_weights(), area / area.sum())
    for image in range(3):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            top, left = published_corner(data.shapes[image], size=SIZE, rng=rng)
            expected = whole[image]["image"][:, top : top + SIZE, left : left + SIZE]
            assert torch.equal(data[Draw(image, seed)]["image"], expected)


def test_types_are_drawn_evenly_whatever_their_numbers():
    images = [scattered([1, 12, 0]), scattered([0, 4, 2])]
    counts = count_types([(np.unique(m), t) for m, t in images] + [(np.empty(0, int), None)])
    balance = TypeBalance(counts, np.array([0.2, 0.2, 0.6]), share=1.0)
    rng, draws, found = np.random.default_rng(3), 1500, np.zeros((2, 4), int)
    for image in rng.choice(3, size=draws, p=balance.weights):
        instance_map, types = images[image]
        shown = types_shown(types, instance_map, balance.corner(image, instance_map, types, size=SIZE, rng=rng))
        assert len(shown) == 1
        found[image, shown[0]] += 1
    assert chi_square(found.sum(0)[1:], draws / 3) < 13.8  # 1 in 1,000 with two degrees of freedom
    of_second = found[:, 2]
    assert chi_square(of_second, of_second.sum() * np.array([12, 4]) / 16) < 10.8  # in proportion to their numbers


def test_a_share_of_the_patches_is_balanced():
    instance_map, types = scattered([1, 9])
    balance = TypeBalance(count_types([(np.unique(instance_map), types)]), np.ones(1), share=0.5)
    plain = TypeBalance(count_types([(np.unique(instance_map), types)]), np.ones(1), share=0.0)

    def rare(chosen, draws=1500):
        rng = np.random.default_rng(0)
        corners = (chosen.corner(0, instance_map, types, size=SIZE, rng=rng) for _ in range(draws))
        return sum(1 in types_shown(types, instance_map, corner) for corner in corners) / draws

    before = rare(plain)
    assert before < 0.1
    assert rare(balance) == pytest.approx(0.5 * before + 0.25, abs=0.04)  # 3 standard errors


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    place=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_the_nucleus_lies_in_the_middle_half_where_there_is_room(seed, size, shape, place):
    row, col = (int(p * length) for p, length in zip(place, shape, strict=True))
    instance_map = np.zeros(shape, np.int32)
    instance_map[row, col] = 1
    balance = TypeBalance(np.array([[0, 1]]), np.ones(1), share=1.0)
    corner = balance.corner(0, instance_map, np.array([0, 1], np.int32), size=size, rng=np.random.default_rng(seed))
    for at, start, length in zip((row, col), corner, shape, strict=True):
        last = max(length - size, 0)
        assert 0 <= start <= last
        assert start <= at < start + size
        if 0 < start < last:
            assert size // 4 <= at - start < size - size // 4


def test_the_entry_of_the_background_is_not_read():
    """The first entry of ``inst_type`` may be anything, also a type that occurs."""
    instance_map = np.zeros((200, 200), np.uint16)
    instance_map[150:153, 20:23] = 1
    types = np.array([2, 2], np.int32)
    counts = count_types([(np.unique(instance_map), types)])
    assert counts.tolist() == [[0, 0, 1]]
    balance, rng = TypeBalance(counts, np.ones(1), share=1.0), np.random.default_rng(0)
    for _ in range(20):
        assert types_shown(types, instance_map, balance.corner(0, instance_map, types, size=SIZE, rng=rng)) == [2]


def test_counts_leave_out_background_and_unknown_types():
    types = np.array([0, 3, -1, 1, 1, 3], np.int32)
    images = [(np.array([0, 1, 3, 4]), types), (np.array([2, 5]), types), (np.array([1]), None), (np.array([0]), types)]
    assert count_types(images).tolist() == [[0, 2, 0, 1], [0, 0, 0, 1], [0] * 4, [0] * 4]
    assert count_types([(np.array([1, 2]), None)]).tolist() == [[0]]


@pytest.mark.parametrize("cache", [True, False])
def test_patches_of_a_data_set_typed_in_part(two_datasets, cache):
    data = FolderDataset(two_datasets, crop_size=SIZE, augmentation={}, type_balance=1.0, cache=cache)
    weights = data.draw_weights()
    assert weights.sum() == pytest.approx(1)
    assert weights[2] == 0  # its types are unknown
    for image in (0, 1):
        for seed in range(15):
            assert data[Draw(image, seed)]["nuclei_type_map"].max() > 0


def test_images_smaller_than_the_patch(data_folder):
    data_folder.add("a", "1", "train", typed=True, size=(20, 50)).add("a", "2", "train", typed=True, size=(9, 8))
    data = FolderDataset(data_folder.write(), crop_size=30, augmentation={}, type_balance=1.0)
    for image in (0, 1):
        for seed in range(10):
            item = data[Draw(image, seed)]
            assert item["image"].shape == (3, 30, 30)
            assert item["nuclei_type_map"].max() > 0


def test_data_set_weights_and_balance_together(two_datasets):
    weights = {"typed": 0.3, "plain": 0.7}
    data = FolderDataset(two_datasets, crop_size=SIZE, dataset_weights=weights, type_balance=0.25)
    alone = FolderDataset(two_datasets, crop_size=SIZE, dataset_weights=weights).draw_weights()
    balanced = FolderDataset(two_datasets, crop_size=SIZE, type_balance=1.0).draw_weights()
    np.testing.assert_allclose(data.draw_weights(), 0.75 * alone + 0.25 * balanced)
    assert data.draw_weights()[2] == pytest.approx(0.75 * 0.7)


def test_data_sets_that_are_left_out_stay_out(data_folder):
    data_folder.add("a", "1", "train", typed=True).add("b", "2", "train", typed=True)
    root = data_folder.write()
    data = FolderDataset(root, crop_size=SIZE, dataset_weights={"a": 1, "b": 0}, type_balance=0.5)
    assert data.draw_weights().tolist() == [1, 0]


def test_balance_without_known_types_is_refused(two_datasets):
    message = r"type_balance 0\.5 needs nuclei of known type, and the images that are drawn have none; set it to 0"
    with pytest.raises(ConfigError, match=message):
        FolderDataset(two_datasets, datasets=["plain"], crop_size=SIZE, type_balance=0.5)
    with pytest.raises(ConfigError, match=message):
        FolderDataset(two_datasets, crop_size=SIZE, dataset_weights={"typed": 0, "plain": 1}, type_balance=0.5)
    assert len(FolderDataset(two_datasets, datasets=["plain"], crop_size=SIZE)) == 1
