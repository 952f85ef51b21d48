"""The pages "label nuclei" and "from QuPath to a fine-tuned model" run as they stand, with one step of training."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tifffile
from test_first_image import drawn_tissue

from cellvit import read_nuclei
from cellvit.cli import main
from cellvit.io.schema import load_json
from cellvit.labels import read_labels
from cellvit.model.checkpoint import read_model

DOCS = Path(__file__).parents[2] / "docs"
SHORT = {
    "segment": ["--workers", "0", "--no-measurements", "--tile-size", "256"],
    "fit": [
        *("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--data.init_args.crop_size=64", "--data.init_args.batch_size=2", "--data.init_args.num_workers=0"),
        "--data.init_args.samples_per_epoch=2",
    ],
}


def commands(page):
    """The command lines of a page, in their order."""
    lines = re.findall(r"^\$ cellvit (.*)$", (DOCS / "pages" / "how-to" / page).read_text(encoding="utf-8"), re.M)
    return [shlex.split(line) for line in lines]


def run(arguments):
    assert main([*arguments, *SHORT.get(arguments[0], [])]) == 0, arguments


def corrected(number):
    """What a person exports: a rectangle, and the nuclei in and around it under names of theirs."""
    data = load_json(f"found/slide{number}/nuclei.geojson.gz")
    for feature in data["features"]:
        (x, _), *_ = feature["geometry"]["coordinates"][0]
        feature["properties"]["classification"] = {"name": "Left" if x < 100 else "Right"}
    ring = [[10, 10], [190, 10], [190, 150], [10, 150], [10, 10]]
    region = {"objectType": "annotation", "classification": {"name": "Region*"}}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    data["features"].append({"type": "Feature", "properties": region, "geometry": geometry})
    Path(f"annotations/slide{number}.geojson").write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.slow
def test_the_pages_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(DOCS)
    for folder in ("slides", "annotations"):
        Path(folder).mkdir()
    for number in (1, 2):
        dots = 10_000 / 0.5
        pixels = drawn_tissue()
        path = f"slides/slide{number}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", resolution=(dots, dots), resolutionunit="CENTIMETER")
    segment, prepare, fit, export, again = commands("from-qupath.md")
    run(segment)
    corrected(1)
    corrected(2)
    run(prepare)
    assert (
        "next: cellvit fit --config docs/configs/finetune.yaml --config my-data/classes.yaml" in capsys.readouterr().out
    )
    assert len(list(Path("my-data/checks").iterdir())) == 2
    run(fit)
    run(export)
    assert read_model("my-model")[0]["class_names"] == ["Background", "Left", "Right"]
    run(again)
    assert read_nuclei("mine/slide1").classes.names == ("Background", "Left", "Right")

    Path("results").symlink_to("found")  # what the first command of the page would find once more
    nuclei = read_nuclei("results/slide1")
    (x, y), (u, v) = nuclei.centroid[:2].tolist()
    point = {"type": "Feature", "properties": {"classification": {"name": "A"}}}
    point["geometry"] = {"type": "Point", "coordinates": [x, y]}
    Path("points.geojson").write_text(json.dumps(point), encoding="utf-8")
    Path("more.csv").write_text(f"x,y,class\n{u},{v},B\n", encoding="utf-8")
    _, *labelling = commands("label-nuclei.md")
    for arguments in labelling:
        run(arguments)
    assert read_labels("results/slide1").class_name.tolist() == ["A", "B"]
    page = (DOCS / "pages" / "how-to" / "label-nuclei.md").read_text(encoding="utf-8")
    for piece in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(piece, "label-nuclei.md", "exec"), {})
    assert "{0: 'A', 1: 'B'}" in capsys.readouterr().out
