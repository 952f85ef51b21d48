"""``cellvit info``: tables, JSON, and files that cannot be read."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit import cli
from cellvit.cli.info import info_rows
from cellvit.slide.info import Picture, PixelFacts, SlideInfo

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 96, 4), np.uint8)


@pytest.fixture
def files(tmp_path):
    per_cm = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        tmp_path / "a.tif", PIXELS, tile=(16, 16), photometric="rgb", extrasamples=["unassalpha"], **per_cm
    )
    Image.fromarray(PIXELS[..., :3]).save(tmp_path / "b.png")
    (tmp_path / "broken.svs").write_bytes(b"this is no slide")
    return [str(tmp_path / name) for name in ("a.tif", "broken.svs", "b.png", "none.svs")]


def test_tables_of_what_can_be_read_and_an_error_for_each_other(files, capsys):
    assert cli.main(["info", *files]) == 1
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["error", "error"]
    assert "none.svs" in printed.err
    assert "broken.svs" in printed.err
    text = " ".join(printed.out.split())
    assert "96 x 64 px, read by tiff" in text
    assert "0.5 µm/px, stated by the file" in text
    assert "4 channels of 8 bits; unassociated alpha; compression NONE" in text
    assert "96 x 64 px, read by pillow (PNG)" in text
    assert "states no resolution; without --mpp 0.25 that is assumed" in text
    assert cli.main(["info", files[0], "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_json_has_an_object_per_file(files, capsys):
    assert cli.main(["info", *files, "--json"]) == 1
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(files)
    one = rows[files[0]]
    assert (one["reader"], one["mpp"], one["level_sizes"]) == ("tiff", [0.5, 0.5], [[96, 64]])
    assert one["pixels"]["alpha"] == "unassociated"
    assert "error" in rows[files[1]]
    assert cli.main(["info", files[0]]) == 0


def test_rows_say_what_is_special(tmp_path):
    facts = PixelFacts("ome", 4, 16, 12, "unspecified", "LZW", (Picture("one", (90, 80)), Picture("two", (90, 70))))
    bounds = (5, 6, 70, 60)
    info = SlideInfo(tmp_path, 1000, "tiff", ((90, 80),), bounds, (0.25, 0.26), "OME-XML", 40.0, facts, ())
    rows = dict(info_rows(info))
    assert rows["scanned"] == "70 x 60 px at x=5, y=6"
    assert rows["resolution"] == "0.25 x 0.26 µm/px, stated by the file (OME-XML)"
    assert rows["objective"] == "x40"
    assert rows["scenes"] == "2: one (90 x 80), two (90 x 70)"
    assert rows["pixels"].startswith("4 channels of 16 bits, of which 12 are used; a further sample that may be alpha")
    rows = dict(info_rows(SlideInfo(tmp_path, 1000, None, (), None, None, "", None, facts, ("choose one",))))
    assert "holds several images" in rows["file"]
    rows = dict(info_rows(SlideInfo(tmp_path, 1, "mine", ((9, 9),), (0, 0, 9, 9), None, "", None, PixelFacts(), ())))
    assert (rows["pixels"], rows["resolution"], rows["associated"]) == ("not known", "not stated", "none")


def test_compare_says_what_other_readers_see(files, capsys):
    pytest.importorskip("zarr")
    assert cli.main(["info", files[0], "--compare"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "every reader compared with the first" in text
    assert "│ cellvit pillow │ 96 x 64 │ 0.5 │ 0 │ 0.0 │" in text
    assert "OpenSlide" in text
    assert cli.main(["info", files[0], files[1], "--compare", "--json"]) == 1
    row, broken = json.loads(capsys.readouterr().out)
    views = {view["name"]: view for view in row["readers"]}
    assert views["cellvit tiff"]["differences"] == []
    assert views["tifffile"]["mpp"] == [0.5, 0.5]
    assert views["tifffile"]["disagreements"] == []
    assert views["tifffile"]["differences"][0]["region"]["name"] == "tissue"
    assert views["zarr"]["refusal"]
    assert "readers" not in broken
