import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from support.stand_ins import DarkSpots, StandIn
from support.tiny import tiny_network

from cellvit.data.targets import hv_map_from_instances
from cellvit.errors import ConfigError, ImageError, UnknownPluginError
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.image import segment_image
from cellvit.inference.postprocessing import with_postprocessor
from cellvit.inference.protocol import autocast_context, choose_device, evaluation_mode, load_model
from cellvit.postprocess.hv import HVPostprocessor
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import NucleiClasses

CLASSES = NucleiClasses(("background", "one", "two", "three"), ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))


class DrawnMaps(StandIn):
    """Returns crops of drawn maps: the pixels of its image say where the crop is."""

    def __init__(self, instance_map, type_map, postprocessor=None):
        super().__init__(CLASSES)
        self.maps = {"instances": instance_map[None].astype(np.float32)}
        self.maps["nuclei_type_map"] = (np.arange(len(CLASSES))[:, None, None] == type_map).astype(np.float32)
        self.postprocessor = postprocessor
        if postprocessor is not None:
            hv, foreground = hv_map_from_instances(instance_map), instance_map > 0
            self.maps |= {"hv_map": hv, "nuclei_binary_map": np.stack([~foreground, foreground]).astype(np.float32)}

    @staticmethod
    def image(height, width):
        y, x = np.mgrid[:height, :width]
        return np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], axis=-1).astype(np.uint8)

    def predict_maps(self, image):
        height, width = image.shape[-2:]
        self.batches.append(tuple(image.shape))
        red, green, blue = torch.round(image[:, :, 0, 0] * 255).int().T.numpy()
        starts = zip((green & 15) << 8 | blue, red << 4 | green >> 4, strict=True)
        crops = [(slice(y, y + height), slice(x, x + width)) for y, x in starts]
        maps = {k: torch.from_numpy(np.stack([v[:, r, c] for r, c in crops])) for k, v in self.maps.items()}
        tokens = torch.ones(len(image), 5, -(-height // 16), -(-width // 16))
        return {**maps, "embedding_map": tokens, "tissue_types": torch.zeros(len(image), 19)}

    def postprocess(self, maps):
        if self.postprocessor is not None:
            return self.postprocessor(maps)
        instances = maps["instances"][0].astype(np.int32)
        return nuclei_from_instances(
            instances, type_map=maps["nuclei_type_map"], embedding_map=maps["embedding_map"], classes=CLASSES
        )


class ColouredSpots(DarkSpots):
    """Takes every connected dark spot for a nucleus; its type is that of its darkest channel."""

    def __init__(self, mpp=0.25):
        super().__init__(CLASSES, mpp=mpp)

    def predict_maps(self, image):
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        return super().predict_maps(image) | {"embedding_map": torch.zeros(len(image), 4, 2, 2)}

    def types_of(self, instances, pixels):
        return np.where(instances > 0, 1 + pixels.argmin(axis=0), 0)


def drawn_tissue(height, width, *, seed=0, step=44):
    """Return a map of ellipses up to 40 px long that do not touch, and their types."""
    rng = np.random.default_rng(seed)
    instances, types = np.zeros((height, width), np.int32), np.zeros((height, width), np.int32)
    label = 0
    for y in range(step // 2, height, step):
        for x in range(step // 2, width, step):
            axes = rng.integers(6, 20, 2).tolist()
            angle, kind = int(rng.integers(0, 180)), int(rng.integers(1, 4))
            label += 1
            cv2.ellipse(instances, (x, y), axes, angle, 0, 360, label, -1)
            cv2.ellipse(types, (x, y), axes, angle, 0, 360, kind, -1)
    return instances, types


def rows_of(nuclei):
    """Return the nuclei as a set that does not depend on their order."""
    contours = (tuple(map(tuple, nuclei.contour(i))) for i in range(len(nuclei)))
    columns = zip(map(tuple, nuclei.bbox), map(tuple, nuclei.centroid.round(6)), nuclei.type, contours, strict=True)
    return set(columns)


@pytest.fixture(scope="module")
def tissue():
    return drawn_tissue(600, 1500)


@pytest.mark.parametrize(("tile_size", "batch_size"), [(256, 1), (256, 7), (512, 4), (1024, 1), (1024, 3), (2048, 1)])
def test_tiles_of_any_size_give_exactly_the_drawn_nuclei(tissue, tile_size, batch_size):
    model = DrawnMaps(*tissue)
    drawn = nuclei_from_instances(tissue[0], type_map=tissue[1]).nuclei
    nuclei = segment_image(model.image(600, 1500), model=model, tile_size=tile_size, batch_size=batch_size)
    assert len(nuclei) == len(drawn)
    assert rows_of(nuclei) == rows_of(drawn)
    assert nuclei.embedding.shape == (len(drawn), 5)
    assert nuclei.label.tolist() == list(range(1, len(drawn) + 1))
    side = min(tile_size, 600), min(tile_size, 1500)
    assert {shape[2:] for shape in model.batches} == {side}
    assert max(shape[0] for shape in model.batches) <= batch_size


@pytest.mark.parametrize("tile_size", [256, 512])
def test_the_watershed_at_seams_neither_doubles_nor_cuts_nor_loses(tissue, tile_size):
    model = DrawnMaps(*tissue, postprocessor=HVPostprocessor(normalisation="fixed"))
    image = model.image(600, 1500)
    whole = segment_image(image, model=model, tile_size=2048)
    tiled = segment_image(image, model=model, tile_size=tile_size, batch_size=5)
    assert len(whole) > 400
    assert len(tiled) == len(whole)
    distance, match = cKDTree(whole.centroid).query(tiled.centroid)
    assert distance.max() < 0.5
    assert len(set(match.tolist())) == len(whole)
    np.testing.assert_allclose(tiled.bbox, whole.bbox[match], atol=1)
    np.testing.assert_array_equal(tiled.type, whole.type[match])


def test_progress_counts_the_tiles(tissue):
    model, calls = DrawnMaps(*tissue), []
    segment_image(
        model.image(600, 1500),
        model=model,
        tile_size=512,
        batch_size=4,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 8), (8, 8)]


def spots(height, width, boxes, color=(20, 90, 90)):
    image = np.full((height, width, 3), 255, np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = color
    return image


BOXES = [(10, 12, 30, 24), (40, 12, 48, 44), (72, 60, 92, 84)]


def test_forms_of_one_image_give_the_same_nuclei():
    image = spots(90, 100, BOXES)
    expected = rows_of(segment_image(image, model=ColouredSpots()))
    alpha = np.dstack([image, np.full((90, 100), 255, np.uint8)])
    hidden = np.dstack([np.where(image == 255, 0, image), np.where(image[..., 0] == 255, 0, 255)]).astype(np.uint8)
    forms = [image.astype(np.uint16) * 257, image / 255, (image / 255).astype(np.float32), alpha, hidden]
    assert len(expected) == 3
    for form in forms:
        assert rows_of(segment_image(form, model=ColouredSpots())) == expected
    for grey in (image[..., 1], image[..., 1:2]):
        assert {row[0] for row in rows_of(segment_image(grey, model=ColouredSpots()))} == {row[0] for row in expected}
    with pytest.raises(ImageError, match="int64"):
        segment_image(image.tolist(), model=ColouredSpots())


@pytest.mark.parametrize("mpp", [0.125, 0.2, 0.375, 0.5, 0.9])
def test_another_resolution_gives_coordinates_of_the_given_image(mpp):
    nuclei = segment_image(spots(90, 100, BOXES), model=ColouredSpots(), mpp=mpp)
    order = np.argsort(nuclei.centroid[:, 0])
    centers = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in BOXES]
    np.testing.assert_allclose(nuclei.centroid[order], centers, atol=0.3)
    np.testing.assert_allclose(nuclei.bbox[order], BOXES, atol=1)
    extremes = [(nuclei.contour(i).min(axis=0) + nuclei.contour(i).max(axis=0)) / 2 for i in order]
    np.testing.assert_allclose(extremes, centers, atol=0.5)


def test_exactly_half_and_double_resolution_are_exact():
    even = [(10, 12, 30, 24), (40, 12, 48, 44)]
    nuclei = segment_image(spots(60, 64, even), model=ColouredSpots(), mpp=0.125)
    np.testing.assert_array_equal(nuclei.bbox, even)
    np.testing.assert_array_equal(nuclei.centroid, [(20, 18), (44, 28)])


def test_a_box_at_the_border_stays_inside_the_image():
    nuclei = segment_image(spots(31, 33, [(20, 0, 33, 31)]), model=ColouredSpots(), mpp=0.4)
    assert nuclei.bbox[0, 1:].tolist() == [0, 33, 31]


def test_almost_the_same_resolution_is_not_resampled():
    model = ColouredSpots()
    segment_image(spots(90, 100, BOXES), model=model, mpp=0.2528)
    assert model.batches == [(1, 3, 90, 100)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (17, 33), (15, 15), (300, 5)])
def test_small_and_odd_images_with_a_real_network(shape, tiny):
    nuclei = segment_image(np.full((*shape, 3), 240, np.uint8), model=tiny)
    assert nuclei.embedding.shape == (len(nuclei), 24)
    assert nuclei.classes == tiny.classes


def test_one_pixel_and_empty_tissue_give_empty_tables():
    for shape in ((1, 1, 3), (300, 200, 3)):
        image = np.full(shape, 255, np.uint8)
        nuclei = segment_image(image, model=ColouredSpots(), tile_size=128, mpp=0.5)
        assert len(nuclei) == 0
        assert nuclei.embedding.shape == (0, 4)
        assert nuclei.classes is CLASSES


@pytest.fixture(scope="module")
def tiny():
    return tiny_network(4, class_names=CLASSES.names, class_colors=CLASSES.colors)


def test_labels_made_on_the_device_give_the_nuclei_of_the_probabilities(tiny):
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    direct = segment_image(image, model=tiny)
    maps = tiny.predict_maps(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    expected = tiny.postprocess({name: value[0].numpy() for name, value in maps.items()}).nuclei
    assert rows_of(direct) == rows_of(expected)
    np.testing.assert_allclose(direct.type_prob, expected.type_prob)


def test_precision_and_batches_of_a_real_network(tiny):
    image = np.random.default_rng(0).integers(0, 256, (200, 140, 3), dtype=np.uint8)
    one = segment_image(image, model=tiny, tile_size=64, overlap=32)
    many = segment_image(image, model=tiny, tile_size=64, overlap=32, batch_size=5)
    assert abs(len(one) - len(many)) <= 1  # sums in another order may move a pixel
    mixed = segment_image(image, model=tiny, tile_size=64, overlap=32, precision="bf16-mixed")
    assert mixed.embedding.dtype == np.float32


def test_training_mode_is_left_as_it_was(tiny):
    tiny.train()
    segment_image(np.zeros((32, 32, 3), np.uint8), model=tiny)
    assert tiny.training
    assert all(module.training for module in tiny.modules())
    tiny.eval()


def test_a_saved_model_is_loaded_by_its_path(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    loaded = load_model(tmp_path / "tiny", device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    assert rows_of(segment_image(image, model=loaded)) == rows_of(segment_image(image, model=tiny))
    assert rows_of(segment_image(image, model=str(tmp_path / "tiny"), device="cpu")) == rows_of(
        segment_image(image, model=tiny)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mpp": 0.0}, "mpp 0.0 is not a resolution"),
        ({"mpp": float("nan")}, "mpp nan"),
        ({"mpp": 2.0}, "too far from the model's 0.25"),
        ({"mpp": 0.001}, "0.00781 to 1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"tile_size": 8}, "tile size 8"),
        ({"overlap": 600}, "overlap 600"),
        ({"precision": "64"}, "32-true, bf16-mixed"),
        ({"precision": "16-mixed"}, "needs a GPU"),
        ({"device": "tpu"}, "'tpu' is unknown"),
        ({"device": "cuda:x"}, "'cuda:x' is unknown"),
        ({"device": "cpu:1"}, "not available here"),
        ({"model": 5}, "neither a name"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        segment_image(np.zeros((20, 20, 3), np.uint8), **{"model": ColouredSpots(), **settings})


def test_other_settings_of_the_postprocessor_leave_the_model_as_it_is(tissue):
    model = DrawnMaps(*tissue, postprocessor=HVPostprocessor(normalisation="fixed", min_size=20))
    image = model.image(600, 1500)
    everything = segment_image(image, model=model)
    large = segment_image(image, model=model, postprocessor={"min_size": 600})
    assert 0 < len(large) < len(everything)
    assert len(large) == (everything.area >= 600).sum()
    assert model.postprocessor.init_args == {"normalisation": "fixed", "min_size": 20}
    changed = with_postprocessor(with_postprocessor(model, {"min_size": 600}), {"threshold": 0.6})
    assert changed.postprocessor.init_args == {"normalisation": "fixed", "min_size": 600, "threshold": 0.6}
    assert weights_hash(changed) == weights_hash(model)  # classifiers of its embeddings go with it
    again = segment_image(image, model=model, postprocessor={"min_size": 600, "normalisation": "tile"})
    assert len(again) == len(large)  # what the model has and what is asked for go together


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (ColouredSpots(), {"min_size": 5}, "ColouredSpots has no post-processor whose settings"),
        ("nano", {"min_prop": 0.5}, r"takes no argument \['min_prop'\]; it takes: .*min_prob"),
        ("nano", {"min_prob": 2}, "min_prob 2"),
        ("nano", {"min_prob": "high"}, "HVPostprocessor does not work with {'min_prob': 'high'}: "),
    ],
)
def test_settings_that_the_postprocessor_does_not_take_are_refused(model, changes, words):
    with pytest.raises(ConfigError, match=words):
        segment_image(np.zeros((20, 20, 3), np.uint8), model=model, postprocessor=changes, device="auto")


def test_threads_may_use_a_model_and_one_with_other_settings(tiny):
    changed = with_postprocessor(tiny, {"min_size": 30})
    tiny.train()
    with evaluation_mode(changed):
        with evaluation_mode(tiny):
            pass
        assert not tiny.encoder.training  # the last one undoes it
    assert tiny.encoder.training
    tiny.eval()


def test_unknown_model_and_wrong_image():
    with pytest.raises(UnknownPluginError, match="no-such-model"):
        segment_image(np.zeros((20, 20, 3), np.uint8), model="no-such-model")
    with pytest.raises(ImageError, match="read_image"):
        segment_image("image.png", model=ColouredSpots())


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'cuda' is not available here; use 'auto' or one of: 'cpu'"):
        choose_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device() == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="cuda:2"):
        choose_device("cuda:2")
    assert autocast_context("16-mixed", torch.device("cuda")) is not None


def test_a_model_that_is_passed_in_stays_where_it_is():
    model = ColouredSpots()
    model.device = "somewhere"
    assert load_model(model).device == "somewhere"
    assert load_model(model, device="cpu").device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_graphics_card_finds_the_same_nuclei(tiny, tmp_path, precision):
    tiny.save_pretrained(tmp_path / "tiny")
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    there = segment_image(image, model=tmp_path / "tiny", device="cuda", precision=precision)
    if precision == "32-true":
        assert abs(len(there) - len(segment_image(image, model=tiny))) <= 2
    assert there.embedding.shape[1] == 24


@pytest.mark.parametrize("overlap", [0, 7, -1])
def test_an_overlap_in_which_seams_cannot_be_joined_is_refused(tiny, overlap):
    with pytest.raises(ConfigError, match="use 8 px or more"):
        segment_image(np.zeros((20, 20, 3), np.uint8), model=tiny, overlap=overlap)
