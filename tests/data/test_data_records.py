import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.errors import DataError
from cellvit.io.labels import find_records, read_label, resample


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".png", ".tif"])
def test_label_files(tmp_path, suffix):
    instance_map = np.array([[0, 1, 300], [2, 2, 0]], np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, inst_map=instance_map, inst_type=np.zeros(301, np.uint8))
    elif suffix == ".npy":
        np.save(path, instance_map.astype(np.float32))
    elif suffix == ".png":
        Image.fromarray(instance_map).save(path)
    else:
        tifffile.imwrite(path, instance_map)
    read, types = read_label(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, instance_map)
    assert (types is None) == (suffix != ".npz")


def test_large_labels_stay_whole(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 70_000]]))
    read, _ = read_label(tmp_path / "a.npy")
    assert read.dtype == np.int32
    assert read.max() == 70_000


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2, 2)), np.array([[0.5]]), np.array([[np.nan]]), np.array([[-1]]), np.zeros((0, 3), int)],
    ids=["3d", "fraction", "nan", "negative", "empty"],
)
def test_wrong_label_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a.npy' has shape .* whole numbers from 0"):
        read_label(tmp_path / "a.npy")


def test_unreadable_label_is_refused(tmp_path):
    np.savez(tmp_path / "key.npz", something=np.zeros((2, 2)))
    np.savez(tmp_path / "cut.npz", inst_map=np.random.default_rng(0).integers(0, 9, (50, 50)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-300])
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    for name in ("key.npz", "cut.npz", "objects.npy"):
        with pytest.raises(DataError, match=f"{name}' cannot be read"):
            read_label(tmp_path / name)


def test_manifest_is_filtered_by_split_and_data_set(two_datasets):
    assert [r.name for r in find_records(two_datasets, split="train")] == ["typed/a", "typed/b", "plain/c"]
    assert [r.name for r in find_records(two_datasets, split="val", datasets=["plain"])] == ["plain/d"]
    assert len(find_records(two_datasets, split=None)) == 5
    assert find_records(two_datasets, split="test") == []


def test_manifest_resolutions(data_folder):
    for i, mpp in enumerate(["0.25", "unknown", "", "Unknown"]):
        data_folder.add("a", str(i), "train", mpp=mpp)
    assert [r.mpp for r in find_records(data_folder.write(), split="train")] == [0.25, None, None, None]


def test_every_wrong_row_of_a_manifest_is_listed(data_folder):
    data_folder.add("a", "1", "train").add("a", "2", "training").add("a", "3", "val", mpp="fine").add("a", "4", "")
    data_folder.add("a", "5", "val", mpp="-1")
    with pytest.raises(DataError) as caught:
        find_records(data_folder.write(), split="train")
    text = str(caught.value)
    assert "4 problem(s)" in text
    for part in ("line 3: split 'training'", "line 4: mpp 'fine'", "line 5: split ''", "line 6: mpp '-1'"):
        assert part in text


def test_manifest_without_columns_folder_and_split_that_do_not_exist(tmp_path, two_datasets):
    (tmp_path / "manifest.csv").write_text("image,width\na,3\n")
    with pytest.raises(DataError, match=r"lacks the columns \['dataset', 'split'\]"):
        find_records(tmp_path, split="train")
    with pytest.raises(DataError, match=r"does not exist; give a folder with manifest.csv"):
        find_records(tmp_path / "nothing", split="train")
    with pytest.raises(DataError, match="split 'training' is unknown"):
        find_records(two_datasets, split="training")
    with pytest.raises(DataError, match=r"\['pannuke'\] have no images in split 'train'.*\['plain', 'typed'\]"):
        find_records(two_datasets, split="train", datasets=["pannuke", "typed"])


def test_plain_folders(data_folder):
    data_folder.add_plain("train", "x").add_plain("train", "y").add_plain("", "z")
    (data_folder.root / "train" / "images" / "notes.txt").write_text("no image")
    (data_folder.root / "train" / "images" / "._x.png").write_text("a file system's leftovers")
    assert [r.name for r in find_records(data_folder.root, split="train")] == ["nuclei/x", "nuclei/y"]
    assert [r.name for r in find_records(data_folder.root, split=None)] == ["nuclei/z"]
    assert find_records(data_folder.root, split="val") == []


@pytest.mark.parametrize("factor", [0.5, 2.0, 0.37])
def test_resampling_keeps_labels_on_the_image(factor):
    rows, cols = np.mgrid[:60, :80]
    image = np.stack([2 * rows, 2 * cols, rows], axis=-1).astype(np.uint8)
    small, labels = resample(image, rows * 1000 + cols, factor=factor)
    assert small.shape[:2] == labels.shape == (round(60 * factor), round(80 * factor))
    shift = np.stack([small[..., 0] / 2 - labels // 1000, small[..., 1] / 2 - labels % 1000])
    assert np.abs(shift).max() <= 0.5 + 0.5
    assert np.abs(shift.mean(axis=(1, 2))).max() <= 0.51
    same, _ = resample(image, rows, factor=1.001)
    assert same is image
