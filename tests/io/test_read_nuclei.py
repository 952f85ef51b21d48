"""One reader for every file of nuclei that is written."""

import gzip
import json
import zipfile

import numpy as np
import pytest
from export_samples import make_nuclei, square

from cellvit import io, read_nuclei
from cellvit.errors import DataError

NUCLEI = make_nuclei([square(0, 0), square(20, 5)], type=[1, 5], embedding=np.ones((2, 3), np.float32))
WRITERS = {
    "a.parquet": io.write_parquet,
    "a.geojson": io.write_geojson,
    "a.geojson.gz": io.write_geojson,
    "points.geojson.gz": lambda nuclei, path: io.write_geojson(nuclei, path, points=True),
    "cells.json": io.write_json,
    "cells.json.gz": io.write_json,
    "a.h5ad": io.write_anndata,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("renamed", [False, True])
def test_every_format_is_read_whatever_it_is_called(tmp_path, name, renamed):
    if name.endswith(".h5ad"):
        pytest.importorskip("anndata")
    path = tmp_path / name
    WRITERS[name](NUCLEI, path)
    found = read_nuclei(str(path.rename(tmp_path / "nuclei.dat") if renamed else path))
    np.testing.assert_array_equal(found.centroid, NUCLEI.centroid)
    assert found.type.tolist() == [1, 5]
    assert found.classes == NUCLEI.classes
    assert (found.embedding is None) == (name not in ("a.parquet", "a.h5ad"))


def test_a_result_folder_is_read_from_its_table(tmp_path):
    io.write_parquet(NUCLEI, tmp_path / "nuclei.parquet")
    assert read_nuclei(tmp_path).label.tolist() == NUCLEI.label.tolist()


def test_json_of_others_is_told_apart(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    assert len(read_nuclei(tmp_path / "list.json")) == 0
    (tmp_path / "bom.json").write_text(json.dumps({"cells": []}), encoding="utf-8-sig")
    assert len(read_nuclei(tmp_path / "bom.json")) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; check the path"),
        (b"", "nuclei are read from Parquet, AnnData"),
        (b"\x89PNG\r\n\x1a\n", "nuclei are read from Parquet"),
        (gzip.compress(b'{"cells": []}', mtime=0)[:-9], "nuclei are read from Parquet"),
        (b"PAR1", "not a readable Parquet file"),
        (b'{"a": 1, "b": []}', r"JSON of .*'a', 'b'.*, neither GeoJSON nor cells"),
        (b'"cells"', "JSON of cells, neither GeoJSON nor cells"),
        (b'{"type": "Topology"}', "not GeoJSON of nuclei"),
    ],
)
def test_what_holds_no_nuclei_is_told(tmp_path, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_nuclei(path)


def test_damaged_anndata_is_told(tmp_path):
    pytest.importorskip("anndata")
    (tmp_path / "a.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match="not AnnData of nuclei"):
        read_nuclei(tmp_path / "a.h5ad")


def test_folders_without_a_table_are_told(tmp_path):
    with pytest.raises(DataError, match=r"folder without 'nuclei.parquet'.*spatialdata.read_zarr"):
        read_nuclei(tmp_path)


def test_other_archives_are_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cells.json", "{}")
    with pytest.raises(DataError, match="nuclei are read from"):
        read_nuclei(tmp_path / "a.zip")


def test_a_table_is_no_stream_of_tables(tmp_path):
    with pytest.raises(DataError, match=r"no table of nuclei but Nucleus.*pass a list of tables"):
        io.write_parquet_stream(NUCLEI, tmp_path / "a.parquet", classes=NUCLEI.classes)
