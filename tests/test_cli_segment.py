import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from cellvit import io
from cellvit.cli import segment_images as cli_images
from cellvit.cli.segment import main


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "other").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise[:70, :, 0]).save(folder / "grey [x].v2.tif")
    Image.fromarray(noise[:40]).save(folder / "other" / "a.jpg")
    return folder


def test_an_image_gets_the_formats_that_are_asked_for(images, model, tmp_path):
    arguments = [str(images / "a.png"), "--out", str(tmp_path / "out"), "--model", model, "--device", "cpu"]
    assert main([*arguments, "--formats", "csv,imagej,ome-tiff,geojson-plain"]) == 0
    names = ["a.csv", "a.labels.ome.tif", "a.rois.zip"]  # and no second GeoJSON of one name
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    found = [io.read_nuclei(tmp_path / "out" / name) for name in names]
    assert len({tuple(sorted(nuclei.label.tolist())) for nuclei in found}) == 1
    assert found[1].mpp == 0.25


def test_all_files_are_written_and_agree(images, model, tmp_path, capsys):
    out = tmp_path / "new" / "results"
    arguments = [str(images / "a.png"), "--out", str(out), "--model", model, "--device", "cpu", "--no-measurements"]
    assert main(arguments) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.geojson", "a.json", "a.parquet", "a.png"]
    nuclei = io.read_parquet(out / "a.parquet")
    assert len(nuclei) > 0
    assert nuclei.measurements == {}
    assert nuclei.embedding.shape == (len(nuclei), 24)
    for other in (io.read_json(out / "a.json"), io.read_geojson(out / "a.geojson")):
        np.testing.assert_array_equal(other.bbox, nuclei.bbox)
        np.testing.assert_array_equal(other.type, nuclei.type)
    with Image.open(out / "a.png") as overlay:
        assert overlay.size >= (120, 96)
    head = json.loads((out / "a.json").read_text())["wsi_metadata"]
    assert (head["width"], head["height"], head["base_mpp"], head["mpp_source"]) == (120, 96, 0.25, "default")
    printed = capsys.readouterr()
    assert printed.err.strip() == ""  # rich before 14.3 leaves an empty line where its bar was
    assert "Neoplastic" in printed.out
    row = next(line for line in printed.out.splitlines() if "a.png" in line)
    counts = np.bincount(nuclei.type, minlength=6)
    shown = [cell.strip() for cell in row.split("│")[3:-2]]
    assert shown == [str(n) for n in (len(nuclei), *(counts if counts[0] else counts[1:]))]


def test_the_postprocessing_can_be_set(images, model, tmp_path, capsys):
    arguments = [str(images / "a.png"), "--model", model, "--device", "cpu", "--formats", "json", "--no-measurements"]
    assert main([*arguments, "--out", str(tmp_path / "all")]) == 0
    changed = ["--postprocessor", "min_size=20000", "--postprocessor", "normalisation=fixed"]
    assert main([*arguments, *changed, "--out", str(tmp_path / "large")]) == 0
    every, large = (io.read_json(tmp_path / name / "a.json") for name in ("all", "large"))
    assert len(every) > 0 == len(large)  # all of the image is one nucleus of 11,520 px
    told = json.loads((tmp_path / "large/a.json").read_text())["wsi_metadata"]["postprocessor"]
    assert told == {"min_size": 20000, "normalisation": "fixed"}
    slides = ["--as", "slide", "--mpp", "0.25", "--device", "cpu", "--out", str(tmp_path / "none")]
    for wrong, words in (("min_size", "not of the form NAME=VALUE"), ("min_sise=3", "takes no argument ['min_sise']")):
        with contextlib.suppress(SystemExit):
            assert main([str(images / "a.png"), *slides, "--model", model, "--postprocessor", wrong]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists() or list((tmp_path / "none").iterdir()) == []


def test_a_bad_file_does_not_stop_the_others(images, model, tmp_path, capsys):
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:2000])
    (images / "notes.jpg").write_text("hello")
    out = tmp_path / "out"
    arguments = [str(images), str(images / "other"), "gone.png", "--out", str(out), "--model", model]
    assert main([*arguments, "--device", "cpu", "--formats", "geojson", "--no-measurements"]) == 1
    assert sorted(p.name for p in out.iterdir()) == ["grey [x].v2.geojson", "images_a.geojson", "other_a.geojson"]
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 3
    assert [word in line for word, line in zip(("gone.png", "cut.png", "notes.jpg"), lines, strict=True)] == [True] * 3
    assert "Traceback" not in printed.err
    assert printed.out.count("failed") == 3
    assert "grey [x].v2.tif" in printed.out


def test_a_fault_of_ours_is_one_line_too(images, model, tmp_path, capsys, monkeypatch):
    whole = cli_images.segment_image

    def faulty(image, **settings):
        if image.shape[0] == 96:
            raise IndexError("list index\nout of range")
        return whole(image, **settings)

    monkeypatch.setattr(cli_images, "segment_image", faulty)
    arguments = [str(images), "--out", str(tmp_path / "out"), "--model", model, "--device", "cpu"]
    arguments.append("--no-measurements")
    assert main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "a.png': IndexError: list index out of range (--debug shows where)" in lines[0]
    with pytest.raises(IndexError):
        main([*arguments, "--debug", "--overwrite"])


def test_results_are_replaced_only_if_asked(images, model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(images / "a.png"), "--out", str(out), "--model", model, "--device", "cpu", "--formats", "json"]
    assert main(arguments) == 0
    (out / "a.json").write_text("mine")
    assert main(arguments) == 1
    assert "a.json' exists; pass --overwrite" in capsys.readouterr().err
    assert (out / "a.json").read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(io.read_json(out / "a.json")) > 0


def test_an_input_is_never_overwritten(images, model):
    before = (images / "a.png").read_bytes()
    arguments = [str(images / "a.png"), "--out", str(images), "--model", model, "--device", "cpu"]
    assert main(arguments) == 0
    assert main([*arguments, "--overwrite"]) == 0
    assert (images / "a.png").read_bytes() == before
    assert (images / "a_nuclei.png").exists()


def test_the_resolution_of_the_file_is_used_and_a_contradiction_named(images, model, tmp_path, capsys):
    path = images / "scan.tif"
    Image.new("RGB", (60, 50), "white").save(path, resolution=20_000, resolution_unit=3)
    common = [str(path), "--model", model, "--device", "cpu", "--formats", "json"]
    for extra, mpp, source in ([], 0.5, "file"), (["--mpp", "0.25"], 0.25, "argument"):
        assert main([*common, "--out", str(tmp_path / source), *extra]) == 0
        head = json.loads((tmp_path / source / "scan.json").read_text())["wsi_metadata"]
        assert (head["base_mpp"], head["mpp_source"]) == (mpp, source)
    assert "image 'scan.tif' states 0.5 µm/px; mpp makes it 0.25 µm/px, which is used" in capsys.readouterr().err


def test_pixels_that_are_not_square_are_told_and_resampled_per_axis(images, model, tmp_path, capsys):
    path = images / "scan.tif"
    tags = {"x_resolution": 40_000, "y_resolution": 20_000, "resolution_unit": "cm"}
    Image.open(images / "a.png").save(path, **tags)
    out = tmp_path / "out"
    assert main([str(path), "--model", model, "--device", "cpu", "--formats", "json", "--out", str(out)]) == 0
    head = json.loads((out / "scan.json").read_text())["wsi_metadata"]
    assert (head["base_mpp"], head["mpp_source"]) == (0.375, "file")
    (warning,) = head["warnings"]
    assert "states pixels that are not square: 0.25 x 0.5 µm/px" in warning
    assert warning in capsys.readouterr().err


def test_mpp_and_magnification_that_contradict_each_other_are_refused(images, model, tmp_path, capsys):
    arguments = [str(images / "a.png"), "--out", str(tmp_path / "out"), "--model", model, "--device", "cpu"]
    for kind in ("image", "slide"):
        assert main([*arguments, "--as", kind, "--mpp", "0.25", "--magnification", "20"]) != 0
        assert "contradict each other; give one of them" in capsys.readouterr().err


def test_empty_tissue_gives_valid_empty_files(model, tmp_path, images):
    Image.new("RGB", (1, 1), "white").save(images / "dot.png")
    out = tmp_path / "out"
    assert main([str(images / "dot.png"), "--out", str(out), "--model", model, "--device", "cpu"]) == 0
    assert len(io.read_parquet(out / "dot.parquet")) == 0
    assert io.read_parquet(out / "dot.parquet").embedding.shape == (0, 24)
    assert len(io.read_json(out / "dot.json")) == len(io.read_geojson(out / "dot.geojson")) == 0
    with Image.open(out / "dot.png") as overlay:
        overlay.load()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--model", "nanu"], "no model 'nanu'"),
        (["--device", "tpu"], "'tpu' is unknown"),
        (["--device", "cpu", "--precision", "16-mixed"], "needs a GPU"),
        (["--formats", "svg,json"], "svg"),
        (["--formats", ","], "nothing"),
        (["--mpp", "-1"], "greater than 0"),
        (["--batch-size", "two"], "invalid int value"),
        (["--precision", "8"], "invalid choice"),
    ],
)
def test_wrong_usage_starts_nothing(images, tmp_path, capsys, extra, words):
    out = tmp_path / "out"
    assert main([str(images), "--out", str(out), *extra]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert not out.exists() or not list(out.iterdir())


def test_output_folders_that_cannot_be_written(images, model, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, words in ("file", "is a file"), ("file/below", "cannot write into"), ("images", "also an input folder"):
        assert main([str(images), "--out", str(tmp_path / out), "--model", model]) == 2
        assert words in capsys.readouterr().err


def test_help_and_no_arguments(capsys):
    assert main(["--help"]) == 0
    assert "exit status" in capsys.readouterr().out
    assert main([]) == 2
    assert "required: INPUT, --out" in capsys.readouterr().err


def test_interruption_is_no_traceback(images, model, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_images, "segment_image", interrupted)
    assert main([str(images), "--out", str(tmp_path / "out"), "--model", model, "--device", "cpu"]) == 130
    assert "interrupted" in capsys.readouterr().err
