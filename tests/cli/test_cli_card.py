import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellvit.cli import main as cellvit
from cellvit.cli.card import main
from cellvit.data.folder import image_tensor
from cellvit.errors import CellViTError, ConfigError, DataError, OutputError, UnknownPluginError
from cellvit.evaluation.model_card.files import NO_CALIBRATION
from cellvit.model.cellvit import CellViT


@pytest.fixture(scope="module")
def noise(tiny_model):
    """Return four images of noise with instance maps and types.

    The truth is what the model finds, a column aside, of any type, and without one nucleus.
    """
    model, images = CellViT.from_pretrained(tiny_model), []
    for seed in range(300):  # in most noise it finds too little
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (64, 80, 3)).astype(np.uint8)
        maps = model.predict_maps(image_tensor(image)[None])
        found = model.postprocess({name: values[0].numpy() for name, values in maps.items() if values.ndim == 4})
        if len(found.nuclei) >= 3:
            truth = np.roll(found.instance_map, 1, axis=1)
            images.append((image, truth * (truth != 2), rng.integers(1, 6, len(found.nuclei) + 1)))
        if len(images) == 4:
            return images
    raise AssertionError("the model finds too little in noise")


@pytest.fixture
def noise_folder(noise, tmp_path):
    """Return a data folder of these images."""
    folder = tmp_path / "data" / "train"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i, (image, instances, types) in enumerate(noise):
        Image.fromarray(image).save(folder / "images" / f"t{i}.png")
        np.savez(folder / "labels" / f"t{i}.npz", inst_map=instances, inst_type=types)
    return tmp_path / "data"


@pytest.fixture
def card(tiny_model, noise_folder, tmp_path):
    """Return the arguments of the verb for these images, further ones last, which win, and the folder it writes."""

    def run(*arguments, out="out"):
        given = ["--model", tiny_model, "--data", noise_folder, "--split", "train", "--out", tmp_path / out]
        given += ["--resamples", "50"]
        return [str(argument) for argument in (*given, "--device", "cpu", *arguments)], tmp_path / out

    return run


def content(out):
    return json.loads((out / "card.json").read_text())


def test_all_files_are_written_and_the_same_again_but_for_the_time(card, tiny_model, capsys):
    arguments, out = card()
    assert cellvit(["card", *arguments]) == 0
    printed = capsys.readouterr()
    assert f"wrote {out}" in printed.out
    assert "F1_d" in printed.out
    assert printed.err == ""
    stored = content(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "card.json",
        "card.md",
        "failures",
        "images.csv",
        "reliability.png",
    ]
    assert stored["model"]["sha256"] == json.loads((Path(tiny_model) / "config.json").read_text())["weights"]["sha256"]
    assert stored["model"]["parameters"] > 1000
    assert [(group["group"], group["mpp"], group["images"]) for group in stored["scores"]] == [
        ("data", 0.25, 4),
        ("data", 0.5, 4),
    ]
    detection = stored["scores"][0]["scores"]["F1_d"]
    assert 0 <= detection["low"] <= detection["value"] <= detection["high"] <= 1
    assert stored["calibration"]["nuclei"] > 0
    assert stored["calibration"]["mpp"] == 0.25
    confusion = np.array(stored["calibration"]["confusion"])
    names = stored["model"]["class_names"]
    assert confusion.shape == (len(names) - 1, len(names))
    assert confusion.sum() == stored["calibration"]["nuclei"]
    pictures = sorted(path.name for path in (out / "failures").iterdir())
    assert [row["file"] for row in stored["failures"]] == [f"failures/{name}" for name in pictures]
    assert pictures[0].startswith("01_data_t")
    for path in (out / "reliability.png", out / "failures" / pictures[0]):
        with Image.open(path) as picture:
            assert picture.width > 300
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["given_mpp"]) for row in rows[:3]] == [
        ("data/t0", "0.25"),
        ("data/t0", "0.5"),
        ("data/t1", "0.25"),
    ]
    assert all(int(row["tp"]) + int(row["fn"]) == int(row["true_nuclei"]) for row in rows)
    assert sum(int(row["tp"]) for row in rows) > 0
    page = (out / "card.md").read_text()
    assert f"![data/{pictures[0][8:-4]}](failures/{pictures[0]})" in page
    assert "50 resamples" in page
    assert f"| {names[1]} | {confusion[0].sum()} |" in page

    arguments, again = card(out="again")
    assert main(arguments) == 0
    first, second = stored, content(again)
    assert first.pop("seconds") > 0
    assert second.pop("seconds") > 0
    assert first == second
    arguments, other = card("--seed", "1", "--mpp", "0.25", "--pictures", "1", out="again")
    assert main(arguments) == 0
    changed = content(other)
    assert len(changed["failures"]) == len(list((other / "failures").iterdir())) == 1
    assert changed["scores"][0]["scores"]["F1_d"]["value"] == detection["value"]
    assert changed["scores"][0]["scores"] != first["scores"][0]["scores"]


def test_without_types_there_is_no_calibration(card, noise_folder, capsys):
    for path in (noise_folder / "train" / "labels").iterdir():
        with np.load(path) as label:
            instances = label["inst_map"]
        np.savez(path, inst_map=instances)
    arguments, out = card("--mpp", "0.25", "--pictures", "0")
    assert main(arguments) == 0
    assert f"note: calibration of types: {NO_CALIBRATION}" in capsys.readouterr().err
    stored = content(out)
    assert stored["calibration"] is None
    assert not any("/" in name for name in stored["scores"][0]["scores"])
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "card.md", "images.csv"]
    page = (out / "card.md").read_text()
    assert NO_CALIBRATION in page
    assert "No data set states the types" in page


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--model", "nothing"], UnknownPluginError, "no model 'nothing'"),
        (["--data", "nowhere"], DataError, "'nowhere' does not exist"),
        (["--split", "all"], DataError, "has no images"),
        (["--datasets", "x"], DataError, r"data sets \['x'\] have no images"),
        (["--mpp", "0.25", "0.25"], ConfigError, "must be different"),
        (["--mpp", "4"], ConfigError, "too far from the model's 0.25"),
        (["--seed", "-1"], ConfigError, "seed -1"),
        (["--pictures", "100"], ConfigError, "pictures 100"),
        (["--device", "tpu"], ConfigError, "device 'tpu' is unknown"),
    ],
)
def test_what_cannot_work_is_said_and_nothing_is_written(card, capsys, arguments, error, message):
    given, out = card(*arguments)
    with pytest.raises(error, match=message):
        main(given)
    assert cellvit(["card", *given]) == 1
    assert capsys.readouterr().err.startswith("cellvit card: ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mpp", "0"], "must be greater than 0"),
        (["--mpp", "fine"], "invalid float value"),
        (["--resamples", "0"], "must be greater than 0"),
        (["--tta", "3"], "invalid choice"),
        (["--split", "dev"], "invalid choice"),
        (["--pictures", "some"], "invalid int value"),
    ],
)
def test_wrong_usage(card, capsys, arguments, message):
    assert main(card(*arguments)[0]) == 2
    assert message in capsys.readouterr().err


def test_outputs_are_checked_before_anything_is_measured(card, noise_folder, tmp_path, monkeypatch):
    def measure(*arguments, **options):
        raise AssertionError("measured before the outputs were checked")

    monkeypatch.setattr("cellvit.evaluation.model_card.measure.measure", measure)
    (tmp_path / "file").write_text("")
    for out in ("file", "file/out"):
        with pytest.raises(OutputError, match="cannot make the folder"):
            main(card(out=out)[0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "failures").write_text("")
    with pytest.raises(OutputError, match=r"cannot make the folder .*failures"):
        main(card()[0])
    with pytest.raises(OutputError, match="also an input"):
        main(card(out=noise_folder.name)[0])
    with pytest.raises(AssertionError, match="measured before"):
        main(card("--pictures", "0")[0])


def test_an_unwritable_folder_is_an_error_of_ours(card, monkeypatch):
    def refuse(path):
        raise OutputError(f"cannot write {str(path)!r}")

    monkeypatch.setattr("cellvit.evaluation.results.atomic_path", refuse)
    with pytest.raises(CellViTError, match="cannot write"):
        main(card()[0])


def test_views_are_averaged(card):
    plain, turned = (
        card("--mpp", "0.25", "--pictures", "0", out="one"),
        card("--mpp", "0.25", "--pictures", "0", "--tta", "2", out="two"),
    )
    assert main(plain[0]) == main(turned[0]) == 0
    assert content(turned[1])["settings"]["tta"] == 2
    assert content(plain[1])["scores"] != content(turned[1])["scores"]
    assert "maps averaged over 2 turned and mirrored views" in (turned[1] / "card.md").read_text()


def test_the_fitted_temperature_goes_into_the_configuration(card, tiny_model, tmp_path):
    arguments, out = card("--mpp", "0.25", "--pictures", "0")
    assert main(arguments) == 0
    before = content(out)["calibration"]
    assert before["type_rule"] == "majority"
    warm = tmp_path / "warm"
    shutil.copytree(tiny_model, warm)
    config = json.loads((warm / "config.json").read_text())
    head = {"class_path": "nuclei-type", "init_args": {"temperature": before["temperature"]}}
    config["model"]["heads"]["nuclei_type_map"] = head
    config["model"]["postprocessor"] = {"class_path": "hv-watershed", "init_args": {"type_rule": "mean"}}
    (warm / "config.json").write_text(json.dumps(config))
    arguments, out = card("--mpp", "0.25", "--pictures", "0", "--model", warm)
    assert main(arguments) == 0
    after = content(out)["calibration"]
    assert after["type_rule"] == "mean"
    assert after["no_type"] == 0
    assert after["nuclei"] == before["nuclei"]
    assert after["before"]["nll"] < before["before"]["nll"]
    assert mean_confidence(after["stated"]) == pytest.approx(mean_confidence(after["before"]["reliability"]), abs=0.02)
    assert mean_confidence(after["stated"]) != pytest.approx(mean_confidence(before["stated"]), abs=0.02)


def mean_confidence(bins):
    count = np.array(bins["count"])
    return (count * np.array(bins["confidence"], float))[count > 0].sum() / count.sum()
