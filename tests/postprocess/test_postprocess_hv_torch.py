"""The watershed in tensor operations gives the nuclei of the one on the host, on drawn maps."""

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import segmentation
from support.drawn_nuclei import draw_ellipses, noisy_maps

from cellvit.errors import DataError
from cellvit.model.build import image_arrays
from cellvit.postprocess import POSTPROCESSORS, HVPostprocessor, HVTorchPostprocessor
from cellvit.postprocess.hv_torch import HVSeparation, nucleus_sums, nucleus_types, opened, reflected
from cellvit.postprocess.torch_regions import fill_holes, flooded, label_regions
from cellvit.testing import PostprocessorContract

SETTINGS = [
    {},
    {"normalisation": "fixed", "type_rule": "mean"},
    {"normalisation": "fixed", "magnification": 20, "threshold": 0.4, "min_size": 60, "min_prob": 0.7},
]


@pytest.fixture(scope="module")
def maps():
    return noisy_maps(draw_ellipses(60, (256, 224), seed=3))


@pytest.fixture(scope="module")
def mask():
    return ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((90, 70)), 1) > 0.05


class TestContract(PostprocessorContract):
    def make(self):
        return HVTorchPostprocessor()

    def maps(self):
        return noisy_maps(draw_ellipses(12, (96, 96), seed=1))

    def empty_maps(self):
        return {name: np.zeros_like(values) for name, values in self.maps().items()}


def test_it_is_registered():
    assert POSTPROCESSORS.get("hv-torch") is HVTorchPostprocessor


def test_using_it_does_not_change_what_results_are_known_by(maps):
    """Results that are resumed are compared by a digest of the post-processor's settings."""
    used = HVTorchPostprocessor()
    before = dict(vars(used))
    used(maps)
    assert vars(used) == before


@pytest.mark.parametrize("settings", SETTINGS)
def test_nuclei_and_types_are_those_of_the_host(maps, settings):
    expected, found = HVPostprocessor(**settings)(maps), HVTorchPostprocessor(**settings)(maps)
    assert len(expected.nuclei) > 20
    assert (found.instance_map == expected.instance_map).mean() > 0.9995
    assert found.nuclei.type.tolist() == expected.nuclei.type.tolist()
    np.testing.assert_allclose(found.nuclei.type_prob, expected.nuclei.type_prob, atol=0.02)


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_stays_on_the_device_gives_the_same_table(maps, settings):
    post = HVTorchPostprocessor(**settings)
    batch = {name: torch.from_numpy(value)[None] for name, value in maps.items()}
    moved = post.with_instances(batch)
    assert sorted(moved) == ["instance_map", "nuclei_type_map"]
    assert moved["instance_map"].shape == (1, 1, 256, 224)
    assert post.on_device(batch) is batch  # on the CPU whoever makes the table separates them too
    (arrays,) = image_arrays(moved | {"hv_map": torch.zeros(1)}, None)
    assert post(arrays).nuclei.type.tolist() == post(maps).nuclei.type.tolist()
    untyped = {name: value for name, value in batch.items() if name != "nuclei_type_map"}
    (arrays,) = image_arrays(post.with_instances(untyped), None)
    expected = HVPostprocessor(**settings)({name: maps[name] for name in untyped}).nuclei
    np.testing.assert_allclose(post(arrays).nuclei.type_prob, expected.type_prob, atol=0.02)


def test_values_that_are_not_finite_are_refused_on_the_device(maps):
    batch = {name: torch.from_numpy(value)[None].clone() for name, value in maps.items()}
    batch["hv_map"][0, 1, 5, 5] = float("nan")
    with pytest.raises(DataError, match="hv_map holds 1 values"):
        HVTorchPostprocessor().with_instances(batch)


@pytest.mark.gpu
def test_it_stays_on_the_device(maps):
    post = HVTorchPostprocessor(**SETTINGS[1])
    batch = {name: torch.from_numpy(value)[None].cuda() for name, value in maps.items()}
    assert post.on_device(batch)["instance_map"].is_cuda
    (arrays,) = image_arrays(batch, post)
    assert (post(arrays).instance_map == post(maps).instance_map).mean() > 0.999


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_types_are_those_of_the_table_and_the_script_says_the_same(maps):
    binary, hv, types = (torch.from_numpy(maps[n]) for n in ("nuclei_binary_map", "hv_map", "nuclei_type_map"))
    script, script_types = torch.jit.script(HVSeparation(HVTorchPostprocessor())), torch.jit.script(nucleus_types)
    for rule in ("majority", "mean"):
        post = HVTorchPostprocessor(type_rule=rule)
        labels = post.separation(binary, hv)
        expected = post(maps).nuclei.type
        assert nucleus_types(labels, types, rule == "majority").tolist() == expected.tolist()
        assert script_types(labels, types, rule == "majority").tolist() == expected.tolist()
    assert torch.equal(script(binary, hv), labels)
    for shape in ((1, 1), (1, 9), (40, 23)):
        part = binary[:, : shape[0], : shape[1]], hv[:, : shape[0], : shape[1]]
        assert torch.equal(script(*part), post.separation(*part))


def test_a_nucleus_that_is_all_background_still_gets_a_type():
    labels, types = torch.ones(1, 2, dtype=torch.int32), torch.tensor([[[0.6, 0.6]], [[0.1, 0.1]], [[0.3, 0.3]]])
    assert nucleus_types(labels, types, True).tolist() == nucleus_types(labels, types, False).tolist() == [2]
    np.testing.assert_allclose(nucleus_sums(labels, types)[:, 1], [1.2, 0.2, 0.6], atol=1e-3)


def test_regions_are_those_of_scipy(mask):
    expected, count = ndimage.label(mask)
    assert count > 20
    np.testing.assert_array_equal(label_regions(torch.from_numpy(mask), 1), expected)
    area = np.bincount(expected.ravel())
    kept = label_regions(torch.from_numpy(mask), 5)
    np.testing.assert_array_equal(kept > 0, (area >= 5)[expected] & mask)
    assert int(kept.max()) == (area[1:] >= 5).sum()
    comb = np.zeros((41, 41), bool)  # one region, a winding path whose ends are far apart
    comb[::2] = comb[1::4, 0] = comb[3::4, -1] = True
    np.testing.assert_array_equal(label_regions(torch.from_numpy(comb), 1), ndimage.label(comb)[0])


def test_holes_margins_and_openings_are_those_of_the_libraries(mask):
    np.testing.assert_array_equal(fill_holes(torch.from_numpy(mask)), ndimage.binary_fill_holes(mask))
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    for shape in ((90, 70), (3, 70), (1, 1)):
        part = np.ascontiguousarray(mask[: shape[0], : shape[1]])
        expected = cv2.morphologyEx(part.view(np.uint8), cv2.MORPH_OPEN, ellipse)
        np.testing.assert_array_equal(opened(torch.from_numpy(part)), expected)
        values = part.astype(np.float32) + np.arange(shape[1], dtype=np.float32)
        framed = cv2.copyMakeBorder(values, 10, 10, 10, 10, cv2.BORDER_REFLECT_101)
        np.testing.assert_array_equal(reflected(torch.from_numpy(values), 10), framed)


def test_the_flood_is_that_of_a_queue(mask):
    rng = np.random.default_rng(1)
    energy = ndimage.gaussian_filter(rng.standard_normal(mask.shape), 2).astype(np.float32)
    regions = ndimage.label(np.ones_like(mask))[0].astype(np.int32)
    regions[40] = 0
    regions[41:] *= 2
    markers = np.zeros_like(regions)
    markers[rng.integers(0, 40, 12), rng.integers(0, 70, 12)] = np.arange(1, 13)
    markers[rng.integers(40, 90, 12), rng.integers(0, 70, 12)] = np.arange(13, 25)
    expected = segmentation.watershed(energy, markers, mask=regions > 0)
    found = flooded(*map(torch.from_numpy, (energy, markers, regions))).numpy()
    assert ((found == 0) == (expected == 0)).all()
    assert (found == expected).mean() > 0.97
