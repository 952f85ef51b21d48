import numpy as np
import pytest
from support.drawn_nuclei import draw_ellipses, noisy_maps, perfect_maps

from cellvit.errors import ConfigError, DataError
from cellvit.postprocess import HVPostprocessor
from cellvit.postprocess.selection import select_instances


@pytest.fixture(scope="module")
def maps():
    return noisy_maps(draw_ellipses(60, (160, 200), radius=(3, 14), seed=6))


def areas(prediction):
    return np.bincount(prediction.instance_map.ravel())[1:]


def test_off_by_default(maps):
    plain, stated = HVPostprocessor()(maps), HVPostprocessor(threshold=0.5, min_size=0, min_prob=0.0)(maps)
    np.testing.assert_array_equal(plain.instance_map, stated.instance_map)
    assert HVPostprocessor().takes_labels == {"nuclei_binary_map", "nuclei_type_map"}


def test_small_nuclei_go_and_the_others_stay(maps):
    plain, large = HVPostprocessor()(maps), HVPostprocessor(min_size=120)(maps)
    sizes = areas(plain)
    assert (sizes < 120).any()
    assert sorted(areas(large)) == sorted(sizes[sizes >= 120])
    kept = large.instance_map > 0
    np.testing.assert_array_equal(kept, np.append(0, sizes >= 120)[plain.instance_map] > 0)
    assert len(large.nuclei) == (sizes >= 120).sum()


def test_doubtful_nuclei_go(maps):
    prob = maps["nuclei_binary_map"][1]
    plain = HVPostprocessor()(maps).instance_map
    means = np.bincount(plain.ravel(), prob.ravel()) / np.bincount(plain.ravel())
    limit = float(np.median(means[1:]))
    found = HVPostprocessor(min_prob=limit)(maps)
    assert len(found.nuclei) == (means[1:] >= limit).sum()
    assert 0 < len(found.nuclei) < len(means) - 1


def test_a_lower_threshold_finds_more_pixels(maps):
    few, some, many = ((HVPostprocessor(threshold=t)(maps).instance_map > 0).sum() for t in (0.8, 0.5, 0.2))
    assert few < some < many


@pytest.mark.parametrize("settings", [{"threshold": 0.4}, {"min_prob": 0.6}])
def test_what_needs_probabilities_refuses_labels(settings):
    maps = dict(perfect_maps(draw_ellipses(12, (96, 96), seed=2)))
    maps["nuclei_binary_map"] = maps["nuclei_binary_map"].argmax(0)
    post = HVPostprocessor(**settings)
    assert "nuclei_binary_map" not in post.takes_labels
    with pytest.raises(DataError, match="need probabilities"):
        post(maps)
    assert len(HVPostprocessor(min_size=20)(maps).nuclei)


@pytest.mark.parametrize(
    "settings", [{"threshold": 0.0}, {"threshold": 1.0}, {"min_size": -1}, {"min_prob": 1.0}, {"min_prob": -0.1}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=r"threshold .* min_size .* min_prob"):
        HVPostprocessor(**settings)


def test_selection_of_nothing():
    empty = np.zeros((4, 5), np.int32)
    assert select_instances(empty, None, min_size=9) is empty
    one = np.ones((2, 2), np.int32)
    assert select_instances(one, np.full((2, 2), 0.5), min_size=4, min_prob=0.5) is one
    assert not select_instances(one, None, min_size=5).any()
