"""``cellvit plan``: tables, JSON and pictures of what a segmentation would take."""

import json

import pytest
from PIL import Image
from support.drawn_slides import drawn_block, write_drawn_slide

from cellvit import cli
from cellvit.cli.plan import main
from cellvit.cli.plan_table import readable_range
from cellvit.cli.segment import main as segment
from cellvit.inference import plan as plan_package
from cellvit.inference.plan.estimate import Range


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.fixture
def slides(tmp_path):
    folder, block = tmp_path / "slides", drawn_block(512, nuclei=60)
    folder.mkdir()
    write_drawn_slide(folder / "a.tif", 700, 600, block=block)
    write_drawn_slide(folder / "b [2].tiff", 500, 400, block=block, mpp=0.5)
    return folder


def options(model):
    return ["--model", model, "--device", "cpu", "--workers", "0", "--no-tissue-filter", "--formats", "parquet,points"]


def data_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_tables_of_slides_with_a_broken_one(slides, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (slides / "broken.svs").write_bytes(b"II*\0 this is no slide")
    before = sorted(tmp_path.rglob("*"))
    command = ["plan", str(slides / "broken.svs"), str(slides), str(slides / "no.svs"), *options(model)]
    assert cli.main([*command, "--tile-size", "512"]) == 1
    printed = capsys.readouterr()
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["error", "error"]
    assert "broken.svs" in printed.err
    assert "no.svs" in printed.err
    text = " ".join(printed.out.split())
    assert "700 x 600 px, read by tiff" in text
    assert "0.25 µm/px, stated by the slide; used as it is for" in text
    assert "0.5 µm/px, stated by the slide; level 0 is resampled by 2 to 0.25" in text
    assert "4 of 4 are searched" in text
    assert "2 slides on 1 device(s):" in text
    labels = [line.split()[0] for line in printed.out.splitlines() if line.startswith("  ") and line[2] != " "]
    expected = ["file", "levels", "resolution", "searched", "tiles", "measured", "time", "nuclei", "memory", "disk"]
    assert [label for label in labels if label in expected] == 2 * expected
    assert sorted(tmp_path.rglob("*")) == before


def test_json_holds_plans_and_errors(slides, model, capsys):
    (slides / "broken.svs").write_bytes(b"II*\0 this is no slide")
    assert main([str(slides / "a.tif"), str(slides / "broken.svs"), "--json", *options(model)]) == 1
    data = data_of(capsys)
    plan, failure = data["slides"]
    assert set(failure) == {"path", "error"}
    assert "broken.svs" in failure["error"]
    assert plan["model"] == model
    assert plan["estimate"]["seconds"] == data["seconds"]
    assert (plan["tiles"], plan["workers"], plan["device"]) == (1, 0, "cpu")
    assert set(plan["estimate"]["files"]) == {"parquet", "points"}
    assert main([str(slides / "a.tif"), "--json", "--sample", "0", *options(model)]) == 0
    data = data_of(capsys)
    assert (data["seconds"], data["slides"][0]["estimate"]) == (None, None)


def test_the_folder_is_that_of_segment(slides, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment([str(slides), "--out", str(out), *options(model)]) == 0
    capsys.readouterr()
    assert main([str(slides), "--out", str(out), *options(model)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("is finished; segment has nothing to do") == 2
    assert "measured" not in text
    assert "2 slides on 1 device(s): about 0 s" in text
    more = [*options(model), "--formats", "points,json"]
    assert main([str(slides / "a.tif"), "--out", str(out), *more]) == 0
    assert "is finished; segment adds json" in " ".join(capsys.readouterr().out.split())
    assert main([str(slides / "a.tif"), "--out", str(out), "--overlap", "32", *options(model)]) == 0
    assert "holds another run" in capsys.readouterr().out


def test_pictures_are_written_to_a_folder(slides, model, tmp_path, capsys):
    pictures = tmp_path / "new" / "pictures"
    assert main([str(slides), "--sample", "0", "--thumbnail", str(pictures), *options(model)]) == 0
    assert sorted(path.name for path in pictures.iterdir()) == ["a.png", "b [2].png"]
    assert str(pictures / "b [2].png") in capsys.readouterr().out


def test_lists_and_ordinary_images(slides, model, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,mpp\nslides/a.tif,0.5\n")
    assert main([str(tmp_path / "list.csv"), "--json", "--sample", "0", *options(model)]) == 0
    (plan,) = data_of(capsys)["slides"]
    assert plan["resolution"] == {"mpp": [0.5, 0.5], "source": "mpp"}
    assert "states 0.25" in plan["warnings"][0]
    Image.new("RGB", (200, 150), (180, 90, 180)).save(tmp_path / "plain.png")
    assert main([str(tmp_path / "plain.png"), *options(model)]) == 2
    assert "--as slide" in capsys.readouterr().err
    assert main([str(tmp_path / "plain.png"), str(slides / "a.tif"), "--sample", "0", *options(model)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("note: ")
    assert "not measured" in printed.out
    named = [str(tmp_path / "plain.png"), "--as", "slide", "--sample", "0", *options(model)]
    assert main(named) == 1
    assert "--mpp 0.25" in capsys.readouterr().err
    assert main([*named, "--magnification", "40"]) == 0
    assert "0.25 µm/px, given by --magnification" in capsys.readouterr().out


def test_a_region_of_interest(slides, model, tmp_path, capsys):
    corners = [[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    command = [str(slides / "a.tif"), "--roi", str(tmp_path / "roi.geojson"), "--sample", "0", *options(model)]
    assert main(command) == 0
    assert "the region of interest has 0.00 mm²" in " ".join(capsys.readouterr().out.split())
    assert main([*command[:1], "--roi", str(tmp_path / "none.geojson"), *options(model)]) == 2
    assert "none.geojson" in capsys.readouterr().err


def test_what_of_a_region_file_is_no_region_is_told(slides, model, tmp_path, capsys):
    corners = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
    shapes = [
        {"geometry": {"type": "Polygon", "coordinates": [corners]}, "properties": {"object_type": kind}}
        for kind in ("annotation", "tile", "detection")
    ]
    (tmp_path / "roi.geojson").write_text(json.dumps(shapes))
    command = [str(slides / "a.tif"), "--roi", str(tmp_path / "roi.geojson"), "--sample", "0", "--json"]
    assert main([*command, *options(model)]) == 0
    (plan,) = data_of(capsys)["slides"]
    assert "roi.geojson' holds 1 of type detection, 1 of type tile: left out" in plan["warnings"][-1]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--formats", "pdf"], "pdf"),
        (["--device", "abacus"], "abacus"),
        (["--workers", "-1"], "workers -1"),
        (["--model", "nanno"], "nano"),
        (["--thumbnail", "file.txt"], "file.txt"),
        (["--sample", "-1"], "--sample -1"),
        (["--overlap", "2"], "overlap 2"),
        (["--precision", "16-mixed"], "16-mixed"),
    ],
)
def test_wrong_usage_starts_nothing(slides, model, tmp_path, capsys, monkeypatch, extra, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    monkeypatch.setattr(plan_package, "plan_slide", lambda *a, **k: pytest.fail("started"))
    assert main([str(slides / "a.tif"), *options(model), *extra]) == 2
    assert words in capsys.readouterr().err


def test_a_fault_of_ours_costs_one_slide(slides, model, capsys, monkeypatch):
    real = plan_package.plan_slide

    def faulty(path, **settings):
        if path.name == "a.tif":
            raise ZeroDivisionError("division by zero")
        return real(path, **settings)

    monkeypatch.setattr(plan_package, "plan_slide", faulty)
    command = [str(slides), "--sample", "0", *options(model)]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "a.tif': ZeroDivisionError" in printed.err
    assert "--debug" in printed.err
    assert "500 x 400" in printed.out
    with pytest.raises(ZeroDivisionError):
        main([*command, "--debug"])


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "Nothing is written but the pictures" in capsys.readouterr().out
    assert main(["a.svs", "--sample", "two"]) == 2


def test_times_are_words():
    assert readable_range(Range(0.2, 0.4)) == "about 0 s"
    assert readable_range(Range(59.6, 61)) == "1 min to 1 min 1 s"
    assert readable_range(Range(3599, 90_000)) == "1 h to 25 h"
