"""``evaluate`` on labels of other tools: the scores are right, and what was not used is told."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cellvit.cli import main
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.scoring import evaluate

PLACES = [(row, col) for row in range(5, 95, 20) for col in range(5, 95, 20)]


@pytest.fixture
def labels():
    """Twenty-five squares."""
    found = np.zeros((100, 110), np.uint16)
    for label, (row, col) in enumerate(PLACES, start=1):
        found[row : row + 8, col : col + 8] = label
    return found


@pytest.fixture
def types():
    return np.array([0, *(1 + i % 4 for i in range(25))])


@pytest.fixture
def folders(tmp_path, labels, types):
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
    for stem in "ab":
        np.savez(tmp_path / "pred" / f"{stem}.npz", inst_map=labels, inst_type=types)
    return tmp_path / "pred", tmp_path / "truth"


def test_masks_are_taken_apart_with_one_note_for_all_files(folders, labels, tmp_path, capsys):
    pred, truth = folders
    for stem in "ab":
        Image.fromarray(((labels > 0) * 255).astype(np.uint8)).save(truth / f"{stem}.png")
    assert main(["evaluate", str(pred), "--truth", str(truth), "--out", str(tmp_path / "out"), "--binary"]) == 0
    (note,) = json.loads((tmp_path / "out" / "scores.json").read_text())["notes"]
    assert note.startswith("50 pieces of a mask with one label were taken as one nucleus each")
    assert f"(2 files, such as '{truth / 'a.png'}')" in note
    told = " ".join(capsys.readouterr().err.split())
    assert "pieces of a mask" in told
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["bPQ"] == pytest.approx(1, abs=1e-5)


def test_types_of_lizard_are_scored(folders, labels, types):
    pred, truth = folders
    order = np.random.default_rng(0).permutation(25)
    for stem in "ab":
        content = {"inst_map": labels, "id": (order + 1)[:, None], "class": types[1:][order][:, None]}
        scipy.io.savemat(truth / f"{stem}.mat", content)
    found = evaluate(pred, truth, class_names=["Background", *"ABCD"])
    assert found["mPQ"] == pytest.approx(1, abs=1e-5)
    assert found.notes == ()


def coco(*names):
    ring = [[0, 0], [7, 0], [7, 7], [0, 7]]
    shapes = [np.ravel([[col + x, row + y] for x, y in ring]).tolist() for row, col in PLACES]
    images = [{"id": i, "file_name": f"{name}.png", "height": 100, "width": 110} for i, name in enumerate(names)]
    annotations = [
        {"id": 100 * i + n, "image_id": i, "category_id": 1 + n % 4, "segmentation": [shape]}
        for i in range(len(names))
        for n, shape in enumerate(shapes)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate("ABCD", start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_images_of_a_coco_file_are_paired_with_files_and_with_each_other(folders, tmp_path):
    pred, _ = folders
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps(coco("a", "b")))
    other.write_text(json.dumps(coco("b", "a", "c")))
    found = evaluate(pred, one, class_names=["Background", *"ABCD"])
    assert [image.name for image in found.images] == ["a", "b"]
    assert (found["bPQ"], found["mPQ"]) == pytest.approx((1, 1), abs=1e-5)
    assert evaluate(one, pred, binary=True)["bPQ"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(DataError, match=r"1 of 3 images have no prediction in .*: c"):
        evaluate(one, other)
    both = evaluate(one, other, skip_missing=True)
    assert both.settings.class_names == ("Background", *"ABCD")
    assert both["mPQ"] == pytest.approx(1, abs=1e-5)
    back = evaluate(other, one)
    assert any("1 predictions have no truth" in note for note in back.notes)
    named = tmp_path / "named"
    named.mkdir()
    (named / "x.json").write_text(json.dumps(coco("y")))
    with pytest.raises(DataError, match=r"no image of '.*one.json' is called as one of"):
        evaluate(one, named)
    (tmp_path / "data" / "images").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"several images and .* a data folder"):
        evaluate(one, tmp_path / "data")


def test_arrays_of_pannuke_are_paired_by_number(tmp_path, labels, types):
    masks = np.zeros((2, 100, 110, 6))
    kinds = types[labels]
    for kind in range(1, 5):
        masks[:, ..., kind - 1] = np.where(kinds == kind, labels, 0)
    masks[..., 5] = labels == 0
    for name in ("pred", "truth"):
        np.save(tmp_path / f"{name}.npy", masks)
    found = evaluate(tmp_path / "pred.npy", tmp_path / "truth.npy")
    assert [image.name for image in found.images] == ["0", "1"]
    assert found["mPQ"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("silent", ["pred", "truth"])
def test_names_of_types_that_one_side_lacks_are_told(folders, labels, types, silent):
    pred, truth = folders
    for stem in "ab":
        np.savez(truth / f"{stem}.npz", inst_map=labels, inst_type=types)
        np.savez((pred if silent == "pred" else truth) / f"{stem}.npz", inst_map=labels)
    (note,) = evaluate(pred, truth, class_names=["Background", *"ABCD"]).notes
    assert "class names are given, but" in note
    assert "states no types" in note or "no prediction states types" in note
    assert evaluate(pred, truth, binary=True).notes == ()


def test_every_file_that_cannot_be_scored_is_named_with_what_to_do(folders, labels):
    pred, truth = folders
    np.save(truth / "a.npy", labels.astype(float) - 1)
    (truth / "b.mat").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError) as caught:
        evaluate(pred, truth, binary=True)
    text = str(caught.value)
    assert "2 of 2 images cannot be scored" in text
    assert "holds -1" in text
    assert "b.mat' cannot be read" in text


def test_outlines_of_imagej_count_from_corners(tmp_path):
    roifile = pytest.importorskip("roifile")
    square = roifile.ImagejRoi.frompoints(np.array([[5, 5], [15, 5], [15, 15], [5, 15]]))
    square.roitype = roifile.ROI_TYPE.POLYGON
    roifile.roiwrite(tmp_path / "a.zip", [square])
    labels = np.zeros((30, 30), int)
    labels[5:15, 5:15] = 1
    np.save(tmp_path / "b.npy", labels)
    assert evaluate(tmp_path / "a.zip", tmp_path / "b.npy")["Dice"] == pytest.approx(1)
    assert evaluate(tmp_path / "b.npy", tmp_path / "a.zip")["Dice"] == pytest.approx(1)
