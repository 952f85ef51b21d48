"""From one format of nuclei to another."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from export_samples import assert_same, many, with_embedding

from cellvit import io, read_nuclei
from cellvit.cli import main
from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.io.convert import convert_nuclei, format_name
from cellvit.io.formats.base import FORMATS

TABLE = with_embedding(replace(many(30), mpp=0.25), 3)
FACTS = {"image": "a.svs", "width": 60_000, "height": 50_000, "base_mpp": 0.25}


@pytest.fixture
def table(tmp_path):
    """A table of several row groups."""
    with patch("cellvit.io.parquet._ROW_GROUP", 7):
        io.write_parquet(TABLE, tmp_path / "nuclei.parquet", metadata=FACTS)
    return tmp_path / "nuclei.parquet"


def test_a_table_is_read_in_pieces_and_gives_what_would_be_written_of_all(table, tmp_path):
    told = []
    made = convert_nuclei(table, tmp_path / "a.geojson", progress=lambda done, total: told.append((done, total)))
    assert told == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    assert (made.format, made.nuclei, made.left_out) == ("geojson-plain", 30, ("embeddings",))
    io.write_geojson(TABLE, tmp_path / "b.geojson")
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()
    convert_nuclei(tmp_path / "a.geojson", tmp_path / "c.parquet")
    assert_same(replace(TABLE, embedding=None), read_nuclei(tmp_path / "c.parquet"))
    assert read_nuclei(tmp_path / "c.parquet").mpp == 0.25


def test_what_the_table_says_of_the_image_reaches_the_format(table, tmp_path):
    convert_nuclei(table.parent, tmp_path / "a.coco.json")
    assert '"file_name":"a.svs","width":60000,"height":50000' in (tmp_path / "a.coco.json").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.geojson.gz", "geojson"),
        ("a.points.geojson.gz", "points"),
        ("A.JSON", "json"),
        ("a.coco.json", "coco"),
        ("a.b.tif", "ome-tiff"),
        ("a.zarr", "spatialdata"),
        ("a.ome.zarr", "ome-zarr"),
        ("nuclei-3d.dcm", "dicom-3d"),
    ],
)
def test_the_name_says_the_format(tmp_path, name, expected):
    assert format_name(tmp_path / name) == expected


def test_every_file_of_a_slide_says_its_format(tmp_path):
    for name in FORMATS:
        assert format_name(tmp_path / FORMATS.get(name).file) == name


def test_what_cannot_be_is_refused_before_anything_is_written(table, tmp_path):
    convert_nuclei(table, tmp_path / "a.h5ad")
    before = set(tmp_path.iterdir())
    for arguments, error, words in (
        ((table, tmp_path / "a.doc"), ConfigError, "says no format; end it in one of"),
        ((table, tmp_path / "a.h5ad"), OutputError, "exists; pass overwrite=True"),
        ((tmp_path / "a.h5ad", tmp_path / "b.geojson"), DataError, r"holds no outlines.*choose one of .*'points'"),
        ((tmp_path / "none.parquet", tmp_path / "b.geojson"), DataError, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            convert_nuclei(*arguments)
    with pytest.raises(OutputError, match="choose another name"):
        convert_nuclei(table, table, overwrite=True)
    assert set(tmp_path.iterdir()) == before
    assert convert_nuclei(tmp_path / "a.h5ad", tmp_path / "b.csv").left_out == ("embeddings",)


def test_the_command_says_what_it_wrote_and_what_it_left_out(table, tmp_path, capsys):
    assert main(["convert-nuclei", str(table), str(tmp_path / "a.csv")]) == 0
    assert "30 nuclei (csv); left out: outlines, embeddings" in capsys.readouterr().out
    assert main(["convert-nuclei", str(table), str(tmp_path / "a.csv")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    io.write_geojson(replace(TABLE, classes=None), tmp_path / "a.geojson")
    command = ["convert-nuclei", str(tmp_path / "a.geojson"), str(tmp_path / "a.coco.json"), "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "warning: the size of the image is not known" in said.err
    assert "--image-size" in said.err
    assert '"format": "coco", "nuclei": 30' in said.out
    assert main([*command, "--overwrite", "--image-size", "60000", "50000"]) == 0
    assert capsys.readouterr().err == ""


def test_nuclei_far_out_are_refused_with_what_to_do(table, tmp_path, capsys):
    far = replace(TABLE, centroid=TABLE.centroid + 70_000, contour_points=TABLE.contour_points + 70_000)
    io.write_parquet(far, tmp_path / "far.parquet")
    assert main(["convert-nuclei", str(tmp_path / "far.parquet"), str(tmp_path / "a.rois.zip")]) == 1
    assert "choose 'geojson'" in capsys.readouterr().err
    assert not (tmp_path / "a.rois.zip").exists()
    assert np.isfinite(far.area).all()
