"""Slides at addresses through segmentation: the same nuclei, and a slide that goes away half-way is gone on with."""

import json
import shutil

import numpy as np
import pytest
import tifffile
from slide_drawings import block
from support.drawn_slides import DrawnModel, drawn_pixels
from support.drawn_zarr import write_ome_zarr
from support.http_files import served

from cellvit.cli.info import main as info
from cellvit.cli.plan import main as plan
from cellvit.cli.segment import main as segment
from cellvit.errors import ImageError, OutputError, SourceLostError
from cellvit.inference.slide import segment_slide
from cellvit.io import remote, remote_requests
from cellvit.slide.naming import expand_inputs
from cellvit.slide.readers.chunks import ChunkCache

pytest.importorskip("zarr", reason="OME-Zarr needs the extra formats")

SIZE = (600, 400)
SETTINGS = {"device": "cpu", "workers": 0, "formats": (), "tile_size": 192, "tissue_filter": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    pixels = drawn_pixels(*SIZE, block())
    facts = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "a.tif", pixels, tile=(128, 128), compression="zlib", photometric="rgb", **facts)
    write_ome_zarr(folder / "a.zarr", [pixels], version="0.5", chunk=128, fill=255)
    return folder


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("local")
    return segment_slide(folder / "a.tif", out, model=DrawnModel(), **SETTINGS).nuclei(embedding=False)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Keep one small block of a file, and make parts of two tiles."""
    monkeypatch.setattr(remote_requests, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 2**14)
    monkeypatch.setenv(remote.CACHE_VARIABLE, "0.0165")
    monkeypatch.setattr("cellvit.inference.prepare.TILES_PER_CHUNK", 2)


@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_a_slide_that_goes_away_half_way_is_gone_on_with(folder, local, tmp_path, monkeypatch, name):
    with served(folder) as server:
        address = f"{server.address}/{name}"
        whole = segment_slide(address, tmp_path / "whole", model=DrawnModel(), **SETTINGS)

        def fail(done, total):
            if done >= 2:
                server.fail_after = 0
                patch.setattr(ChunkCache, "_look_up", lambda *_: None)  # what is decoded is forgotten

        match = "finished parts of a slide are kept"
        with monkeypatch.context() as patch, pytest.raises(SourceLostError, match=match):
            segment_slide(address, tmp_path / "out", model=DrawnModel(), progress=fail, **SETTINGS)
        assert not (tmp_path / "out" / "nuclei.parquet").exists()
        parts = list((tmp_path / "out" / ".work").glob("part-*.arrow"))
        assert parts
        server.fail_after = None
        done = segment_slide(address, tmp_path / "out", model=DrawnModel(), **SETTINGS)
    for result in (whole, done):  # in the order of their parts, which are smaller here
        found = result.nuclei(embedding=False).centroid
        np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(local.centroid, axis=0))
        assert result.summary["tiles"]["unreadable"] == []
    facts = done.summary["slide"]
    assert (facts["path"], facts["name"], facts["sha256"]) == (address, name, None)
    assert facts["remote"]["etag"]


def test_a_slide_that_is_changed_half_way_is_refused(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "a.tif", tmp_path / "b.tif")
    monkeypatch.setattr("cellvit.inference.summary.SlideFacts.metadata", lambda self: change() or {})

    def change():
        (tmp_path / "b.tif").touch()

    with served(tmp_path) as server, pytest.raises(ImageError, match="was changed since its results were begun"):
        segment_slide(f"{server.address}/b.tif", tmp_path / "out", model=DrawnModel(), **SETTINGS)
    with served(tmp_path) as server, pytest.raises(OutputError, match="slide quick_hash was"):
        segment_slide(f"{server.address}/b.tif", tmp_path / "out", model=DrawnModel(), **SETTINGS)


def test_the_verbs_take_addresses(folder, tmp_path, tiny_model, capsys):
    with served(folder) as server:
        (tmp_path / "list.csv").write_text(f"path,scene\n{server.address}/a.zarr,0\n")
        common = ["--model", tiny_model, "--device", "cpu", "--workers", "0", "--no-tissue-filter"]
        asked = len(server.requests)
        assert len(expand_inputs([f"{server.address}/{name}" for name in ("a.tif", "a.zarr", "nope.tif")])[0]) == 3
        assert len(server.requests) == asked  # one that does not answer must not keep the others from being done
        assert info([f"{server.address}/a.tif", f"{server.address}/nope.tif", "--json"]) == 1
        told, absent = json.loads(capsys.readouterr().out)
        assert "nope.tif' does not exist" in (told.get("error") or absent["error"])
        assert plan([f"{server.address}/a.tif", *common, "--sample", "0", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["slides"][0]["path"] == f"{server.address}/a.tif"
        inputs = [str(tmp_path / "list.csv"), f"{server.address}/a.tif?key=secret", f"{server.address}/nope.svs"]
        out = tmp_path / "out"
        assert segment([*inputs, *common, "--out", str(out), "--formats", "points"]) == 1
        printed = capsys.readouterr()
    assert printed.err.count("error:") == 1
    assert "nope.svs' does not exist" in printed.err
    host = server.address.removeprefix("http://").replace(":", "_")
    assert {path.name for path in out.iterdir() if path.is_dir()} == {f"{host}_a_zarr", f"{host}_a_tif"}
    assert not [path for path in out.rglob("*.*") if path.is_file() and b"secret" in path.read_bytes()]
