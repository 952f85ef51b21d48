import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.cli import main
from cellvit.data.datasets.consep import CLASS_NAMES, channels_from_instances, cut_folds, deal_folds, find_typed_images
from cellvit.data.pannuke.convert import ACCEPTABLE
from cellvit.data.pannuke.storage import read_dataset, read_fold
from cellvit.errors import DataError, OutputError

DATA = os.environ.get("CELLVIT_TEST_DATA")


@pytest.fixture(autouse=True)
def do_not_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr("cellvit.io.atomic._sync", lambda path: None)


def write_pannuke(root, *, size=12):
    for number in (1, 2, 3):
        folder = root / f"fold{number}"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        masks = np.zeros((3, size, size, 6), np.int32)
        masks[:, 2:6, 2:6, number] = 4
        masks[0, 8:10, 8:10, 0] = 7
        masks[2, 2:6, 2:6, number] = 0
        masks[..., 5] = ~masks[..., :5].any(axis=-1)
        np.save(folder / "images.npy", rng.integers(0, 256, (3, size, size, 3)).astype(np.float32))
        np.save(folder / "masks.npy", masks)
        np.save(folder / "types.npy", np.array(["Breast", "Colon", "Colon"]))
    return root


def row_of(text, first):
    """Return the cells of the table's row that starts with ``first``."""
    rows = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in text.splitlines() if "│" in line]
    return next(row for row in rows if row[0] == first)


def test_pannuke_is_prepared_and_shown(tmp_path, capsys):
    root = write_pannuke(tmp_path / "pan nuke")
    assert main(["prepare", "pannuke", str(root)]) == 0
    assert read_dataset(root / "prepared").folds == (1, 2, 3)
    shown = capsys.readouterr()
    assert shown.err.strip() == ""
    # patches, without nuclei, tissues, nuclei, and by type; channel 0 has one nucleus in patch 0
    assert row_of(shown.out, "1") == ["1", "3", "1", "2", "3", "1", "2", "0", "0", "0"]
    assert row_of(shown.out, "3") == ["3", "3", "1", "2", "3", "1", "0", "0", "2", "0"]
    assert row_of(shown.out, "Breast") == ["Breast", "1", "1", "1"]
    assert row_of(shown.out, "Colon") == ["Colon", "2", "2", "2"]
    assert f"--data.root '{root / 'prepared'}'" in shown.out
    assert "kept" not in shown.out
    assert main(["prepare", "pannuke", str(root)]) == 0
    assert "finished before and kept: fold 1, 2, 3" in capsys.readouterr().out


def test_half_resolution_folds_and_folder_are_options(tmp_path, capsys):
    root = write_pannuke(tmp_path / "pannuke")
    out = tmp_path / "new" / "half"
    arguments = ["prepare", "pannuke", str(root), "--mpp", "0.5", "--folds", "1", "3", "--out", str(out)]
    assert main(arguments) == 0
    dataset = read_dataset(out)
    assert (dataset.mpp, dataset.patch_size, dataset.folds) == (0.5, 6, (1, 3))
    assert "cellvit-256-x20.yaml" in capsys.readouterr().out
    assert not (root / "prepared").exists()


def test_folds_of_an_earlier_call_are_shown_and_stay(tmp_path, capsys):
    root = write_pannuke(tmp_path)
    assert main(["prepare", "pannuke", str(root), "--folds", "1", "2"]) == 0
    capsys.readouterr()
    np.save(root / "fold3" / "images.npy", np.load(root / "fold2" / "images.npy")[[2, 1, 0]])
    assert main(["prepare", "pannuke", str(root), "--folds", "3"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("cellvit prepare: 3 problem(s)")
    assert "fold3/images.npy: patch 0 has the same image as fold2/0002" in shown[1]
    assert main(["prepare", "pannuke", str(root), "--folds", "3", "--accept", "shared-images"]) == 0
    shown = capsys.readouterr().out
    assert [row_of(shown, number)[1] for number in "123"] == ["3", "3", "3"]
    assert "finished before and kept: fold 1, 2" in shown
    assert read_dataset(root / "prepared").folds == (1, 2, 3)


def test_faults_end_in_one_message_and_can_be_accepted(tmp_path, capsys):
    root = write_pannuke(tmp_path)
    masks = np.load(root / "fold2" / "masks.npy")
    masks[1, 8, 8, 0] = 4
    masks[2] = 0
    np.save(root / "fold2" / "masks.npy", masks)
    assert main(["prepare", "pannuke", str(root)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("cellvit prepare: 2 problem(s)")
    assert "fold2/masks.npy: patch 1: has an id" in shown.err
    assert "fold2/masks.npy: patch 2: is zero" in shown.err
    assert main(["prepare", "pannuke", str(root), "--accept", "repeated-ids", "empty-masks"]) == 0
    shown = capsys.readouterr().out
    assert "fold 2: accepted: 1 patches, each has an id in more than one type channel" in shown
    assert "fold 2: accepted: 1 patches, each is zero" in shown


@pytest.mark.parametrize(
    "arguments",
    [["pannuke"], ["lizard", "x"], [], ["pannuke", "x", "--accept", "everything"], ["pannuke", "x", "--mpp", "y"]],
)
def test_wrong_usage(arguments, capsys):
    assert main(["prepare", *arguments]) == 2
    assert "usage: cellvit prepare" in capsys.readouterr().err


def test_help_names_every_fault_that_can_be_accepted(capsys):
    assert main(["prepare", "pannuke", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert ", ".join(ACCEPTABLE) in text


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("cellvit.data.pannuke.convert.merge_channels", interrupt)
    assert main(["prepare", "pannuke", str(write_pannuke(tmp_path))]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_monuseg_is_prepared_and_shown(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    points = "".join(f"<Vertex X='{x}' Y='{y}'/>" for x, y in ((1, 1), (4, 1), (4, 4)))
    region = f"<Region><Vertices>{points}</Vertices></Region>"
    tifffile.imwrite(tmp_path / "x" / "a.tif", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "a.xml").write_text(
        f"<Annotations><Annotation><Regions>{region * 2}</Regions></Annotation></Annotations>"
    )
    assert main(["prepare", "monuseg", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert row_of(shown, "a") == ["a", "1", "1", "0", ""]
    assert f"next: cellvit segment --out results {tmp_path / 'out' / 'images'}" in shown
    assert main(["prepare", "monuseg", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert row_of(capsys.readouterr().out, "a") == ["a", "1", "", "", "kept"]
    (tmp_path / "a.xml").unlink()
    assert main(["prepare", "monuseg", str(tmp_path)]) == 1
    assert "has no outlines" in capsys.readouterr().err


# PanNuke-like, from typed images.


def write_typed(root, count=4, *, height=300, width=256):
    """Write images whose nuclei are squares of one colour per type."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        instances, kinds = np.zeros((height, width), np.uint16), [0]
        for row in range(5, height - 20, 30):
            for col in range(5, width - 20, 30):
                if rng.random() < 0.3 + 0.1 * i:
                    kinds.append(int(rng.integers(1, 5)))
                    instances[row : row + 12, col : col + 12] = len(kinds) - 1
        pixels = np.array(kinds, np.uint8)[instances][..., None] * 50 + rng.integers(0, 20, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"train_{i}.png")
        np.savez(root / "labels" / f"train_{i}.npz", inst_map=instances, inst_type=np.array(kinds, np.uint8))
    return root


def test_typed_images_become_folds_and_a_prepared_set(tmp_path, capsys):
    write_typed(tmp_path / "consep")
    out = tmp_path / "like"
    assert main(["prepare", "pannuke-like", str(tmp_path), "--out", str(out)]) == 0
    dataset = read_dataset(out / "prepared")
    assert (dataset.name, dataset.class_names, dataset.tissue_names) == ("pannuke-like", CLASS_NAMES, ("Colon",))
    sources = {name: [] for name in ("train_0", "train_1", "train_2", "train_3")}
    for number in (1, 2, 3):
        fold = read_fold(out / "prepared", number, dataset=dataset)
        for i, source in enumerate(fold.sources):
            sources[source].append((number, i))
            row = (0, 44)[i % 2]
            with Image.open(tmp_path / "consep" / "images" / f"{source}.png") as image:
                np.testing.assert_array_equal(fold.images[i], np.asarray(image)[row : row + 256])
            with np.load(tmp_path / "consep" / "labels" / f"{source}.npz") as label:
                whole, kinds = label["inst_map"][row : row + 256], label["inst_type"]
            np.testing.assert_array_equal(fold.type_maps[i], kinds[whole])
            pairs = np.unique(np.stack([whole.ravel(), fold.instance_maps[i].ravel()]), axis=1)
            assert len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1]))  # the same nuclei under other numbers
    assert all(len({fold for fold, _ in places}) == 1 and len(places) == 2 for places in sources.values())
    for number in (1, 2, 3):
        masks = np.load(out / f"Fold {number}/masks/fold{number}/masks.npy")
        assert ((masks[..., :-1] > 0).sum(axis=-1) + masks[..., -1] == 1).all()
        assert set(np.load(out / f"Fold {number}/images/fold{number}/types.npy")) == {"Colon"}
    shown = capsys.readouterr().out
    assert f"folds as PanNuke distributes them written: {out}" in shown
    assert "docs/configs/pannuke-like.yaml" in shown
    assert main(["prepare", "pannuke-like", str(tmp_path / "consep"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "were there" in shown
    assert "kept: fold 1, 2, 3" in shown


def test_folds_are_dealt_by_nuclei(tmp_path):
    images = find_typed_images(write_typed(tmp_path, 9))[0]
    folds = deal_folds(images)
    sizes = sorted((one.nuclei for one in images), reverse=True)
    dealt = {k: sorted((one.nuclei for one in folds[k]), reverse=True) for k in folds}
    assert dealt == {k: [sizes[k - 1], sizes[6 - k], sizes[5 + k]] for k in (1, 2, 3)}
    assert deal_folds(images[::-1]) == folds


def test_channels_by_hand():
    masks = channels_from_instances(np.array([[0, 3], [1, 2]]), np.array([9, 4, 1, 1], np.int32))
    assert masks.tolist() == [[[0, 0, 0, 0, 1], [3, 0, 0, 0, 0]], [[0, 0, 0, 1, 0], [2, 0, 0, 0, 0]]]


def test_images_without_types_are_left_out_and_named(tmp_path, capsys):
    root = write_typed(tmp_path / "consep", 6)
    (root / "labels" / "train_0.npz").unlink()
    with np.load(root / "labels" / "train_1.npz") as label:
        np.savez(root / "labels" / "train_1.npz", inst_map=label["inst_map"])
    with np.load(root / "labels" / "train_2.npz") as label:
        unknown = np.full(len(label["inst_type"]), -1)
        np.savez(root / "labels" / "train_2.npz", inst_map=label["inst_map"], inst_type=unknown)
    assert main(["prepare", "pannuke-like", str(root), "--out", str(tmp_path / "out")]) == 0
    assert "left out, no label or no types: train_0.png, train_1.png, train_2.png" in capsys.readouterr().out
    (root / "labels" / "train_3.npz").unlink()
    with pytest.raises(DataError, match="has 2 images with types"):
        cut_folds(root, tmp_path / "other")


def test_typed_images_that_cannot_be_used(tmp_path):
    root = write_typed(tmp_path / "consep", 7)
    Image.new("RGB", (255, 300)).save(root / "images" / "train_0.png")
    (root / "images" / "train_1.png").write_bytes(b"x")
    for i, change in ((2, lambda kinds: kinds[:-1]), (3, lambda kinds: kinds * 0 + 5), (4, lambda kinds: kinds * 0)):
        with np.load(root / "labels" / f"train_{i}.npz") as label:
            arrays = {"inst_map": label["inst_map"], "inst_type": change(label["inst_type"].astype(int))}
        np.savez(root / "labels" / f"train_{i}.npz", **arrays)
    Image.new("RGB", (200, 200)).save(root / "images" / "train_5.png")
    np.savez(root / "labels" / "train_5.npz", inst_map=np.zeros((200, 200), int), inst_type=np.zeros(1, int))
    (root / "labels" / "train_6.npz").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        cut_folds(root, tmp_path / "out")
    lines = str(caught.value).splitlines()[1:]
    for i, part in enumerate(
        ("but its label is", "is not an image", "types", "type 5", "type 0", "at least 256 px", "read")
    ):
        assert f"train_{i}" in lines[i]
        assert part in lines[i]
    with pytest.raises(DataError, match="has no folder 'images'"):
        cut_folds(tmp_path / "nowhere", tmp_path / "out")


def test_folds_of_other_images_are_not_replaced(tmp_path):
    root = write_typed(tmp_path / "consep", 3)
    cut_folds(root, tmp_path / "out")
    assert cut_folds(root, tmp_path / "out").kept
    write_typed(root, 4)
    with pytest.raises(OutputError, match="made from other files"):
        cut_folds(root, tmp_path / "out")


@pytest.mark.parametrize("name", ["Fold 1", "fold1", "fold 3"])
def test_folds_of_somebody_else_are_not_touched(tmp_path, name):
    root = write_typed(tmp_path / "consep", 3)
    theirs = tmp_path / "out" / name / "images.npy"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(OutputError, match="of another data set"):
        cut_folds(root, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]


def test_a_stopped_run_is_done_again(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    root = write_typed(tmp_path / "consep", 3)
    whole = cut_folds(root, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cut_folds(root, tmp_path / "out", report=stop)
    assert not (tmp_path / "out" / "names.json").exists()
    assert not list((tmp_path / "out").rglob(".cellvit-*"))
    again = cut_folds(root, tmp_path / "out")
    assert (again.images, again.patches, again.kept) == (whole.images, whole.patches, False)
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.skipif(not DATA, reason="CELLVIT_TEST_DATA names no folder with real images")
def test_real_images_are_cut_without_loss(tmp_path):
    source = Path(DATA) / "nuclei" / "consep"
    for kind, suffix in (("images", ".jpg"), ("labels", ".npz")):
        (tmp_path / "consep" / kind).mkdir(parents=True)
        for stem in ("train_5", "train_11", "train_25"):
            (tmp_path / "consep" / kind / f"{stem}{suffix}").symlink_to(source / kind / f"{stem}{suffix}")
    out = tmp_path / "out"
    assert main(["prepare", "pannuke-like", str(tmp_path), "--out", str(out)]) == 0
    dataset = read_dataset(out / "prepared")
    for number in dataset.folds:
        fold = read_fold(out / "prepared", number, dataset=dataset)
        assert len(fold) == 16
        (stem,) = set(fold.sources)
        with np.load(source / "labels" / f"{stem}.npz") as label:
            whole = label["inst_type"][label["inst_map"]]
        joined = np.zeros_like(whole)
        for i, (row, col) in enumerate((r, c) for r in range(0, 1000, 248)[:4] for c in range(0, 1000, 248)[:4]):
            joined[row : row + 256, col : col + 256] = fold.type_maps[i]
            np.testing.assert_array_equal(fold.type_maps[i] > 0, fold.instance_maps[i] > 0)
        np.testing.assert_array_equal(joined, whole)
        assert fold.counts.sum() > 0
