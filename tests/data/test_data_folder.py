import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from cellvit.data import Draw, FolderDataset, ImageDataset
from cellvit.errors import CellViTError, ConfigError, DataError
from cellvit.types import Batch

COLOUR, GROUND = torch.tensor([90, 60, 140]) / 255, torch.tensor([200, 200, 200]) / 255


def colours(item):
    """Return whether each pixel is of the nuclei's colour; every pixel must be one or the other."""
    nucleus = (item["image"] - COLOUR[:, None, None]).abs().max(0).values < 1e-6
    ground = (item["image"] - GROUND[:, None, None]).abs().max(0).values < 1e-6
    assert (nucleus ^ ground).all()
    return nucleus


def test_whole_image_follows_the_batch_contract(two_datasets):
    data = FolderDataset(two_datasets, split="val")
    assert len(data) == 2
    item = data[0]
    assert set(item) == set(Batch.__annotations__)
    assert item["image"].shape == (3, 50, 30)
    assert item["image"].dtype == torch.float32
    assert item["hv_map"].shape == (2, 50, 30)
    assert item["name"] == "plain/d"
    assert item["tissue_types"] == -1
    assert torch.equal(colours(item).long(), item["nuclei_binary_map"])
    assert set(item["nuclei_type_map"].unique().tolist()) == {-1, 0}
    assert set(data[1]["nuclei_type_map"].unique().tolist()) == {0, 1, 2, 3}
    batch = default_collate([data[1], data[1]])
    assert batch["tissue_types"].tolist() == [-1, -1]
    assert batch["name"] == ["typed/e", "typed/e"]


@pytest.mark.parametrize("crop_size", [16, 32, 60, 130])
def test_patches_of_any_size_are_aligned(two_datasets, crop_size):
    """Also larger than the image, 40x48 and 64x64, which is then padded by reflection."""
    flips = {"rotate90": {}, "horizontal_flip": {}, "vertical_flip": {}}
    data = FolderDataset(two_datasets, crop_size=crop_size, augmentation=flips)
    for image in range(len(data)):
        for seed in range(4):
            item = data[Draw(image, seed)]
            assert item["image"].shape == (3, crop_size, crop_size)
            assert torch.equal(colours(item).long(), item["nuclei_binary_map"])
            assert torch.equal(item["instance_map"] > 0, item["nuclei_type_map"] != 0)
            labels = item["instance_map"].unique()
            assert labels[labels > 0].tolist() == list(range(1, int(labels.max()) + 1))


def test_mirrored_nuclei_keep_their_type_and_get_labels(data_folder):
    data_folder.add("a", "1", "train", typed=True, size=(20, 20), nuclei=1)
    data = FolderDataset(data_folder.write(), crop_size=60, augmentation={})
    item = data[Draw(0, 0)]
    assert item["instance_map"].max() > 3
    assert set(item["nuclei_type_map"].unique().tolist()) == {0, 1}


def test_a_draw_decides_the_patch(two_datasets):
    data = FolderDataset(two_datasets, crop_size=24)
    first, second = data[Draw(0, 7)], data[Draw(0, 7)]
    assert all(torch.equal(first[k], second[k]) for k in first if k != "name")
    assert any(not torch.equal(first["image"], data[Draw(0, s)]["image"]) for s in range(5))
    torch.manual_seed(3)
    plain = data[0]["image"]
    torch.manual_seed(3)
    assert torch.equal(plain, data[0]["image"])


def test_crops_reach_every_corner(data_folder):
    data_folder.add("a", "1", "train", size=(20, 24), nuclei=0)
    root = data_folder.write()
    ramp = np.arange(480, dtype=np.uint16).reshape(20, 24)
    image = np.stack([ramp // 24, ramp % 24, 0 * ramp], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(root / "a" / "images" / "1.png")
    data = FolderDataset(root, crop_size=18, augmentation={})
    corners = {tuple((data[Draw(0, s)]["image"][:2, 0, 0] * 255).round().int().tolist()) for s in range(300)}
    assert corners == {(r, c) for r in range(3) for c in range(7)}


def test_without_cache_items_are_the_same(two_datasets):
    cached, lazy = (FolderDataset(two_datasets, crop_size=24, cache=c) for c in (True, False))
    for image in range(3):
        assert torch.equal(cached[Draw(image, 1)]["image"], lazy[Draw(image, 1)]["image"])


def test_labels_beyond_int16_are_cropped_correctly(data_folder):
    data_folder.add("a", "1", "train", size=(30, 30))
    root = data_folder.write()
    instance_map = np.zeros((30, 30), np.int64)
    instance_map[2:8, 2:8], instance_map[10:20, 10:20] = 70_000, 65_536 + 70_000
    types = np.zeros(instance_map.max() + 1, np.uint8)
    types[[70_000, 135_536]] = 1, 2
    np.savez(root / "a" / "labels" / "1.npz", inst_map=instance_map, inst_type=types)
    item = FolderDataset(root, crop_size=30, augmentation={})[Draw(0, 0)]
    assert item["instance_map"].unique().tolist() == [0, 1, 2]
    assert torch.equal(item["instance_map"], item["nuclei_type_map"])


def test_known_other_resolution_is_resampled(data_folder):
    data_folder.add("a", "1", "val", mpp="0.5").add("a", "2", "val", mpp="0.25").add("a", "3", "val")
    data = FolderDataset(data_folder.write(), split="val", mpp=0.25)
    assert [tuple(data[i]["image"].shape[1:]) for i in range(3)] == [(80, 96), (40, 48), (40, 48)]
    assert data.shapes == [(80, 96), (40, 48), (40, 48)]
    assert (data[0]["nuclei_binary_map"].sum() / data[1]["nuclei_binary_map"].sum()) == pytest.approx(4, rel=0.05)


def test_image_without_nuclei(data_folder):
    data_folder.add("a", "1", "train", nuclei=0)
    item = FolderDataset(data_folder.write(), crop_size=32)[Draw(0, 0)]
    assert not item["instance_map"].any()
    assert not item["hv_map"].any()


def test_all_problems_are_in_one_error(data_folder):
    for i in range(7):
        data_folder.add("a", str(i), "train", typed=True)
    root = data_folder.write()
    images, labels = root / "a" / "images", root / "a" / "labels"
    (labels / "0.npz").unlink()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(images / "1.png")
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:60])
    one = np.pad(np.ones((4, 4), np.uint16), ((0, 36), (0, 44)))
    np.savez(labels / "3.npz", inst_map=one, inst_type=np.array([0], np.uint8))
    np.savez(labels / "4.npz", inst_map=one, inst_type=np.array([0, 5], np.uint8))
    np.savez(labels / "5.npz", inst_map=one, inst_type=np.array([0, 0], np.uint8))
    with pytest.raises(DataError) as caught:
        FolderDataset(root, num_nuclei_classes=5)
    text = str(caught.value)
    assert text.startswith("6 problem(s)")
    for part in (
        "0.png' has no label",
        "1.png' is (40, 40) but its label is (40, 48)",
        "2.png' is damaged or cut short",
        "3.npz' has labels up to 1 but inst_type of shape (1,); it needs 2",
        "4.npz' has type 5 but there are 5 classes",
        "5.npz' has a nucleus of type 0",
    ):
        assert part in text
    with pytest.raises(DataError, match="5 problem"):
        FolderDataset(root)


def test_a_long_list_of_problems_is_cut(data_folder):
    for i in range(25):
        data_folder.add("a", str(i), "train", size=(8, 8))
        (data_folder.root / "a" / "labels" / f"{i}.npz").unlink()
    with pytest.raises(DataError, match=r"25 problem(.|\n)*and 5 more$"):
        FolderDataset(data_folder.write())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 0}, "crop_size is 0"),
        ({"mpp": -1.0}, "mpp is -1.0"),
        ({"split": "test"}, "has no images"),
        ({"type_balance": -0.1}, r"type_balance is -0\.1; give a share of the patches from 0 to 1"),
        ({"type_balance": 1.5}, r"type_balance is 1\.5"),
        ({"type_balance": float("nan")}, "type_balance is nan"),
    ],
)
def test_wrong_settings_are_explained(two_datasets, settings, message):
    with pytest.raises(CellViTError, match=message):
        FolderDataset(two_datasets, **settings)


def test_draw_weights(two_datasets):
    data = FolderDataset(two_datasets)
    area = np.array([64 * 64, 40 * 48, 40 * 48])
    np.testing.assert_allclose(data.draw_weights(), area / area.sum())
    data = FolderDataset(two_datasets, dataset_weights={"typed": 1, "plain": 3})
    np.testing.assert_allclose(data.draw_weights(), [0.25 * 4096 / 6016, 0.25 * 1920 / 6016, 0.75])
    data = FolderDataset(two_datasets, dataset_weights={"typed": 0, "plain": 2})
    assert data.draw_weights().tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "weights", [{"typed": 1}, {"typed": 1, "plain": 1, "other": 1}, {"typed": 0, "plain": 0}, {"typed": -1, "plain": 2}]
)
def test_wrong_data_set_weights(two_datasets, weights):
    with pytest.raises(ConfigError, match="dataset_weights"):
        FolderDataset(two_datasets, dataset_weights=weights)


def test_images_alone(tmp_path, data_folder):
    data_folder.add_plain("", "b").add_plain("", "a")
    data = ImageDataset(data_folder.root / "images")
    assert [data[i]["name"] for i in range(len(data))] == ["a.png", "b.png"]
    assert data[0]["image"].shape == (3, 40, 48)
    with pytest.raises(DataError, match="does not exist"):
        ImageDataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="has no PNG, JPEG or TIFF"):
        ImageDataset(data_folder.root / "labels")
