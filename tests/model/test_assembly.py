"""How parts of a model are checked and fed: metrics, true nuclei, maps, branches."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cellvit.errors import ConfigError, UnknownPluginError
from cellvit.metrics import AggregatedJaccard, CentroidDetection, NucleiMetric, PanopticQuality
from cellvit.model.build import (
    head_class,
    image_arrays,
    most_probable,
    start_transfer,
    true_nuclei,
)
from cellvit.model.metrics import build_metric
from cellvit.plotting import draw_comparison
from cellvit.postprocess import HVPostprocessor, Postprocessor
from cellvit.types import EMBEDDING_MAP, HV_MAP, NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP

CLASSES, TISSUES = ("background", "nucleus"), ("breast", "colon")


class WithoutNames(NucleiMetric):
    """A metric of somebody else that asks for one setting."""

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def update(self) -> None: ...

    def update_nuclei(self, pred, target, *, tissue=-1) -> None: ...

    def compute(self) -> dict[str, Tensor]:
        return {}


def test_names_are_passed_to_metrics_that_take_them():
    panoptic = build_metric("panoptic-quality", CLASSES, TISSUES)
    assert isinstance(panoptic, PanopticQuality)
    assert (panoptic.class_names, panoptic.tissue_names) == (CLASSES, TISSUES)
    detection = build_metric("centroid-detection", CLASSES, TISSUES)
    assert isinstance(detection, CentroidDetection)
    assert detection.class_names == CLASSES
    assert isinstance(build_metric("aggregated-jaccard", CLASSES, TISSUES), AggregatedJaccard)
    assert build_metric("panoptic-quality", CLASSES).tissue_names == ()


def test_names_that_a_spec_states_are_kept():
    spec = {"class_path": "panoptic-quality", "init_args": {"class_names": ["none", "cell"], "iou_threshold": 0.7}}
    metric = build_metric(spec, CLASSES, TISSUES)
    assert (metric.class_names, metric.tissue_names) == (("none", "cell"), TISSUES)
    assert metric.iou_threshold == 0.7
    spec["init_args"]["tissue_names"] = []
    assert build_metric(spec, CLASSES, TISSUES).tissue_names == ()
    assert build_metric(PanopticQuality(tissue_names=["liver"]), CLASSES, TISSUES).tissue_names == ("liver",)


def test_metrics_of_others():
    path = f"{WithoutNames.__module__}.WithoutNames"
    metric = build_metric({"class_path": path, "init_args": {"weight": 2.0}}, CLASSES, TISSUES)
    assert (type(metric).__name__, metric.weight) == ("WithoutNames", 2.0)
    with pytest.raises(ConfigError, match=r"takes no argument \['scale'\]; it takes: weight"):
        build_metric({"class_path": path, "init_args": {"scale": 2.0}}, CLASSES)


def test_only_metrics_on_nuclei_are_taken():
    with pytest.raises(ConfigError, match="'tissue-accuracy' does not compare nuclei"):
        build_metric("tissue-accuracy", CLASSES)
    with pytest.raises(UnknownPluginError, match="did you mean 'panoptic-quality'"):
        build_metric("panoptic-qualty", CLASSES)


@pytest.fixture
def tiny_batch():
    """Return one image with a pixel, a square, a line and a square, their ids with gaps, the line without a type."""
    instances = torch.zeros(2, 40, 40, dtype=torch.int64)
    instances[0, 1, 1], instances[0, 5:9, 5:9], instances[0, 20, 3:12], instances[0, 30:36, 30:37] = 2, 3, 7, 9
    types = torch.zeros_like(instances)
    for label, kind in ((2, 1), (3, 2), (7, -1), (9, 1)):
        types[instances == label] = kind
    return {"instance_map": instances, "nuclei_type_map": types}


def test_true_nuclei_of_few_pixels_are_kept_and_rows_are_labels(tiny_batch):
    truth, empty = true_nuclei(tiny_batch)
    assert truth.nuclei.type.tolist() == [1, 2, -1, 1]
    assert truth.nuclei.label.tolist() == [1, 2, 3, 4]
    renumbered = np.searchsorted([0, 2, 3, 7, 9], tiny_batch["instance_map"][0].numpy())
    np.testing.assert_array_equal(truth.instance_map, renumbered)
    assert np.diff(truth.nuclei.contour_offsets).tolist() == [4] * 4  # single pixels and lines have an outline, too
    assert (len(empty.nuclei), empty.instance_map.max()) == (0, 0)


def test_true_nuclei_of_few_pixels_can_be_drawn(tiny_batch):
    truth, empty = true_nuclei(tiny_batch)
    image = np.full((40, 40, 3), 255, np.uint8)
    picture = draw_comparison(image, truth.nuclei, empty.nuclei)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4


class ReadsTwo(Postprocessor):
    """A post-processor that says what it reads."""

    needs = frozenset({NUCLEI_BINARY_MAP})
    takes = frozenset({NUCLEI_TYPE_MAP})

    def __call__(self, maps):
        raise NotImplementedError


def test_maps_that_nobody_reads_stay_on_the_device():
    maps = {
        name: torch.rand(2, 3, 4, 4)
        for name in (NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP, EMBEDDING_MAP, "nuclei_centre_map")
    }
    assert [set(image) for image in image_arrays(maps, ReadsTwo())] == [{NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP}] * 2
    assert set(image_arrays(maps, None)[0]) == set(maps)


def test_maps_that_are_only_averaged_leave_the_device_as_half_floats():
    found = HVPostprocessor(normalisation="fixed", type_rule="mean")
    target = torch.zeros(1, 2, 64, 64)
    target[:, 1, 20:40, 10:30] = target[:, 1, 20:40, 34:50] = 1
    ramp = torch.linspace(-1, 1, 20)
    hv = torch.zeros(1, 2, 64, 64)
    hv[:, 0, 20:40, 10:30], hv[:, 0, 20:40, 34:50] = ramp, ramp[:16]
    types = torch.rand(1, 5, 64, 64, generator=torch.Generator().manual_seed(0)).softmax(1)
    maps = {NUCLEI_BINARY_MAP: target, HV_MAP: hv, NUCLEI_TYPE_MAP: types}
    (halved,) = image_arrays(maps, found)
    dtypes = {name: value.dtype for name, value in halved.items()}
    assert dtypes == {NUCLEI_BINARY_MAP: np.uint8, HV_MAP: np.float32, NUCLEI_TYPE_MAP: np.float16}
    whole = found({name: value[0].numpy() for name, value in maps.items()})
    small = found(halved)
    assert len(whole.nuclei) == 2
    np.testing.assert_array_equal(small.instance_map, whole.instance_map)
    np.testing.assert_array_equal(small.nuclei.type, whole.nuclei.type)
    np.testing.assert_allclose(small.nuclei.type_prob, whole.nuclei.type_prob, atol=1e-3)
    assert image_arrays(maps, HVPostprocessor())[0][NUCLEI_TYPE_MAP].dtype == np.uint8  # by majority, labels do
    assert image_arrays(maps, None)[0][NUCLEI_TYPE_MAP].dtype == np.float32


@pytest.mark.parametrize("branch", ["a.b", EMBEDDING_MAP])
def test_a_branch_that_no_head_can_make_is_refused(branch):
    with pytest.raises(ConfigError, match=f"'{branch}' cannot be a branch"):
        head_class(branch, "binary")


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_the_most_probable_class_is_the_argmax_and_the_first_of_equal_ones(classes):
    maps = torch.rand(2, classes, 9, 11)
    maps[:, :, 0] = 0.5
    found = most_probable(maps)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long()[:, 1:], maps.argmax(1)[:, 1:])
    assert (found[:, 0] == 0).all()


@pytest.mark.gpu
def test_maps_arrive_from_a_gpu_while_the_next_batch_is_launched():
    maps = [{"hv_map": torch.full((2, 2, 512, 512), float(i), device="cuda")} for i in range(4)]
    waiting = [start_transfer(batch, None) for batch in maps]
    for i, arrays in enumerate(waiting):
        assert all((image["hv_map"] == i).all() for image in arrays())


@pytest.mark.gpu
def test_maps_are_reduced_on_the_gpu_and_copied_to_pinned_memory(monkeypatch):
    maps = {
        NUCLEI_BINARY_MAP: torch.rand(1, 2, 256, 256, device="cuda"),
        HV_MAP: torch.rand(1, 2, 256, 256, device="cuda"),
        NUCLEI_TYPE_MAP: torch.rand(1, 5, 256, 256, device="cuda"),
    }
    copies = []
    copy = torch.Tensor.copy_

    def noted(self, source, non_blocking=False):
        copies.append((self.is_pinned(), non_blocking, source.dtype))
        return copy(self, source, non_blocking=non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    (arrays,) = start_transfer(maps, HVPostprocessor(normalisation="fixed", type_rule="mean"))()
    assert sorted(copies, key=str) == sorted(
        [(True, True, torch.uint8), (True, True, torch.float32), (True, True, torch.float16)], key=str
    )
    np.testing.assert_array_equal(arrays[HV_MAP], maps[HV_MAP][0].cpu().numpy())
    np.testing.assert_array_equal(arrays[NUCLEI_BINARY_MAP], maps[NUCLEI_BINARY_MAP][0].argmax(0).cpu().numpy())
