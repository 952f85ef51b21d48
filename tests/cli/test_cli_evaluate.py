import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.tiny import HYBRID, UNETR

from cellvit.classes import default_classes
from cellvit.cli import main as cellvit
from cellvit.cli.evaluate import main
from cellvit.errors import CellViTError, ConfigError, DataError, OutputError, UnknownPluginError
from cellvit.io import write_geojson
from cellvit.model.cellvit import CellViT
from cellvit.postprocess.measure import nuclei_from_instances

NAMES = ["Background", "Small", "Large"]


@pytest.fixture
def found(tissue_folder, tmp_path):
    """Perfect predictions of the validation images as GeoJSON, whose classes are called Tiny and LARGE."""
    folder = tmp_path / "found"
    folder.mkdir()
    for path in sorted((tissue_folder / "val" / "labels").iterdir()):
        with np.load(path) as label:
            nuclei = nuclei_from_instances(label["inst_map"]).nuclei
            types = label["inst_type"][1:].astype(np.int32)
        nuclei = replace(nuclei, type=types, classes=default_classes(3, names=["Background", "Tiny", "LARGE"]))
        write_geojson(nuclei, folder / f"{path.stem}.geojson.gz")
    return folder


def test_geojson_of_another_tool_against_a_data_folder(tissue_folder, found, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    arguments = [found, "--truth", tissue_folder, "--split", "val", "--class-names", *NAMES]
    assert cellvit(["evaluate", *map(str, arguments), "--class-map", "tiny=Small", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["images.csv", "scores.json", "scores.md"]
    stored = json.loads((out / "scores.json").read_text())
    for name in ("bPQ", "mPQ", "F1_d", "F1/Small", "F1/Large", "Dice", "AJI"):
        assert stored["scores"][name] == pytest.approx(1, abs=1e-5), name
    assert stored["settings"]["radius"] == 12
    assert stored["inputs"]["split"] == "val"
    assert stored["inputs"]["files"]["data/t0"]["pred"].endswith("t0.geojson.gz")
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["data/t0", "data/t1"]
    assert rows[0]["true_nuclei"] == rows[0]["predicted_nuclei"]
    printed = capsys.readouterr()
    assert "2 images" in printed.out
    assert "bPQ" in printed.out
    assert printed.err.strip() == ""


def test_unknown_classes_are_listed_and_nothing_is_written(tissue_folder, found, tmp_path, capsys):
    arguments = [found, "--truth", tissue_folder / "val" / "labels", "--class-names", *NAMES, "--out", tmp_path / "out"]
    assert cellvit(["evaluate", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert "2 of 2 images cannot be scored" in error
    assert "['Tiny']" in error
    assert "'Small'" in error
    assert not list((tmp_path / "out").iterdir())
    assert main([*map(str, arguments), "--binary"]) == 2
    without = [str(a) for a in arguments if a not in ("--class-names", *NAMES)]
    with pytest.raises(DataError, match="--class-names"):
        main(without)
    assert main([*without, "--binary"]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert scores["bPQ"] == pytest.approx(1, abs=1e-5)
    assert not any(name.startswith(("m", "PQ/", "F1/")) for name in scores)


def test_missing_predictions(tissue_folder, found, tmp_path, capsys):
    (found / "t1.geojson.gz").rename(found / "other.geojson.gz")
    arguments = [found, "--truth", tissue_folder / "val", "--binary", "--out", tmp_path / "out"]
    with pytest.raises(DataError, match=r"1 of 2 images have no prediction.*: val/t1; add them"):
        main([str(a) for a in arguments])
    assert not (tmp_path / "out").exists()
    assert main([*map(str, arguments), "--skip-missing", "--magnification", "20"]) == 0
    notes = capsys.readouterr().err
    assert "1 of 2 images have no prediction and are left out" in notes
    assert "1 predictions have no truth" in notes
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (stored["images"], stored["settings"]["radius"]) == (1, 6)
    assert stored["inputs"]["without_prediction"] == ["val/t1"]


def test_predictions_without_types_beside_others_are_counted(tissue_folder, found, tmp_path, capsys):
    with np.load(tissue_folder / "val" / "labels" / "t1.npz") as label:
        nuclei = nuclei_from_instances(label["inst_map"]).nuclei
    write_geojson(replace(nuclei, type=np.zeros(len(nuclei), np.int32)), found / "t1.geojson.gz")
    arguments = [found, "--truth", tissue_folder / "val", "--class-names", *NAMES, "--class-map", "tiny=Small"]
    assert main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 0
    notes = capsys.readouterr().err
    message = (
        f"1 predictions state no types while others do, such as val/t1: their {len(nuclei)} nuclei count as type 0"
    )
    assert message in notes
    assert f"{len(nuclei)} predicted nuclei have no type (type 0)" in notes
    assert message in (tmp_path / "out" / "scores.md").read_text()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert scores["bPQ"] == pytest.approx(0.5, abs=1e-5)
    assert scores["F1_d"] == pytest.approx(1, abs=1e-5)


def test_the_same_folder_twice_is_said_aloud(tissue_folder, tmp_path, capsys):
    labels = str(tissue_folder / "val" / "labels")
    assert main([labels, "--truth", labels, "--out", str(tmp_path / "out"), "--radius", "0"]) == 0
    assert "the same path" in capsys.readouterr().err
    assert "the same path" in (tmp_path / "out" / "scores.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--radius", "-1"], ConfigError, "radius -1"),
        (["--iou-threshold", "1"], ConfigError, "--iou-threshold 1"),
        (["--class-map", "Tiny"], ConfigError, "'Tiny' is not of the form"),
        (["--class-names", "Background", "Small", "small"], ConfigError, "repeat one"),
        (["--split", "dev"], DataError, "split 'dev' is unknown"),
        (["--datasets", "x"], DataError, r"data sets \['x'\] have no images"),
    ],
)
def test_settings_that_cannot_work(tissue_folder, found, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        main([str(found), "--truth", str(tissue_folder), "--split", "val", "--out", str(tmp_path / "out"), *arguments])


def test_outputs_that_cannot_be_written(tissue_folder, found, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = [str(found), "--truth", str(tissue_folder), "--split", "val", "--binary", "--out"]
    with pytest.raises(OutputError, match="cannot make the folder"):
        main([*arguments, str(tmp_path / "file" / "out")])
    with pytest.raises(OutputError, match="also an input"):
        main([*arguments, str(found)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p"], "give PRED and --truth"),
        (["--monuseg", "d"], "needs --model"),
        (["p", "--truth", "t", "--monuseg", "d", "--model", "nano"], "leave out PRED"),
        (["p", "--truth", "t", "--model", "nano"], "--model goes with --monuseg"),
        (["p", "--truth", "t", "--magnification", "20", "--radius", "5"], "give one"),
        (["p", "--truth", "t", "--magnification", "10"], "invalid choice"),
        (["p", "--truth", "t", "--workers", "-1"], "must be 0 or more"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert main([*arguments, "--out", "o"]) == 2
    assert message in capsys.readouterr().err


def test_help_names_the_formats(capsys):
    assert main(["--help"]) == 0
    assert ".geojson.gz" in capsys.readouterr().out


@pytest.fixture
def monuseg_folder(tmp_path):
    """Two small noisy images with square nuclei."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "m" / kind).mkdir(parents=True)
    for name in "ab":
        instances = np.zeros((250, 250), np.int32)
        for label, (row, col) in enumerate(np.ndindex(5, 5), start=1):
            instances[50 * row + 10 : 50 * row + 30, 50 * col + 10 : 50 * col + 30] = label
        Image.fromarray(rng.integers(0, 256, (250, 250, 3), np.uint8)).save(tmp_path / "m" / "images" / f"{name}.png")
        np.savez(tmp_path / "m" / "labels" / f"{name}.npz", inst_map=instances)
    return tmp_path / "m"


def test_the_monuseg_protocol_of_two_models(monuseg_folder, tmp_path, capsys):
    for name in ("one", "two"):
        CellViT(HYBRID, num_nuclei_classes=6, decoder=UNETR).save_pretrained(tmp_path / name)
    models = [str(tmp_path / name) for name in ("one", "two")]
    arguments = ["--monuseg", str(monuseg_folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--pictures", "1"]
    assert main([*arguments, "--model", *models]) == 0
    assert [p.name for p in (tmp_path / "out" / "pictures").iterdir()] == ["m-a-x40-1024.png"]
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(stored["models"]) == models
    assert stored["over_models"]["x20/256"]["bPQ"]["std"] is not None
    assert stored["published"]["rows"][0]["bPQ"] == 0.6613
    assert len((tmp_path / "out" / "images.csv").read_text().splitlines()) == 1 + 2 * 4 * 2
    assert "mean of 2 models" in capsys.readouterr().out
    with pytest.raises(UnknownPluginError, match="absent"):
        main([*arguments, "--model", models[0], str(tmp_path / "absent")])
    with pytest.raises(ConfigError, match="given twice"):
        main([*arguments, "--model", models[0], models[0]])
    with pytest.raises(ConfigError, match="precision"):
        main([*arguments, "--model", "nano", "--precision", "8-bit"])
    with pytest.raises(CellViTError, match="has no images"):
        main(["--monuseg", str(tmp_path / "out"), "--model", "nano", "--out", str(tmp_path / "other")])


def test_names_that_are_no_markup_and_changed_proportions(monuseg_folder, tmp_path, capsys):
    Image.new("RGB", (300, 250)).save(monuseg_folder / "images" / "[red].png")
    np.savez(monuseg_folder / "labels" / "[red].npz", inst_map=np.zeros((250, 300), int))
    arguments = ["--monuseg", str(monuseg_folder), "--model", "nano", "--device", "cpu", "--pictures", "0"]
    assert main([*arguments, "--out", str(tmp_path / "[out]")]) == 0
    printed = capsys.readouterr()
    assert "1 images change their proportions by more than 5 %, such as m/[red]" in printed.err
    assert "[out]" in printed.out
    assert not (tmp_path / "[out]" / "pictures").exists()
