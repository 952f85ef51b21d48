import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays
from pannuke_samples import LAYOUTS, draw_arrays, slow_maps, write_fold, write_folds

from cellvit.classes import PANNUKE, PANNUKE_TISSUES
from cellvit.data.pannuke.convert import merge_channels, rescale
from cellvit.data.pannuke.prepare import prepare_pannuke
from cellvit.data.pannuke.source import find_folds
from cellvit.data.pannuke.storage import read_dataset, read_fold
from cellvit.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def do_not_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr("cellvit.io.atomic._sync", lambda path: None)


@given(drawn_arrays(np.int32, (6, 5, 4), elements=st.integers(0, 6)))
@settings(max_examples=200, deadline=None)
def test_channels_merge_by_the_published_rule(mask):
    instances, types = slow_maps(mask)
    merged = merge_channels(mask[..., :-1])
    np.testing.assert_array_equal(merged.instance_map, instances)
    np.testing.assert_array_equal(merged.types[merged.instance_map], types)
    sets = [{int(v) for v in mask[..., j].ravel() if v} for j in range(3)]
    assert merged.labelled == sum(map(len, sets))
    assert merged.repeated == (len(set.union(*sets)) < merged.labelled)


def test_channels_without_nuclei_merge_to_nothing():
    merged = merge_channels(np.zeros((3, 3, 5), np.int32))
    assert not merged.instance_map.any()
    assert merged.types.tolist() == [0]


def test_half_resolution_by_hand():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2] = 40
    image[0, 0] = 80
    ids = np.zeros((4, 4, 2), np.int32)
    ids[0, 0, 0] = 5  # not at a centre that is sampled: vanishes
    ids[1, 1, 1] = 9  # rows and columns 1 and 3 are sampled
    ids[2:, 2:, 0] = 8
    small, instances, types = rescale(image, merge_channels(ids), factor=0.5)
    assert small[..., 0].tolist() == [[50, 0], [0, 0]]
    assert instances.tolist() == [[2, 0], [0, 1]]
    assert types.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [*((layout, "float64") for layout in LAYOUTS), ("flat", "float32"), ("flat", "uint8"), ("distributed", ">i2")],
)
def test_every_layout_gives_the_same_patches(tmp_path, layout, dtype):
    folds = write_folds(tmp_path, layout=layout)
    for number, arrays in folds.items():
        typed = {**arrays, "images": arrays["images"].astype(dtype), "masks": arrays["masks"].astype(dtype)}
        write_fold(tmp_path, number, typed, layout=layout)
    result = prepare_pannuke(tmp_path)
    assert result.out == tmp_path / "prepared"
    dataset = read_dataset(result.out)
    assert (dataset.name, dataset.mpp, dataset.folds, dataset.patch_size) == ("pannuke", 0.25, (1, 2, 3), 16)
    assert (dataset.class_names, dataset.tissue_names) == (PANNUKE.names, PANNUKE_TISSUES)
    for number, arrays in folds.items():
        fold = read_fold(result.out, number, dataset=dataset)
        np.testing.assert_array_equal(fold.images, arrays["images"])
        assert fold.names == fold.sources == tuple(f"fold{number}/{i:04d}" for i in range(4))
        assert [dataset.tissue_names[t] for t in fold.tissue] == arrays["types"].tolist()
        for i, mask in enumerate(arrays["masks"]):
            instances, types = slow_maps(mask)
            np.testing.assert_array_equal(fold.instance_maps[i], instances)
            np.testing.assert_array_equal(fold.type_maps[i], types)
            kinds = [types[instances == label][0] for label in range(1, instances.max() + 1)]
            assert fold.counts[i].tolist() == [kinds.count(j) for j in range(1, 6)]


def test_the_summary_counts_what_is_there(tmp_path):
    folds = write_folds(tmp_path)
    folds[2]["masks"][1] = 0
    folds[2]["masks"][1, ..., 5] = 1  # looked at, no nuclei: normal
    folds[2]["masks"][0] = 0
    folds[2]["masks"][0, 3:5, 3:5, 0] = 7  # wholly under the next one
    folds[2]["masks"][0, 2:6, 2:6, 4] = 3
    folds[2]["images"][3] = folds[2]["images"][0]
    write_fold(tmp_path, 2, folds[2])
    fold = prepare_pannuke(tmp_path).folds[1]
    maps = [slow_maps(mask) for mask in folds[2]["masks"]]
    pairs = [np.unique(np.stack([a[a > 0], t[a > 0]]), axis=1)[1] for a, t in maps]
    totals = np.bincount(np.concatenate(pairs), minlength=6)[1:]
    assert fold.nuclei == dict(zip(PANNUKE.names[1:], totals.tolist(), strict=True))
    assert fold.without_nuclei == 1
    labelled = sum(len(np.unique(m[..., j][m[..., j] > 0])) for m in folds[2]["masks"] for j in range(5))
    assert fold.occluded == labelled - totals.sum() >= 1
    assert fold.repeated_images == 1
    assert sum(fold.tissues.values()) == fold.patches == 4
    assert fold.accepted == {}


def test_half_resolution_of_folds(tmp_path):
    folds = write_folds(tmp_path, size=24)
    result = prepare_pannuke(tmp_path, mpp=0.5)
    assert result.out == tmp_path / "prepared-mpp0.5"
    dataset = read_dataset(result.out)
    assert (dataset.mpp, dataset.patch_size) == (0.5, 12)
    for number, arrays in folds.items():
        fold = read_fold(result.out, number, dataset=dataset)
        means = arrays["images"].reshape(4, 12, 2, 12, 2, 3).mean(axis=(2, 4))
        assert np.abs(fold.images - means).max() <= 0.5
        vanished = 0
        for i, mask in enumerate(arrays["masks"]):
            instances, types = slow_maps(mask)
            kept, labels = np.unique(instances[1::2, 1::2], return_inverse=True)
            labels = labels.reshape(12, 12) + (kept[0] > 0)
            np.testing.assert_array_equal(fold.instance_maps[i], labels)
            np.testing.assert_array_equal(fold.type_maps[i], types[1::2, 1::2])
            assert fold.counts[i].sum() == fold.instance_maps[i].max()
            vanished += instances.max() - labels.max()
        assert result.folds[number - 1].vanished == vanished


def test_half_values_of_float_images_are_rounded(tmp_path):
    folds = write_folds(tmp_path)
    folds[1]["images"][0, 0, 0] = [0.4, 254.6, 17.0]
    write_fold(tmp_path, 1, folds[1])
    result = prepare_pannuke(tmp_path)
    fold = read_fold(result.out, 1, dataset=result.dataset)
    assert fold.images[0, 0, 0].tolist() == [0, 255, 17]


def test_names_and_sources_beside_the_folds_are_used(tmp_path):
    for number in (1, 2, 3):
        arrays = draw_arrays(number, channels=3)
        write_fold(tmp_path, number, {**arrays, "types": np.array(["Skin*"] * 4)})
    names = {"name": "mine", "mpp": 0.5, "class_names": ["None", "A", "B"], "tissue_names": ["Skin*"]}
    (tmp_path / "names.json").write_text(json.dumps({**names, "about": {"licence": "CC0"}}))
    rows = [f"{k},{i},slide {i // 2},0,{i}" for k in (1, 2, 3) for i in range(4)]
    (tmp_path / "sources.csv").write_text("\n".join(["fold,index,source,row,col", *rows]))
    result = prepare_pannuke(tmp_path)
    dataset = read_dataset(result.out)
    assert (dataset.name, dataset.class_names, dataset.tissue_names) == ("mine", ("None", "A", "B"), ("Skin*",))
    assert dataset.about["licence"] == "CC0"
    assert read_fold(result.out, 3, dataset=dataset).sources == ("slide 0", "slide 0", "slide 1", "slide 1")
    (tmp_path / "sources.csv").write_text("\n".join(["fold,index,source,row,col", *rows[:-1]]))
    with pytest.raises(DataError, match=r"sources.csv: fold 3 lacks patch 3"):
        prepare_pannuke(tmp_path, tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["A", "A"]},
        {"class_names": ["A", "name"]},
        {"class_names": ["A"]},
        {"tissue_names": []},
        {"mpp": 0},
        {"mpp": "x"},
        {"name": None, "class_names": 3},
    ],
)
def test_names_that_cannot_be_used(tmp_path, change):
    write_folds(tmp_path)
    names = {"name": "mine", "mpp": 0.5, "class_names": ["None", "A"], "tissue_names": ["Skin"]}
    (tmp_path / "names.json").write_text(json.dumps({**names, **change}))
    with pytest.raises(DataError, match=r"names\.json"):
        prepare_pannuke(tmp_path)


# What may be wrong: where the folds lie.


def problems_of(root, **options):
    """Return the lines of the error that a preparation ends with; nothing is left that looks finished."""
    with pytest.raises(DataError) as caught:
        prepare_pannuke(root, **options)
    assert not (root / "prepared" / "dataset.json").exists()
    assert not list(root.rglob(".cellvit-*"))
    return str(caught.value).splitlines()[1:]


def test_a_folder_that_is_none_and_one_without_folds(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        prepare_pannuke(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no fold"):
        prepare_pannuke(tmp_path)


def test_missing_folds_are_named_unless_only_others_are_wanted(tmp_path):
    write_folds(tmp_path)
    shutil.rmtree(tmp_path / "Fold 3")
    (line,) = problems_of(tmp_path)
    assert "fold 3 is missing; there are [1, 2]" in line
    assert read_dataset(prepare_pannuke(tmp_path, folds=[2, 1]).out).folds == (1, 2)


def test_a_fourth_fold_is_taken_and_fold_zero_refused(tmp_path):
    write_folds(tmp_path)
    write_fold(tmp_path, 4, draw_arrays(4))
    assert prepare_pannuke(tmp_path, tmp_path / "four").dataset.folds == (1, 2, 3, 4)
    write_fold(tmp_path, 0, draw_arrays(5))
    assert any("Fold 0: folds are numbered from 1" in line for line in problems_of(tmp_path))


def test_folds_given_twice(tmp_path):
    write_folds(tmp_path)
    assert "name one twice" in problems_of(tmp_path, folds=[1, 1])[0]
    write_fold(tmp_path, 1, draw_arrays(9), layout="flat")
    (line,) = problems_of(tmp_path)
    assert "fold 1 is there twice: 'Fold 1' and 'fold1'" in line


def test_missing_and_repeated_files_are_named(tmp_path):
    write_folds(tmp_path)
    (tmp_path / "Fold 1/masks/fold1/masks.npy").unlink()
    (tmp_path / "Fold 2/images/fold2/types.npy").unlink()
    np.save(tmp_path / "Fold 3/images/images.npy", np.zeros(1))
    lines = problems_of(tmp_path)
    assert [line.strip().split(" (")[0] for line in lines] == [
        "Fold 1: masks.npy is missing",
        "Fold 2: types.npy is missing",
        "Fold 3: images.npy is there 2 times",
    ]


def test_files_of_another_fold_are_refused(tmp_path):
    write_folds(tmp_path)
    (tmp_path / "Fold 1/masks/fold1").rename(tmp_path / "Fold 1/masks/fold2")
    (line,) = problems_of(tmp_path)
    assert "Fold 1/masks/fold2/masks.npy: the folders name two folds" in line


def test_leftovers_of_archives_and_other_folders_are_not_searched(tmp_path):
    write_folds(tmp_path)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "Fold 1/images/fold1/._images.npy").write_bytes(b"x")
    (tmp_path / "Fold 1/backup").mkdir()
    np.save(tmp_path / "Fold 1/backup/images.npy", np.zeros(1))
    found, problems = find_folds(tmp_path)
    assert [one.number for one in found] == [1, 2, 3]
    assert problems == []


# What may be wrong: shapes and files. Each case changes fold 2 and gives a part of the line.


def cut(arrays, kind, count=-1):
    return {**arrays, kind: arrays[kind][:count]}


STRUCTURE = {
    "three of four images": (
        lambda a: cut(a, "images"),
        "different numbers of patches: Fold 2/images/fold2/images.npy 3",
    ),
    "three of four types": (lambda a: cut(a, "types"), "types.npy 3"),
    "no patches": (lambda a: {k: v[:0] for k, v in a.items()}, "images.npy: no patches"),
    "not square": (lambda a: {**a, "images": a["images"][:, 1:], "masks": a["masks"][:, 1:]}, "patches of 15x16 px"),
    "masks of another size": (lambda a: {**a, "masks": a["masks"][:, 1:, 1:]}, "masks.npy: (15, 15) px but the images"),
    "another size than fold 1": (
        lambda a: {**a, "images": a["images"][:, 1:, 1:], "masks": a["masks"][:, 1:, 1:]},
        "patches of 15 px, not 16 px as in fold 1",
    ),
    "grey images": (lambda a: {**a, "images": a["images"][..., 0]}, "images.npy: shape (4, 16, 16)"),
    "a number": (lambda a: {**a, "images": np.array(3.0)}, "images.npy: shape ()"),
    "five channels": (lambda a: {**a, "masks": a["masks"][..., 1:]}, "masks.npy: 5 channels; 6 are due: Neoplastic"),
    "text as images": (
        lambda a: {**a, "images": a["images"].astype("U3")},
        "images.npy: shape (4, 16, 16, 3), type <U3",
    ),
    "numbers as types": (lambda a: {**a, "types": np.arange(4)}, "types.npy: shape (4,), type int64; give (N,) text"),
    "unknown tissue": (
        lambda a: {**a, "types": np.array(["Breast", "breast", "Colon", "breast"])},
        "types.npy: patches 1, 3: tissue 'breast' is unknown; known are Adrenal_gland, Bile-duct",
    ),
    "objects": (
        lambda a: {**a, "types": a["types"].astype(object)},
        "types.npy cannot be read: it holds Python objects",
    ),
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_arrays_that_do_not_fit(tmp_path, case):
    change, expected = STRUCTURE[case]
    folds = write_folds(tmp_path)
    write_fold(tmp_path, 2, change(folds[2]))
    lines = problems_of(tmp_path)
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Fold 2/" in lines[0]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), b"\x93NUMPY\x01\x00\x10\x00{'descr':"])
def test_files_that_are_no_arrays(tmp_path, content):
    write_folds(tmp_path)
    (tmp_path / "Fold 2/images/fold2/images.npy").write_bytes(content)
    (line,) = problems_of(tmp_path)
    assert "Fold 2/images/fold2/images.npy cannot be read" in line


def test_truncated_files(tmp_path):
    write_folds(tmp_path)
    path = tmp_path / "Fold 2/masks/fold2/masks.npy"
    path.write_bytes(path.read_bytes()[:-8])
    (line,) = problems_of(tmp_path)
    assert "Fold 2/masks/fold2/masks.npy cannot be read" in line


# What may be wrong: the pixels. Each case changes patches of fold 2 in place.


def set_image(value):
    def change(arrays):
        arrays["images"][1, 3, 4, 2] = arrays["images"][3, 0, 0, 0] = value

    return change


def set_id(value):
    def change(arrays):
        arrays["masks"][1, 3, 4, 2] = arrays["masks"][3, 0, 0, 0] = value

    return change


PIXELS = {
    "NaN": (set_image(np.nan), "images.npy: patches 1, 3: holds NaN or infinite values"),
    "infinite": (set_image(np.inf), "images.npy: patches 1, 3: holds NaN or infinite values"),
    "negative": (set_image(-1), "images.npy: patches 1, 3: holds values outside 0..255"),
    "above 255": (set_image(255.5), "images.npy: patches 1, 3: holds values outside 0..255"),
    "fractional ids": (set_id(1.5), "masks.npy: patches 1, 3: holds ids that are no whole numbers"),
    "negative ids": (set_id(-2), "masks.npy: patches 1, 3: holds negative ids"),
    "NaN ids": (set_id(np.nan), "masks.npy: patches 1, 3: holds NaN or infinite ids"),
    "infinite ids": (set_id(-np.inf), "masks.npy: patches 1, 3: holds NaN or infinite ids"),
    "huge ids": (set_id(2.0**31), "masks.npy: patches 1, 3: holds ids above 2147483647"),
}


@pytest.mark.parametrize("case", PIXELS)
def test_pixels_that_cannot_be_used(tmp_path, case):
    change, expected = PIXELS[case]
    folds = write_folds(tmp_path)
    change(folds[2])
    write_fold(tmp_path, 2, folds[2])
    (line,) = problems_of(tmp_path)
    assert f"Fold 2/{expected.split('.')[0]}/fold2/{expected}" in line
    assert sorted(p.name for p in (tmp_path / "prepared").iterdir() if (p / "source.json").exists()) == [
        "fold1",
        "fold3",
    ]


def test_images_between_0_and_1_are_refused(tmp_path):
    folds = write_folds(tmp_path)
    write_fold(tmp_path, 1, {**folds[1], "images": folds[1]["images"] / 255})
    (line,) = problems_of(tmp_path)
    assert "Fold 1/images/fold1/images.npy: no value is above 1" in line


def test_ids_in_two_channels_are_an_error_that_can_be_accepted(tmp_path):
    folds = write_folds(tmp_path)
    for i in (0, 2):
        folds[2]["masks"][i, ..., :5] = 0
        folds[2]["masks"][i, 1:4, 1:4, 0] = folds[2]["masks"][i, 8:12, 8:12, 3] = 5
    write_fold(tmp_path, 2, folds[2])
    (line,) = problems_of(tmp_path)
    assert "masks.npy: patches 0, 2: has an id in more than one type channel" in line
    assert "accept=['repeated-ids']" in line
    result = prepare_pannuke(tmp_path, accept=["repeated-ids"])
    assert result.folds[1].accepted == {"repeated-ids": 2}
    assert result.dataset.about["accepted"] == ["repeated-ids"]
    fold = read_fold(result.out, 2, dataset=result.dataset)
    assert fold.counts[0].tolist() == [1, 0, 0, 1, 0]
    (tmp_path / "prepared" / "dataset.json").unlink()
    (line,) = problems_of(tmp_path)  # what was accepted once is not accepted for good
    assert "accepted before, 2 patch(es)" in line


def test_patches_that_nobody_labelled_are_an_error_that_can_be_accepted(tmp_path):
    folds = write_folds(tmp_path)
    folds[3]["masks"][2] = 0
    write_fold(tmp_path, 3, folds[3])
    (line,) = problems_of(tmp_path)
    assert "Fold 3/masks/fold3/masks.npy: patch 2: is zero in all channels" in line
    assert "accept=['empty-masks']" in line
    result = prepare_pannuke(tmp_path, accept=["empty-masks"])
    assert result.folds[2].accepted == {"empty-masks": 1}
    assert result.folds[2].without_nuclei == 1


def test_folds_that_share_images_are_an_error_that_can_be_accepted(tmp_path):
    folds = write_folds(tmp_path)
    folds[3]["images"][1] = folds[1]["images"][2]
    write_fold(tmp_path, 3, folds[3])
    for _ in range(2):  # the second time fold 1 is taken over
        (line,) = problems_of(tmp_path)
        assert "Fold 3/images/fold3/images.npy: patch 1 has the same image as fold1/0002" in line
    result = prepare_pannuke(tmp_path, accept=["shared-images"])
    assert result.folds[2].accepted == {"shared-images": 1}
    (tmp_path / "prepared" / "dataset.json").unlink()
    (line,) = problems_of(tmp_path)  # all folds are taken over
    assert "patch 1 has the same image as fold1/0002" in line


def test_too_many_nuclei(tmp_path):
    arrays = draw_arrays(1, count=1, size=257)
    arrays["masks"] = np.zeros((1, 257, 257, 6), np.int32)
    arrays["masks"][0, ..., 0] = np.arange(1, 257**2 + 1).reshape(257, 257)
    for number in (1, 2):
        write_fold(tmp_path, number, {**arrays, "images": arrays["images"] // number})
    lines = problems_of(tmp_path, folds=[1, 2])
    assert all("masks.npy: patch 0: has more than 65535 nuclei" in line for line in lines)
    assert len(lines) == 2


def test_all_problems_of_all_folds_are_in_one_error(tmp_path):
    folds = write_folds(tmp_path, count=14)
    folds[1]["images"][:, 0, 0, 0] = np.nan
    folds[2]["types"] = np.array(["Moon"] * 14)
    folds[3]["masks"][5] = 0
    folds[3]["images"][6, 1, 1] = 300
    folds[3]["types"][7] = "Mars"
    for number in (1, 2, 3):
        write_fold(tmp_path, number, folds[number])
    (tmp_path / "Fold 2/masks/fold2/masks.npy").write_bytes(b"")
    write_fold(tmp_path, 4, draw_arrays(4))
    (tmp_path / "Fold 4/images/fold4/types.npy").unlink()
    lines = problems_of(tmp_path)
    text = "\n".join(lines)
    assert "Fold 1/images/fold1/images.npy: patches 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more: holds NaN" in text
    assert "Fold 2/masks/fold2/masks.npy cannot be read" in text
    assert "Fold 3/masks/fold3/masks.npy: patch 5: is zero" in text
    assert "Fold 3/images/fold3/images.npy: patch 6: holds values outside 0..255" in text
    assert "Fold 4: types.npy is missing" in text
    assert "tissue 'Moon' is unknown" in text
    assert "Fold 3/images/fold3/types.npy: patch 7: tissue 'Mars' is unknown" in text
    assert len(lines) == 7


def test_settings_that_cannot_work(tmp_path):
    write_folds(tmp_path, layout="flat")
    for out in (tmp_path, tmp_path / "fold1", tmp_path / "fold1" / "new", tmp_path.parent):
        with pytest.raises(ConfigError, match="the folder to write"):
            prepare_pannuke(tmp_path, out)
    for mpp in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="mpp"):
            prepare_pannuke(tmp_path, mpp=mpp)
    with pytest.raises(ConfigError, match="cannot be accepted"):
        prepare_pannuke(tmp_path, accept=["everything"])
