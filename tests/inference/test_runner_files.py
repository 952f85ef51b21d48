"""Files of others stay as they are, damage is told, and what a finished folder says of itself is true."""

import json

import numpy as np
import pytest
import torch
from slide_drawings import drawn_slide
from support.drawn_slides import DrawnModel

from cellvit.cli.verify import main as verify
from cellvit.errors import OutputError
from cellvit.inference import prepare
from cellvit.inference.plan import plan_slide
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.slide import segment_slide
from cellvit.inference.verify import result_folders, verify_results
from cellvit.io.atomic import temporary_path

SETTINGS = {"device": "cpu", "workers": 0, "tissue_filter": False, "formats": (), "tile_size": 256, "overlap": 32}
TILES = 4


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return drawn_slide(tmp_path_factory.mktemp("slides"), 400, 400)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(prepare, "TILES_PER_CHUNK", 2)


def run(slide, out, *, model=None, **changes):
    return segment_slide(slide, out, model=model or DrawnModel(), **{**SETTINGS, **changes})


def interrupt(slide, out, *, tiles=2, **changes):
    """Run until so many tiles are done."""

    def stop(done, total):
        assert total == TILES
        if done >= tiles:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(slide, out, progress=stop, **changes)


def content(folder):
    """Return the bytes of all files below a folder by path, links not followed."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.fixture
def others(tmp_path):
    """Return a folder of somebody else, with names like ours."""
    folder = tmp_path / "others"
    folder.mkdir()
    for name in ("part-000000.arrow", "part-7.arrow", ".cellvit-0123456789abcdef.png", "journal.json", "sha256", "a"):
        (folder / name).write_text(f"mine: {name}")
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_linked_working_folder_is_refused_and_its_target_untouched(slide, tmp_path, others, overwrite):
    out, before = tmp_path / "out", content(others)
    out.mkdir()
    (out / ".work").symlink_to(others, target_is_directory=True)
    with pytest.raises(OutputError, match=r"\.work' is a link to what may be of others; remove the link, and name"):
        run(slide, out, overwrite=overwrite)
    result = run(slide, out, overwrite=overwrite, work=tmp_path / "scratch")  # the link is not looked at
    assert run(slide, out, work=tmp_path / "scratch").summary == result.summary
    assert content(others) == before
    assert (out / ".work").is_symlink()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["part-000001.arrow", "journal.json", "sha256"])
def test_links_in_a_working_folder_are_refused(slide, tmp_path, others, name):
    out, before = tmp_path / "out", content(others)
    interrupt(slide, out)
    (out / ".work" / name).unlink(missing_ok=True)
    (out / ".work" / name).symlink_to(others / "a")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=f"{name}' is a link"):
            run(slide, out, overwrite=overwrite)
    assert content(others) == before


@pytest.mark.parametrize("name", [".owner", ".lock"])
def test_links_at_the_owner_and_the_lock_are_not_followed(slide, tmp_path, others, name):
    out, before = tmp_path / "out", content(others)
    out.mkdir()
    (out / name).symlink_to(others / "a")
    if name == ".lock":
        with pytest.raises(OutputError, match="is no lock of cellvit"):
            run(slide, out)
    else:
        run(slide, out)
    assert content(others) == before
    assert (out / name).is_symlink()


def test_owner_and_lock_of_others_stay(slide, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".owner").write_text("the pathology department")
    with ResumeFolder(out), pytest.raises(OutputError, match="being written by another process"):
        run(slide, out)
    run(slide, out)
    assert (out / ".owner").read_text() == "the pathology department"
    (out / ".owner").write_text("process 12 on host")  # of a killed run
    run(slide, out, formats=("points",))
    assert not (out / ".owner").exists()
    (out / ".lock").write_text("mine")
    with pytest.raises(OutputError, match="no lock of cellvit"):
        run(slide, out, overwrite=True)
    assert (out / ".lock").read_text() == "mine"


def test_files_with_names_like_ours_stay(slide, tmp_path):
    """A whole life of a folder that others use too: begun, killed, gone on with, overwritten."""
    out = tmp_path / "out"
    (out / ".work").mkdir(parents=True)
    names = (".cellvit-notes", ".cellvit-0123.png", ".cellvit-0123456789ABCDEF.png", ".cellvit-0123456789abcdef")
    for name in (*names, "nuclei.parquet.1", "parts.csv", ".work/part-1.arrow", ".work/part-000000.arrow.old"):
        (out / name).write_text(f"mine: {name}")
    (out / ".work" / names[3]).mkdir()
    (out / ".work" / names[3] / "mine").write_text("mine")
    (out / "nuclei.parquet").write_text("mine: the table")
    (out / names[3]).rename(out / "a")  # a whole name of ours is ours, once the folder is
    before = content(out)
    interrupt(slide, out)
    with pytest.warns(UserWarning, match=r"kept as nuclei\.parquet\.2$"):  # nobody was told before it was finished
        run(slide, out)
    run(slide, out, overwrite=True)
    table = before.pop(out / "nuclei.parquet")
    assert (out / "nuclei.parquet.2").read_bytes() == table
    assert before.items() <= content(out).items()


def test_parts_without_a_journal_are_neither_used_nor_removed(slide, tmp_path, others):
    out = tmp_path / "out"
    (others / "journal.json").unlink()
    others.rename(tmp_path / ".work")
    out.mkdir()
    (tmp_path / ".work").rename(out / ".work")
    before = content(out)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"holds parts of a slide but no journal\.json"):
            run(slide, out, overwrite=overwrite)
    (out / ".work" / "journal.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="is no journal of cellvit; look into the folder"):
        run(slide, out, overwrite=True)
    assert before.items() <= content(out).items()


def test_what_a_killed_run_left_is_removed(slide, tmp_path):
    out = tmp_path / "out"
    interrupt(slide, out)
    left = [temporary_path(folder / name) for folder in (out, out / ".work") for name in ("a.parquet", "b")]
    for path in left:
        path.write_text("half")
    store = temporary_path(out / "nuclei.zarr")
    (store / "table").mkdir(parents=True)
    run(slide, out)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "nuclei.parquet", "summary.json", "tissue.png"]


def test_unfinished_work_lies_where_it_is_told_to(slide, tmp_path):
    scratch, whole = tmp_path / "scratch", run(slide, tmp_path / "whole")
    outs = [tmp_path / name / "same" for name in ("a", "b")]
    for out in outs:
        interrupt(slide, out, work=scratch)
        assert not (out / ".work").exists()
    assert len(list(scratch.iterdir())) == 2
    plans = [
        plan_slide(slide, model=DrawnModel(), sample=0, out=outs[0], **SETTINGS | {"work": w}) for w in (scratch, None)
    ]
    assert (plans[0].started.tiles, plans[1].started) == (2, None)
    seen = []
    for out in outs:
        result = run(slide, out, work=scratch, progress=lambda *counts: seen.append(counts))
        assert (out / "nuclei.parquet").read_bytes() == (whole.out / "nuclei.parquet").read_bytes()
        assert result.summary["settings"]["work"] == str(scratch)
    assert seen[0] == (2, TILES)
    assert list(scratch.iterdir()) == []
    begun = tmp_path / "begun"
    interrupt(slide, begun)
    with pytest.raises(OutputError, match="was begun without work="):
        run(slide, begun, work=scratch)
    run(slide, begun, work=scratch, overwrite=True)
    assert not (begun / ".work").exists()


def test_a_damaged_file_is_not_called_done(slide, tmp_path):
    out = tmp_path / "out"
    first = run(slide, out, formats=("points", "geojson-plain"))
    table, points, seen = out / "nuclei.parquet", out / "points.geojson.gz", []
    whole = {path: path.read_bytes() for path in (table, points)}
    points.write_bytes(whole[points][:-1])
    with pytest.raises(OutputError, match=r"points\.geojson\.gz' is damaged .*it has [\d,]+ bytes.*move it"):
        run(slide, out)
    points.rename(tmp_path / "away")
    run(slide, out, formats=("points",))
    assert points.read_bytes() == whole[points]
    assert run(slide, out).summary["digests"] == first.summary["digests"]
    table.write_bytes(whole[table][:-100])
    with pytest.raises(OutputError, match=r"nuclei\.parquet' is damaged .* put a copy back, or pass overwrite=True"):
        run(slide, out)
    again = run(slide, out, overwrite=True, formats=("points",), keep_parts=True)
    assert not (out / "nuclei.geojson").exists()
    doubts = again.summary["warnings"]
    assert all("published vectors" in text for text in doubts)  # drawn nuclei have no stains
    table.write_bytes(whole[table][:-100])
    with pytest.warns(UserWarning, match="was damaged .* and was made again from the parts"):
        again = run(slide, out, formats=("points",), progress=lambda *counts: seen.append(counts))
    assert seen == [(TILES, TILES)]
    assert len(again.summary["warnings"]) == len(doubts) + 1
    assert table.read_bytes() == whole[table]


def test_an_empty_digest_says_nothing_of_the_slide(slide, tmp_path):
    out = tmp_path / "out"
    interrupt(slide, out)
    (out / ".work" / "sha256").write_bytes(b"")
    run(slide, out)


def test_times_add_up_over_interrupted_runs(slide, tmp_path):
    out = tmp_path / "out"
    alone = run(slide, tmp_path / "alone").summary["seconds"]
    assert alone["earlier_runs"] == 0
    interrupt(slide, out)
    interrupt(slide, out, tiles=TILES)
    parts = [ResumeFolder(out).read_part(number).seconds for number in range(2)]
    assert all(part["read"] > 0 and part["forward"] > 0 for part in parts)
    seconds = run(slide, out).summary["seconds"]
    for name in ("read", "forward", "elapsed"):
        assert seconds[name] >= sum(part[name] for part in parts) - 0.001
    assert seconds["earlier_runs"] == pytest.approx(sum(part["total"] for part in parts), abs=0.001)
    assert seconds["total"] > seconds["earlier_runs"]
    assert set(seconds) == set(alone)


class Uneven(DrawnModel):
    """Floats depend a little on the batch, as those of real networks do."""

    def predict_maps(self, image):
        maps = super().predict_maps(image)
        return {**maps, "embedding_map": maps["embedding_map"] + 1e-4 * len(image)}


def test_a_run_goes_on_with_the_batch_size_it_was_begun_with(slide, tmp_path):
    whole = run(slide, tmp_path / "whole", model=Uneven(), batch_size=2)
    single = run(slide, tmp_path / "single", model=Uneven())
    np.testing.assert_array_equal(whole.nuclei().bbox, single.nuclei().bbox)
    assert np.abs(whole.nuclei().embedding - single.nuclei().embedding).max() > 5e-5
    out = tmp_path / "out"
    interrupt(slide, out, model=Uneven(), batch_size=2)
    with pytest.raises(OutputError, match="was begun with batch_size 2, is 1, and the last digits depend on it"):
        run(slide, out, model=Uneven(), batch_size=1)
    result = run(slide, out, model=Uneven())
    assert result.summary["settings"]["batch_size"] == 2
    assert (out / "nuclei.parquet").read_bytes() == (whole.out / "nuclei.parquet").read_bytes()
    assert run(slide, out, model=Uneven(), batch_size=4).summary == result.summary  # nothing is left to compute


def test_parts_of_another_version_of_torch_are_told(slide, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(slide, out)
    monkeypatch.setattr(torch, "__version__", "0.0")
    with pytest.warns(UserWarning, match=r"computed on cpu, torch \S+ and on cpu, torch 0\.0: floats"):
        run(slide, out)


def test_verify_tells_what_became_of_results(slide, tmp_path, capsys):
    root = tmp_path / "cohort"
    formats = ("points",)
    for name in ("good", "changed", "gone", "old", "cut"):
        run(slide, root / name, formats=formats)
    interrupt(slide, root / "begun")
    assert verify_results(root / "good").status == "ok"
    assert verify([str(root / "good"), "--quiet"]) == 0
    table = root / "changed" / "nuclei.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    (root / "gone" / "points.geojson.gz").unlink()
    old = root / "old" / "summary.json"
    old.write_text(json.dumps({k: v for k, v in json.loads(old.read_text()).items() if k != "digests"}))
    summary = root / "cut" / "summary.json"
    summary.write_text(summary.read_text()[:-9])
    run(slide, root / "changed", formats=formats)  # the size is the same, and no more is looked at
    expected = {
        "begun": ("missing", "summary.json: begun and not finished"),
        "changed": ("damaged", "nuclei.parquet: the bytes are others than were written"),
        "cut": ("damaged", "summary.json: "),
        "gone": ("missing", "points.geojson.gz: it is gone"),
        "good": ("ok", ""),
        "old": ("unknown", "nuclei.parquet: summary.json of an older version notes no digest (and 2 more)"),
    }
    assert [folder.name for folder in result_folders(root)] == list(expected)
    capsys.readouterr()
    assert verify([str(root), "--json"]) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert {row["folder"].split("/")[-1]: row["status"] for row in rows} == {k: v[0] for k, v in expected.items()}
    for name, (status, text) in expected.items():
        assert (f"{name}' is {status}: {text}" in printed.err) == (status != "ok")
    assert verify([str(root / "nothing")]) == 1
    assert "summary.json: no results" in capsys.readouterr().err
    summary = json.loads((root / "good" / "summary.json").read_text())
    summary["digests"] |= {"../old/tissue.png": summary["digests"]["tissue.png"]}
    (root / "good" / "summary.json").write_text(json.dumps(summary))
    assert verify([str(root / "good")]) == 1
    assert "names a file outside of the folder" in capsys.readouterr().err
    assert verify([]) == 2
