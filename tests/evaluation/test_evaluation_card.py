import csv

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from cellvit.classes import default_classes
from cellvit.data import FolderDataModule
from cellvit.data.folder import image_tensor
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.model_card.images import read_labelled, resample_via_mpp
from cellvit.evaluation.model_card.measure import CardSettings, find_images, measure
from cellvit.evaluation.model_card.scores import SCORES, TYPE_SCORES
from cellvit.evaluation.model_card.tables import group_scores, image_table, score_table, type_table
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.inference.image import segment_image
from cellvit.metrics import CentroidDetection, PanopticQuality
from cellvit.model.cellvit import CellViT
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP

NAMES = ("Background", "Red", "Blue")


class Painted:
    """A model that finds what is dark, is 80 % sure of its colour, and keeps the images it was given."""

    mpp = 0.25
    classes = default_classes(3, names=list(NAMES))

    def __init__(self):
        self.training, self.seen, self.device = True, [], torch.device("cpu")

    def to(self, device):
        return self

    def train(self, mode=True):
        self.training = mode

    def predict_maps(self, image):
        assert not self.training
        self.seen.append((image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        dark, red = image.mean(1) < 0.5, image[:, 0] > image[:, 2]
        types = [torch.where(dark, 0.1, 0.9), torch.where(red, 0.8, 0.1) * dark, torch.where(red, 0.1, 0.8) * dark]
        return {NUCLEI_BINARY_MAP: torch.stack([~dark, dark], 1).float(), NUCLEI_TYPE_MAP: torch.stack(types, 1)}

    def postprocess(self, maps):
        _, instances = cv2.connectedComponents(np.uint8(maps[NUCLEI_BINARY_MAP][1] > 0.5))
        return nuclei_from_instances(instances, type_map=maps[NUCLEI_TYPE_MAP], classes=self.classes)


def draw(seed, size=(61, 64)):
    """Return a light image with red and blue discs, their instance map, and their types by label."""
    rng = np.random.default_rng(seed)
    image, instances, types = np.full((*size, 3), 220, np.uint8), np.zeros(size, np.int32), [0]
    for row in range(10, size[0] - 8, 20):
        for col in range(10, size[1] - 8, 20):
            types.append(int(rng.integers(1, 3)))
            disc = cv2.circle(np.zeros(size, np.uint8), (col, row), int(rng.integers(4, 8)), 1, -1) > 0
            instances[disc], image[disc] = len(types) - 1, ((140, 40, 80), (80, 40, 140))[types[-1] - 1]
    return np.clip(image + rng.integers(-9, 9, image.shape), 0, 255).astype(np.uint8), instances, np.array(types)


def write_image(root, name, image, instances, types, *, mpp=0.25):
    dataset, stem = name.split("/")
    for kind in ("images", "labels"):
        (root / dataset / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / dataset / "images" / f"{stem}.png")
    np.savez(
        root / dataset / "labels" / f"{stem}.npz", inst_map=instances, **({} if types is None else {"inst_type": types})
    )
    new = not (root / "manifest.csv").exists()
    with (root / "manifest.csv").open("a", newline="") as file:
        csv.writer(file).writerows([["dataset", "image", "split", "mpp"]] * new + [[dataset, stem, "val", mpp]])


@pytest.fixture
def root(tmp_path):
    """Three typed images in one data set, and two without types in another."""
    for i in range(5):
        image, instances, types = draw(i)
        write_image(tmp_path, f"typed/t{i}" if i < 3 else f"plain/p{i}", image, instances, types if i < 3 else None)
    return tmp_path


def measured_card(model, settings):
    found = measure(model, find_images(settings, model), settings)
    return found, group_scores(found.images, model.classes.names, settings)


def test_scores_are_those_of_validation(tiny_model, tmp_path):
    model = CellViT.from_pretrained(tiny_model)
    rng = np.random.default_rng(0)
    for i in range(4):
        image = rng.integers(0, 256, (64, 80, 3)).astype(np.uint8)
        maps = {k: v[0].numpy() for k, v in model.predict_maps(image_tensor(image)[None]).items() if v.ndim == 4}
        found = model.postprocess(maps)
        # the truth is nearly what the model finds: a column aside, some nuclei missing, some of another type
        lost = np.isin(found.instance_map, np.arange(1 + i, len(found.nuclei) + 1, 3))
        types = np.array([0, *np.where(np.arange(len(found.nuclei)) % 4, np.maximum(found.nuclei.type, 1), 2)])
        truth = np.roll(np.where(lost, 0, found.instance_map), 1, axis=1)
        write_image(tmp_path / "data", f"noise/n{i}", image, truth, None if i == 3 else types)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = FolderDataModule(tmp_path / "data", num_workers=0)
    (validated,) = trainer.validate(model, data, verbose=False)
    settings = CardSettings(root=tmp_path / "data", mpp=(0.25,), resamples=20)
    found, (group,) = measured_card(model, settings)
    assert (group.images, group.typed_images) == (4, 3)
    for name in (*SCORES, *(f"{score}/{kind}" for kind in model.classes.names[1:] for score in TYPE_SCORES)):
        assert group.scores[name].value == pytest.approx(validated[f"val/{name}"], abs=1e-6, nan_ok=True), name
    assert 0 < group.scores["F1_d"].value < 1
    assert 0 < group.scores["bPQ"].value < 1
    assert 0 < group.scores["mPQ"].value < 1
    rows = image_table(found.images, model.classes.names)
    assert found.calibration.nuclei == sum(row["tp"] for row in rows if row["typed"] == "yes") > 1


def test_groups_hold_the_scores_of_the_metrics(root):
    model, settings = Painted(), CardSettings(root=root, mpp=(0.25, 0.5), resamples=50)
    found, groups = measured_card(model, settings)
    assert [(g.group, g.mpp, g.images, g.typed_images) for g in groups] == [
        (name, mpp, *counts)
        for mpp in (0.25, 0.5)
        for name, counts in (("typed", (3, 3)), ("plain", (2, 0)), ("all", (5, 3)))
    ]
    model.training = False
    for group, members in zip(groups[:3], (found.images[:3], found.images[3:], found.images), strict=True):
        quality, detection = PanopticQuality(class_names=NAMES), CentroidDetection(class_names=NAMES, radius=12)
        for record in (image.record for image in members):
            labelled = read_labelled(record)
            maps = model.predict_maps(image_tensor(labelled.pixels)[None])
            pred = model.postprocess({name: values[0].numpy() for name, values in maps.items()})
            for metric in (quality, detection):
                metric.update_nuclei(pred, nuclei_from_labels(labelled.labels, labelled.types))
        expected = quality.compute() | detection.compute()
        for name in (*SCORES, "F1/Red", "P/Blue", "R/Red", "PQ/Blue"):
            assert group.scores[name].value == pytest.approx(expected[name].item(), abs=1e-6, nan_ok=True), name
    assert groups[1].scores["bPQ"].low is None
    assert groups[2].scores["bPQ"].low is not None
    types = np.concatenate([draw(i)[2][1:] for i in range(3)])
    assert groups[0].type_nuclei == {"Red": (types == 1).sum(), "Blue": (types == 2).sum()}
    assert found.images[3].types[0] == draw(3)[1].max()


def test_at_a_coarser_resolution_the_image_is_reduced_and_the_truth_stays(root):
    model, settings = Painted(), CardSettings(root=root, datasets=("typed",), mpp=(0.25, 0.5))
    found, _ = measured_card(model, settings)
    assert model.training  # as before
    image, instances, _ = draw(0)
    np.testing.assert_array_equal(model.seen[0], image)
    np.testing.assert_array_equal(model.seen[1], resample_via_mpp(image, image_mpp=0.25, given_mpp=0.5, model_mpp=0.25))
    assert model.seen[1].shape == image.shape
    blurred = np.abs(model.seen[1].astype(int) - image).mean()
    assert 1 < blurred < 20
    np.testing.assert_array_equal(
        read_labelled(found.images[0].record).truth((61, 64), model.classes).instance_map > 0, instances > 0
    )
    fine, coarse = (found.images[0].scores[mpp] for mpp in (0.25, 0.5))
    assert fine.true == coarse.true == instances.max()
    assert 0.5 < coarse.scores["bPQ"] < fine.scores["bPQ"]
    assert found.main == 0.25


@pytest.mark.parametrize(("given_mpp", "side"), [(0.5, 30), (0.75, 20)])
def test_a_reduced_image_is_seen_as_segment_sees_one_of_that_resolution(given_mpp, side):
    image, model = draw(1, (60, 60))[0], Painted()
    segment_image(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), model=model, mpp=given_mpp)
    seen = resample_via_mpp(image, image_mpp=0.25, given_mpp=given_mpp, model_mpp=0.25)
    np.testing.assert_array_equal(seen, model.seen[0])


@pytest.mark.parametrize(("mpp", "shift", "score"), [(0.25, 12, 1), (0.25, 13, 0), (0.5, 6, 1), (0.5, 7, 0)])
def test_a_centroid_may_be_three_microns_away(tmp_path, mpp, shift, score):
    image, instances, types = draw(0, (30, 32))  # one disc
    write_image(tmp_path, "one/a", image, np.roll(instances, shift, axis=1), types, mpp=mpp)
    model = Painted()
    model.mpp = mpp
    _, (group,) = measured_card(model, CardSettings(root=tmp_path, mpp=(mpp,), resamples=5))
    assert group.scores["F1_d"].value == score


def test_a_coarse_image_is_given_as_it_is_with_its_truth_enlarged(tmp_path):
    image, instances, types = draw(0, (30, 32))
    write_image(tmp_path, "coarse/c", image, instances, types, mpp=0.5)
    model = Painted()
    found, _ = measured_card(model, CardSettings(root=tmp_path, mpp=(0.25, 0.5)))
    np.testing.assert_array_equal(model.seen[0], model.seen[1])
    assert model.seen[0].shape == (60, 64, 3)
    truth = read_labelled(found.images[0].record).truth((60, 64), model.classes).instance_map
    np.testing.assert_array_equal(truth, np.kron(truth[::2, ::2], np.ones((2, 2), int)))
    assert found.images[0].scores[0.25].scores["F1_d"] == 1


def test_sides_that_do_not_divide_are_no_reason_to_refuse_the_coarsest_resolution():
    assert (
        resample_via_mpp(np.zeros((61, 62, 3), np.uint8), image_mpp=0.25, given_mpp=1.0, model_mpp=0.25).shape[2] == 3
    )
    with pytest.raises(ConfigError, match="too far"):
        resample_via_mpp(np.zeros((61, 62, 3), np.uint8), image_mpp=8.0, given_mpp=8.0, model_mpp=0.2)


def test_types_of_one_data_set_are_told_once(root):
    settings = CardSettings(root=root, mpp=(0.25,), resamples=5)
    _, groups = measured_card(Painted(), settings)
    assert [row["data set"] for row in type_table(groups)] == ["typed", "typed"]
    write_image(root, "typed/untyped", *draw(9)[:2], None)  # now the one typed data set is typed in part
    _, groups = measured_card(Painted(), settings)
    assert [row["data set"] for row in type_table(groups)] == ["typed", "typed"]
    write_image(root, "plain/typed", *draw(9))
    _, groups = measured_card(Painted(), settings)
    assert [row["data set"] for row in type_table(groups)] == ["typed"] * 2 + ["plain"] * 2 + ["all"] * 2


def test_a_data_set_called_all_is_told_from_all_data_sets(tmp_path):
    for i, name in enumerate(("all/a", "b/b")):
        write_image(tmp_path, name, *draw(i))
    settings = CardSettings(root=tmp_path, mpp=(0.25,), resamples=5)
    _, groups = measured_card(Painted(), settings)
    assert [row["data set"] for row in score_table(groups)] == ["all", "b", "all data sets"]


def test_calibration_is_of_the_probabilities_of_the_model(root):
    found, _ = measured_card(Painted(), CardSettings(root=root, mpp=(0.25,), resamples=5))
    assert found.calibration.accuracy == 1
    assert found.calibration.nuclei == sum(int(draw(i)[1].max()) for i in range(3))
    assert found.calibration.before.nll == pytest.approx(-np.log(8 / 9), abs=1e-5)
    assert found.calibration.stated.confidence[-1] == 1  # all pixels agree
    assert found.calibration.temperature < 0.5  # it could be surer
    untyped, _ = measured_card(Painted(), CardSettings(root=root, datasets=("plain",), mpp=(0.25,), resamples=5))
    assert untyped.calibration is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "split 'dev' is unknown"),
        ({"mpp": ()}, "must be different numbers"),
        ({"mpp": (0.25, 0.25)}, "must be different numbers"),
        ({"mpp": (0.25, float("nan"))}, "must be different numbers"),
        ({"tta": 3}, "tta 3"),
        ({"resamples": 0}, "resamples 0"),
        ({"seed": -1}, "seed -1"),
        ({"pictures": -1}, "pictures -1"),
        ({"pictures": 100}, "pictures 100"),
    ],
)
def test_settings_that_cannot_work(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        CardSettings(root=tmp_path, **changes)


def test_data_that_cannot_be_measured(root):
    model = Painted()
    for mpp, message in ((1.1, r"mpp 1.1 is too far from the model's 0.25; give 0.00781 to 1"), (0.001, "too far")):
        with pytest.raises(ConfigError, match=message):
            find_images(CardSettings(root=root, mpp=(mpp,)), model)
    with pytest.raises(DataError, match="have no images"):
        find_images(CardSettings(root=root, datasets=("x",)), model)
    with pytest.raises(
        ConfigError, match=r"t0.png' has 0.25 microns per pixel, but at mpp 0.05 .* at most 0.2 will do"
    ):
        find_images(CardSettings(root=root, mpp=(0.05,)), model)
    write_image(root, "coarse/c", *draw(0), mpp=2.0)
    with pytest.raises(ConfigError, match=r"c.png' has 2 microns per pixel.* at most 1 will do"):
        find_images(CardSettings(root=root, mpp=(0.5,)), model)
