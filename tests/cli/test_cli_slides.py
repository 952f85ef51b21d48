"""Slides through ``cellvit segment``: a folder each, a table and a report for all."""

import csv
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from PIL import Image
from support.drawn_slides import drawn_block, write_drawn_slide

from cellvit import io
from cellvit.cli import segment_slides as cli_slides
from cellvit.cli.segment import main
from cellvit.errors import CellViTError


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.fixture
def slides(tmp_path):
    folder, block = tmp_path / "slides", drawn_block(512, nuclei=60)
    (folder / "more").mkdir(parents=True)
    write_drawn_slide(folder / "a.tif", 700, 600, block=block)
    write_drawn_slide(folder / "b [2].tiff", 500, 400, block=block, mpp=0.5)
    write_drawn_slide(folder / "more" / "a.tif", 400, 300, block=block)
    return folder


def options(model, out):
    return ["--out", str(out), "--model", model, "--device", "cpu", "--workers", "0", "--no-tissue-filter"]


def rows(out):
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_slides_with_a_broken_one(slides, model, tmp_path, capsys):
    out = tmp_path / "out"
    (slides / "broken.svs").write_bytes(b"II*\0 this is no slide")
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(slides / "patch.png")
    status = main([str(slides), str(slides / "more" / "a.tif"), *options(model, out), "--tile-size", "512"])
    printed = capsys.readouterr()
    assert status == 1
    assert printed.err.count("error:") == 1
    assert "broken.svs" in printed.err
    assert "Traceback" not in printed.err
    assert {path.name for path in out.iterdir()} == {
        *("slides_a", "more_a", "b [2]", "summary.csv", "report.html"),
        *("patch.geojson", "patch.json", "patch.parquet", "patch.png"),
    }
    table = {row["slide"]: row for row in rows(out)}
    assert [row["status"] for row in rows(out)].count("done") == 3
    summary = json.loads((out / "b [2]" / "summary.json").read_text())
    assert summary["resolution"]["source"] == "slide"
    assert summary["slide"]["width"] == 500
    assert len(table) == 4 or len(rows(out)) == 4
    nuclei = io.read_parquet(out / "slides_a" / "nuclei.parquet")
    assert nuclei.embedding.shape == (len(nuclei), 24)
    assert "a.tif" in printed.out
    assert "patch.png" in printed.out
    assert "broken" in (out / "report.html").read_text()


def test_a_list_states_the_resolution_of_each(slides, model, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,mpp,patient\nslides/a.tif,0.3,P1\nslides/b [2].tiff,,P2\n")
    out = tmp_path / "out"
    assert main([str(tmp_path / "list.csv"), *options(model, out), "--formats", "points"]) == 0
    assert "warning" in capsys.readouterr().err  # a.tif states 0.25
    found = {row["slide"]: row for row in rows(out)}
    (first,) = [row for name, row in found.items() if name.endswith("a.tif")]
    assert float(first["mpp"]) == 0.3
    assert first["patient"] == "P1"
    assert {p.name for p in (out / "a").iterdir() if p.name[0] != "."} == {
        *("nuclei.parquet", "points.geojson.gz", "tissue.png", "summary.json")
    }


def test_a_second_run_does_nothing_and_other_settings_are_refused(slides, model, tmp_path, capsys):
    out = tmp_path / "out"
    command = [str(slides / "a.tif"), *options(model, out), "--formats", "parquet"]
    assert main(command) == 0
    before = (out / "a" / "nuclei.parquet").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "a" / "nuclei.parquet").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*command, "--overlap", "32"]) == 1
    assert "overlap was 64, is 32" in capsys.readouterr().err
    (row,) = rows(out)  # the results are still there
    assert (row["status"], row["mpp"]) == ("failed", "0.25")
    assert main([*command, "--overlap", "32", "--overwrite"]) == 0


def test_an_image_as_a_slide_needs_a_resolution(model, tmp_path, capsys):
    Image.new("RGB", (200, 150), (180, 90, 180)).save(tmp_path / "plain.png")
    command = [str(tmp_path / "plain.png"), *options(model, tmp_path / "out"), "--as", "slide"]
    assert main(command) == 1
    assert "--mpp 0.25" in capsys.readouterr().err
    assert main([*command, "--magnification", "20"]) == 0
    summary = json.loads((tmp_path / "out" / "plain" / "summary.json").read_text())
    assert summary["resolution"] == {"mpp": [0.5, 0.5], "source": "magnification"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--formats", "pdf"], "pdf"),
        (["--device", "cpu,abacus"], "abacus"),
        (["--overlap", "2"], "overlap 2"),
        (["--workers", "-1"], "workers -1"),
        (["--cluster", "tcp://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_wrong_usage_of_slides_starts_nothing(slides, model, tmp_path, capsys, extra, words):
    assert main([str(slides / "a.tif"), *options(model, tmp_path / "out"), *extra]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "a").exists()


def test_a_cluster_needs_slides(model, tmp_path, capsys):
    Image.new("RGB", (20, 15)).save(tmp_path / "plain.png")
    command = [str(tmp_path / "plain.png"), *options(model, tmp_path / "out"), "--cluster", "tcp://127.0.0.1:9"]
    assert main(command) == 2
    assert "--as slide" in capsys.readouterr().err


def test_two_devices_share_the_slides(slides, model, tmp_path, capsys):
    out = tmp_path / "out"
    command = [str(slides), *options(model, out), "--formats", "parquet"]
    command[command.index("--device") + 1] = "cpu,cpu"
    assert main(command) == 0
    assert [row["status"] for row in rows(out)] == ["done", "done"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_no_text_lose_nothing(slides, model, tmp_path, capsys):
    odd = os.fsencode(slides) + b"/\xe4\xf6.tif"
    shutil.move(slides / "a.tif", odd)
    out = tmp_path / "out"
    assert main([str(slides), *options(model, out), "--formats", "json"]) == 0
    assert "\\udce4\\udcf6.tif" in capsys.readouterr().out
    assert [row["status"] for row in rows(out)] == ["done", "done"]
    assert json.loads((out / "__" / "summary.json").read_text())["slide"]["name"] == "\udce4\udcf6.tif"


def test_debug_stops_at_the_first_slide_that_fails(slides, model, tmp_path, capsys):
    (slides / "0.svs").write_bytes(b"II*\0 this is no slide")
    with pytest.raises(CellViTError, match="because of --debug"):
        main([str(slides), *options(model, tmp_path / "out"), "--debug"])
    assert not (tmp_path / "out" / "a").exists()


def test_a_log_says_when_slides_start_and_end(slides, model, tmp_path, capsys):
    assert main([str(slides / "a.tif"), *options(model, tmp_path / "out"), "--formats", "parquet"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " a.tif: " in line]
    assert [line.split(" a.tif: ")[1].split()[0] for line in lines][:1] == ["started"]
    assert any("1 of 1 tiles" in line for line in lines)
    assert "done in" in lines[-1]


@pytest.mark.parametrize(
    ("inputs", "extra", "words"),
    [(["patch.png"], ["--roi", "r.json"], "--roi is for slides"), (["a.tif"], ["--roi", "none.json"], "none.json")],
)
def test_regions_are_checked_before_anything_starts(slides, model, tmp_path, capsys, inputs, extra, words):
    Image.new("RGB", (30, 20)).save(slides / "patch.png")
    command = [*(str(slides / name) for name in inputs), *options(model, tmp_path / "out"), *extra]
    assert main(command) == 2
    assert words in capsys.readouterr().err


def test_a_slide_that_is_missing_is_a_failed_slide(model, tmp_path, capsys):
    assert main([str(tmp_path / "none.svs"), *options(model, tmp_path / "out")]) == 1
    assert "none.svs' does not exist" in capsys.readouterr().err
    assert [row["status"] for row in rows(tmp_path / "out")] == ["failed"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_request_to_end_is_an_interrupt(slides, model, tmp_path, capsys, monkeypatch, name):
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    number = getattr(signal, name)
    monkeypatch.setattr(cli_slides, "run_cohort", lambda *a, **k: os.kill(os.getpid(), number))
    assert main([str(slides / "a.tif"), *options(model, tmp_path / "out")]) == 128 + number
    assert "goes on with the rest" in capsys.readouterr().err
