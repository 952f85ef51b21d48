import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from support.stand_ins import StandIn

from cellvit.classes import default_classes
from cellvit.errors import DataError
from cellvit.evaluation.monuseg import (
    FORMS,
    OWN_SCORES,
    SCORES,
    check_records,
    evaluate_image,
    evaluate_model,
    input_size,
    mean_scores,
    over_models,
    own_rows,
    postprocessor_at,
    predicted_maps,
    published_rows,
    resized,
    stretched,
    untyped_notes,
    write_monuseg,
    write_picture,
)
from cellvit.inference.protocol import NucleiModel, load_model
from cellvit.io.labels import find_records
from cellvit.metrics.functional import dice, match_centroids, panoptic_quality
from cellvit.postprocess.hv import HVPostprocessor
from cellvit.postprocess.measure import nuclei_from_instances


class LabelledSpots(StandIn):
    """A model that takes every dark spot for a nucleus, of type 1 if it is rather blue, else of none."""

    def __init__(self, classes=2):
        super().__init__(default_classes(classes), training=True)

    def predict_maps(self, image):
        assert not self.training
        self.batches.append(tuple(image.shape))
        dark = (image.mean(1) < 0.5).float()
        blue = dark * (image[:, 2] > image[:, 0])
        return {
            "nuclei_binary_map": torch.stack([1 - dark, dark], 1),
            "nuclei_type_map": torch.stack([1 - blue, blue], 1),
            "embedding_map": torch.zeros(len(image), 5, image.shape[2] // 16, image.shape[3] // 16),
        }

    def postprocess(self, maps):
        assert "embedding_map" not in maps
        instances = ndimage.label(maps["nuclei_binary_map"][1] > 0.5)[0]
        return nuclei_from_instances(instances, type_map=maps["nuclei_type_map"])


def draw_spots(size=500, seed=0):
    """Return an image of blue and red spots well apart, and their instance map."""
    rng = np.random.default_rng(seed)
    image, instances = np.full((size, size, 3), 230, np.uint8), np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for label, (row, col) in enumerate(np.ndindex(size // 50, size // 50), start=1):
        centre = 50 * np.array([row, col]) + rng.integers(18, 32, 2)
        spot = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= rng.integers(5, 13) ** 2
        instances[spot] = label
        image[spot] = (30, 30, 120) if label % 4 else (120, 30, 30)
    return image, instances


@pytest.fixture
def spots(tmp_path):
    """A data folder of two images."""
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for seed in (0, 1):
        image, instances = draw_spots(seed=seed)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"s{seed}.png")
        np.savez(tmp_path / "data" / "labels" / f"s{seed}.npz", inst_map=instances)
    return tmp_path / "data"


def test_sizes_are_whole_patches():
    assert input_size(1000, 1000, 40) == (1024, 1024)
    assert input_size(1000, 1000, 20) == (512, 512)
    assert input_size(500, 760, 40) == (512, 768)
    assert input_size(60, 300, 40) == (256, 256)
    assert input_size(60, 300, 20) == (128, 128)
    assert not stretched(1000, 1000)
    assert stretched(60, 300)


def test_labels_take_the_nearest_pixel_centre():
    labels = np.arange(35).reshape(5, 7)
    image = np.repeat(labels.astype(np.uint8)[..., None], 3, 2)
    for size in ((8, 4), (5, 7), (3, 15)):
        shown, found = resized(image, labels, size)
        assert shown.shape == (*size, 3)
        for row in range(size[0]):
            for col in range(size[1]):
                y, x = (row + 0.5) * 5 / size[0] - 0.5, (col + 0.5) * 7 / size[1] - 0.5
                near = labels[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
                assert found[row, col] == near


def test_patches_are_put_together_where_they_were():
    model = LabelledSpots().train(False)
    image = np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)
    whole = predicted_maps(model, image, whole=True, postprocessor=None)
    parts = predicted_maps(model, image, whole=False, postprocessor=None, batch_size=4)
    assert model.batches == [(1, 3, 512, 768), (4, 3, 256, 256), (2, 3, 256, 256)]
    assert whole.keys() == parts.keys() == {"nuclei_binary_map", "nuclei_type_map"}
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)
    small = predicted_maps(model, image[:130, :300], whole=False, postprocessor=None)
    np.testing.assert_array_equal(small["nuclei_binary_map"], whole["nuclei_binary_map"][:, :130, :300])
    # a post-processor that needs no more than labels gets labels
    labels = predicted_maps(model, image, whole=False, postprocessor=HVPostprocessor(), batch_size=5)
    np.testing.assert_array_equal(labels["nuclei_binary_map"], whole["nuclei_binary_map"].argmax(0))


def test_post_processing_follows_the_magnification():
    own = HVPostprocessor(magnification=40, normalisation="fixed")
    other = postprocessor_at(SimpleNamespace(postprocessor=own), 20)
    assert (other.magnification, other.normalisation) == (20, "fixed")
    assert own.magnification == 40
    assert postprocessor_at(SimpleNamespace(), 20) is None

    class Plain(HVPostprocessor):
        def __init__(self):
            pass

    plain = Plain()
    assert postprocessor_at(SimpleNamespace(postprocessor=plain), 20) is plain


def test_scores_of_an_image_follow_the_protocol(spots):
    assert isinstance(LabelledSpots(), NucleiModel)
    (record, _) = find_records(spots, split=None)
    model = LabelledSpots()
    image, instances = draw_spots(seed=0)
    results = list(evaluate_image(model, record, batch_size=3))
    assert model.training
    assert [r.form.name for r in results] == ["x40/1024", "x40/256", "x20/512", "x20/256"]
    for result in results:
        scale = result.form.magnification // 20
        shown, truth = resized(image, instances, (256 * scale, 256 * scale))
        np.testing.assert_array_equal(result.image, shown)
        dark = shown.astype(np.float32).mean(2) / 255 < 0.5
        found = nuclei_from_instances(ndimage.label(dark)[0]).instance_map
        scores = result.scores.scores
        assert scores["bPQ"] == pytest.approx(panoptic_quality(found, truth).pq, abs=1e-5)
        assert scores["Dice"] == pytest.approx(dice(dark, truth > 0), abs=1e-5)
        blue = np.array([k for k in range(1, found.max() + 1) if _is_blue(shown, found == k)])
        points = [np.array(ndimage.center_of_mass(m > 0, m, i)) for m, i in ((found, blue), (truth, range(1, 101)))]
        pairs = len(match_centroids(*points, radius=6 * scale).pairs)
        assert scores["P_d_image_mean"] == pytest.approx(pairs / len(blue), abs=1e-6)
        assert scores["R_d_image_mean"] == pytest.approx(pairs / 100, abs=1e-6)
        assert (result.scores.true, result.scores.untyped) == (100, result.scores.predicted - len(blue))
        assert set(result.target.type) == {1}
        assert set(result.pred.type) == {1, 2}
    assert results[0].scores.scores == results[1].scores.scores  # this model sees single pixels only


def _is_blue(image, mask):
    """Return whether most pixels of a mask, or all that are dark, have the type 1."""
    pixels = image[mask]
    return (pixels[:, 2] > pixels[:, 0]).any()


def test_a_model_is_scored_on_all_images(spots, tmp_path):
    records = find_records(spots, split=None)
    assert check_records(records, where=spots) == []
    seen = []
    scores = evaluate_model(LabelledSpots(), records, seen=lambda index, result: seen.append((index, result.form.name)))
    assert seen == [(i, form.name) for i in (0, 1) for form in FORMS]
    assert [i.name for i in scores["x20/512"]] == ["data/s0", "data/s1"]
    every = {"spots": scores, "again": scores}
    means = mean_scores(every)
    per_image = [i.scores["bPQ"] for i in scores["x40/1024"]]
    assert means["spots"]["x40/1024"]["bPQ"] == pytest.approx(np.mean(per_image), abs=1e-6)
    assert untyped_notes({"spots": scores})[0].startswith("50 of the 200 nuclei that spots finds in x40/1024")
    out = tmp_path / "out"
    out.mkdir()
    rows = write_monuseg(out, every, inputs={"data": spots}, notes=["Mind this."])
    assert [row["model"] for row in rows[::4]] == ["spots", "again"] + ["mean of 2 models"] * 2
    stored = json.loads((out / "scores.json").read_text())
    assert stored["images"] == 2
    assert stored["settings"]["radius"] == {"x40/1024": 12, "x40/256": 12, "x20/512": 6, "x20/256": 6}
    assert stored["models"]["spots"]["x20/256"].keys() == set(OWN_SCORES)
    assert len((out / "images.csv").read_text().splitlines()) == 1 + 2 * 4 * 2
    text = (out / "monuseg.md").read_text()
    assert "Mind this." in text
    assert "| CellViT-SAM-H | x40/1024 | 0.6686 |" in text


def test_pictures_show_image_truth_and_prediction(spots, tmp_path):
    record = find_records(spots, split=None)[0]
    result = next(evaluate_image(LabelledSpots(), record))
    path = write_picture(tmp_path, result)
    assert path.name == "data-s0-x40-1024.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] > 3 * 512
    third = pixels.shape[1] // 3
    green = (pixels == (0, 220, 0)).all(2)
    assert not green[:, : third - 10].any()
    assert green[:, third:-third].any()
    assert green[:, -third:].any()


def test_several_models_have_a_mean_and_a_population_deviation():
    scores = {m: {"x40/256": {"bPQ": v, "Dice": 1.0}} for m, v in (("a", 0.4), ("b", 0.6), ("c", 0.8))}
    both = over_models(scores)["x40/256"]["bPQ"]
    assert both["mean"] == pytest.approx(0.6)
    assert both["std"] == pytest.approx(np.sqrt((0.04 + 0 + 0.04) / 3))
    rows = own_rows(scores)
    assert [row["model"] for row in rows] == ["a", "b", "c", "mean of 3 models", "std of 3 models"]
    assert rows[-1]["Dice"] == 0
    assert len(own_rows({"a": scores["a"]})) == 1


def test_published_rows_are_complete_and_consistent():
    rows, about = published_rows()
    assert len(rows) == 8
    assert {row["input"] for row in rows} == {form.name for form in FORMS}
    assert "0.673" in about[1]
    for row in rows:
        assert set(row) == {"model", "input", *SCORES}
        # qualities are averaged over images, so the product of the means is near the mean of the products
        assert row["bPQ"] == pytest.approx(row["bDQ"] * row["bSQ"], abs=0.01)
        precision, recall = row["P_d_image_mean"], row["R_d_image_mean"]
        assert row["F1_d_image_mean"] == pytest.approx(2 * precision * recall / (precision + recall), abs=0.01)


def test_images_are_checked_before_anything_runs(spots):
    records = find_records(spots, split=None)
    np.savez(spots / "labels" / "s0.npz", inst_map=np.ones((4, 4), int))
    (spots / "labels" / "s1.npz").unlink()
    with pytest.raises(DataError, match="2 problem") as caught:
        check_records(records, where=spots)
    assert "(4, 4)" in str(caught.value)
    with pytest.raises(DataError, match="has no images"):
        check_records([], where=spots)
    Image.new("RGB", (300, 60)).save(spots / "images" / "s0.png")
    np.savez(spots / "labels" / "s0.npz", inst_map=np.ones((60, 300), int))
    assert check_records(records[:1], where=spots) == ["data/s0"]


def test_the_bundled_model_finds_the_nuclei_of_a_real_image(test_data, tmp_path):
    record = find_records(test_data / "nuclei", split="val", datasets=["monuseg"])[0]
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    with Image.open(record.image) as image:
        image.crop((0, 0, 500, 500)).save(tmp_path / "data" / "images" / "a.png")
    with np.load(record.label) as label:
        np.savez(tmp_path / "data" / "labels" / "a.npz", inst_map=label["inst_map"][:500, :500])
    records = find_records(tmp_path / "data", split=None)
    scores = mean_scores({"nano": evaluate_model(load_model("nano", device="cpu"), records)})["nano"]
    assert scores["x40/1024"]["bPQ"] > 0.4
    assert scores["x20/512"]["bPQ"] > 0.3
    assert scores["x40/1024"] != scores["x40/256"]
