import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellvit.data import EvaluationShard, Repeat, ShuffledDraws, WeightedDraws, balanced_weights
from cellvit.data.sampler import Draw, draw_seed, read_key
from cellvit.errors import ConfigError, DataError


def draws(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_draws_depend_on_seed_and_epoch_alone():
    first, second = (WeightedDraws([1, 2, 1], num_samples=50, seed=4) for _ in range(2))
    assert draws(first) == draws(second)
    assert draws(first, 1) == draws(second, 1) != draws(first, 0)
    assert draws(first) != draws(WeightedDraws([1, 2, 1], num_samples=50, seed=5))
    assert len(first) == 50
    assert len({d.seed for d in draws(first)}) == 50


def test_processes_share_one_list_of_draws():
    alone = draws(WeightedDraws([1, 2, 1], num_samples=32, seed=4), 3)
    parts = [draws(WeightedDraws([1, 2, 1], num_samples=32, seed=4, num_replicas=3, rank=r), 3) for r in range(3)]
    assert [len(p) for p in parts] == [10, 10, 10]
    assert [d for group in zip(*parts, strict=True) for d in group] == alone[:30]


def test_draws_follow_the_weights():
    images = [d.image for d in WeightedDraws([1, 0, 3], num_samples=4000)]
    np.testing.assert_allclose(np.bincount(images, minlength=3) / 4000, [0.25, 0, 0.75], atol=0.03)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [np.nan], [[1.0]]])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="sampling weights"):
        WeightedDraws(weights, num_samples=3)


def test_fewer_draws_than_processes_are_refused():
    with pytest.raises(ConfigError, match="2 draws per epoch for 4 process"):
        WeightedDraws([1], num_samples=2, num_replicas=4, rank=0)


def test_shuffled_draws_take_every_image_once_in_a_new_order():
    first, second = (draws(ShuffledDraws(40, seed=2), epoch) for epoch in (0, 1))
    assert sorted(d.image for d in first) == sorted(d.image for d in second) == list(range(40))
    assert [d.image for d in first] != [d.image for d in second]
    assert [d.image for d in first] != sorted(d.image for d in first)
    assert len({d.seed for d in first}) == 40
    assert first == draws(ShuffledDraws(40, seed=2), 0) != draws(ShuffledDraws(40, seed=3), 0)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_processes_share_one_shuffled_list(replicas):
    alone = draws(ShuffledDraws(31, seed=4), 5)
    parts = [draws(ShuffledDraws(31, seed=4, num_replicas=replicas, rank=r), 5) for r in range(replicas)]
    assert [d for group in zip(*parts, strict=True) for d in group] == alone[: 31 // replicas * replicas]


@pytest.mark.parametrize(("num_samples", "often"), [(4, {0, 1}), (10, {1}), (25, {2, 3})])
def test_another_number_of_shuffled_draws_spreads_evenly(num_samples, often):
    images = [d.image for d in ShuffledDraws(10, num_samples=num_samples)]
    assert len(images) == num_samples
    assert set(np.bincount(images, minlength=10).tolist()) == often


def test_no_images_are_not_shuffled():
    with pytest.raises(ConfigError, match="0 images to shuffle"):
        ShuffledDraws(0)


@given(images=st.integers(1, 40), replicas=st.integers(1, 9))
def test_shards_are_equally_long_and_count_every_image_once(images, replicas):
    shards = [list(EvaluationShard(images, num_replicas=replicas, rank=r)) for r in range(replicas)]
    assert (
        {len(s) for s in shards}
        == {math.ceil(images / replicas)}
        == {len(EvaluationShard(images, num_replicas=replicas, rank=0))}
    )
    keys = [key for shard in shards for key in shard]
    assert sorted(key for key in keys if not isinstance(key, Repeat)) == list(range(images))
    assert all(0 <= key.image < images for key in keys if isinstance(key, Repeat))


def test_one_process_evaluates_in_order():
    assert list(EvaluationShard(4)) == [0, 1, 2, 3]


def test_keys_say_what_they_ask_for():
    assert [read_key(key) for key in (3, np.int64(3), Draw(3, 9), Repeat(3))] == [(3, True)] * 3 + [(3, False)]
    assert draw_seed(Draw(3, 9)) == 9
    assert draw_seed(3) != draw_seed(3)


def slow_weights(tissue, presence, *, gamma, variant):
    """The formulas of the paper and of the released code, word by word."""
    number = len(tissue)
    by_tissue, by_type = [], []
    all_types = sum(sum(row) for row in presence)
    for i in range(number):
        same = sum(1 for other in tissue if other == tissue[i])
        by_tissue.append(number / (gamma * same + (1 - gamma) * number))
        first = max(presence[i]) if variant == "released" else 1
        second = 0.0
        for j, present in enumerate(presence[i]):
            if present:
                column = sum(row[j] for row in presence)
                second += all_types / (gamma * column + (1 - gamma) * all_types)
        by_type.append((1 - gamma) * first + gamma * second)
    if variant == "released":
        smallest = min((w for w in by_type if w), default=0.0)
        by_type = [w or smallest for w in by_type]
    return [t / max(by_tissue) + c / max(by_type) for t, c in zip(by_tissue, by_type, strict=True)]


@st.composite
def patches(draw, *, empty=False):
    """Tissues and types present; at least one patch has a nucleus unless ``empty``."""
    number, types = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    tissue = draw(st.lists(st.integers(0, 4), min_size=number, max_size=number))
    row = st.lists(st.integers(0, 1), min_size=types, max_size=types)
    presence = draw(st.lists(row, min_size=number, max_size=number))
    if not empty:
        presence[0][0] = 1
    return np.array(tissue), np.array(presence)


GAMMAS = st.sampled_from([0.0, 0.3, 0.85, 1.0])
VARIANTS = ["released", "paper"]


@pytest.mark.parametrize("variant", VARIANTS)
@given(data=patches(), gamma=GAMMAS)
def test_weights_are_those_of_the_formulas(variant, data, gamma):
    tissue, presence = data
    expected = slow_weights(tissue.tolist(), presence.tolist(), gamma=gamma, variant=variant)
    weights = balanced_weights(tissue, presence, gamma=gamma, variant=variant)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@given(data=patches(empty=True), gamma=GAMMAS)
def test_weights_are_positive_and_equal_without_balancing(variant, data, gamma):
    weights = balanced_weights(*data, gamma=gamma, variant=variant)
    assert (weights > 0).all()
    assert (weights <= 2).all()
    np.testing.assert_array_equal(balanced_weights(*data, gamma=0.0, variant=variant), 2.0)


@given(data=patches(empty=True), gamma=GAMMAS, seed=st.integers(0, 99))
def test_weights_follow_the_patches_when_these_are_reordered(data, gamma, seed):
    tissue, presence = data
    order = np.random.default_rng(seed).permutation(len(tissue))
    weights = balanced_weights(tissue, presence, gamma=gamma)
    np.testing.assert_allclose(balanced_weights(tissue[order], presence[order], gamma=gamma), weights[order])


@given(data=patches(empty=True), gamma=st.sampled_from([0.3, 0.85, 1.0]))
def test_of_patches_with_the_same_types_the_rarer_tissue_weighs_more(data, gamma):
    tissue, presence = data
    presence[:] = presence[0]
    weights = balanced_weights(tissue, presence, gamma=gamma)
    count = np.bincount(tissue)[tissue]
    for a in range(len(tissue)):
        assert ((weights[a] > weights) == (count[a] < count)).all()


def test_a_rare_type_weighs_more():
    presence = np.array([[1, 0]] * 5 + [[0, 1]])
    weights = balanced_weights(np.zeros(6, int), presence, gamma=0.85)
    assert weights[-1] == 2.0 > weights[0]


def test_the_variants_differ_in_patches_without_nuclei():
    tissue, presence = np.zeros(4, int), np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    released, paper = (balanced_weights(tissue, presence, gamma=0.85, variant=v) for v in VARIANTS)
    assert released[3] == released[0]  # raised to the smallest that is not 0
    assert paper[3] < paper[0]
    np.testing.assert_allclose(released[:3], paper[:3], rtol=1e-15)


def test_without_any_nucleus_the_tissue_decides():
    weights = balanced_weights([0, 0, 1], np.zeros((3, 5), int), gamma=1.0, variant="paper")
    np.testing.assert_allclose(weights, [1.5, 1.5, 2.0])


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(ConfigError, match="sampling gamma is"):
        balanced_weights([0], [[1]], gamma=gamma)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="variant 'meant' of the sampling weights is unknown"):
        balanced_weights([0], [[1]], gamma=0.5, variant="meant")


@pytest.mark.parametrize(
    ("tissue", "presence", "message"),
    [
        ([], np.zeros((0, 2)), "N at least 1"),
        ([0, 1], [[1]], "tissue has shape"),
        ([0.5], [[1]], "type float64"),
        ([0, 1], [1, 0], r"must be \(N, C\)"),
        ([0], [[2]], "hold 0 and 1 alone"),
    ],
)
def test_wrong_tables_are_refused(tissue, presence, message):
    with pytest.raises(DataError, match=message):
        balanced_weights(tissue, presence, gamma=0.5)
