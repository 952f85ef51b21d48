"""Measurements are columns of the table of nuclei: they survive indexing, joining, and formats that hold numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from export_samples import assert_same, make_nuclei, many, square
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellvit import io
from cellvit.errors import DataError
from cellvit.io.stream import blocks
from cellvit.types import Nuclei

MEASURED = ("area_um2", "solidity", "my_lab: score")


def measured(count=5, *, seed=0):
    """Nuclei with three measurements, one of which is not known for the first nucleus."""
    rng = np.random.default_rng(seed)
    table = many(count, points=6)
    columns = {name: rng.random(count).astype(np.float32) * 100 for name in MEASURED}
    columns["solidity"][:1] = np.nan
    return replace(table, measurements=columns)


def assert_measured(one, two):
    assert list(one.measurements) == list(two.measurements)
    for name, values in one.measurements.items():
        assert two.measurements[name].dtype == values.dtype == np.float32
        np.testing.assert_array_equal(values, two.measurements[name], err_msg=name)


def test_rows_keep_their_measurements():
    table = measured()
    area = table.measurements["area_um2"]
    for rows in ([3, 0], slice(1, 4), slice(0, 5, 2), area > 50):
        np.testing.assert_array_equal(table[rows].measurements["area_um2"], area[rows])
    assert table[2].measurements["area_um2"] == area[2]
    assert list(table.transform(scale=(2, 2)).measurements) == list(MEASURED)


def test_a_measurement_that_a_part_lacks_is_left_out():
    table = measured()
    joined = Nuclei.concatenate([Nuclei.empty(classes=table.classes), table[:2], table[2:]])
    assert_measured(joined, table)
    fewer = replace(table, measurements={"solidity": table.measurements["solidity"]})
    assert list(Nuclei.concatenate([table, fewer]).measurements) == ["solidity"]
    assert list(Nuclei.concatenate([Nuclei.empty(measurements=MEASURED)] * 2).measurements) == list(MEASURED)


def test_a_column_of_another_length_is_refused():
    with pytest.raises(DataError, match="different lengths"):
        replace(many(3), measurements={"area_um2": np.zeros(2, np.float32)})


@pytest.mark.parametrize("count", [0, 5])
def test_parquet_and_arrow_keep_measurements(tmp_path, count):
    table = measured(count)
    assert_measured(io.from_arrow(io.to_arrow(table)), table)
    io.write_parquet(table, tmp_path / "a.parquet")
    assert_measured(io.read_parquet(tmp_path / "a.parquet"), table)
    assert io.ParquetStream(tmp_path / "a.parquet").measurements == MEASURED


def test_a_stream_has_the_measurements_it_names(tmp_path):
    table, path = measured(), tmp_path / "a.parquet"
    about = {"classes": table.classes, "measurements": MEASURED[::-1][:2]}
    io.write_parquet_stream([table[:2], Nuclei.empty(classes=table.classes), table[2:]], path, **about)
    read = io.read_parquet(path).measurements
    assert list(read) == ["my_lab: score", "solidity"]
    np.testing.assert_array_equal(read["solidity"], table.measurements["solidity"])
    with pytest.raises(DataError, match=r"the chunk at nucleus 5 lacks the measurements \['my_lab: score'\]"):
        io.write_parquet_stream([table, replace(table, measurements={"solidity": np.zeros(5)})], path, **about)
    (block,) = blocks([table[:2], table[2:]], 9, classes=table.classes, embedding_dim=None)
    assert_measured(block[1], table)


@pytest.mark.parametrize("name", ["label", "geometry"])
def test_the_name_of_another_column_is_refused(name):
    with pytest.raises(DataError, match=f"{name}.*rename"):
        io.to_arrow(replace(many(1), measurements={name: np.zeros(1, np.float32)}))


def test_geojson_has_the_names_of_qupath(tmp_path):
    table = measured(2)
    io.write_geojson(table, tmp_path / "a.geojson")
    first, second = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert list(first["properties"]["measurements"]) == [
        "Nucleus: Label",
        "Type probability",
        "Area px^2",
        "Nucleus: Area µm^2",
        "my_lab: score",
    ]
    assert second["properties"]["measurements"]["Nucleus: Solidity"] == pytest.approx(table.measurements["solidity"][1])
    io.write_geojson(table, tmp_path / "points.geojson", points=True)
    (first, _) = json.loads((tmp_path / "points.geojson").read_text())["features"]
    assert list(first["properties"]["measurements"]) == ["Nucleus: Label", "Type probability"]


floats = st.floats(width=32, allow_nan=True, allow_infinity=False)


@given(columns=st.dictionaries(st.text(min_size=1, max_size=5), hnp.arrays(np.float32, 2, elements=floats), max_size=3))
def test_geojson_gives_back_what_was_written(tmp_path_factory, columns):
    path = tmp_path_factory.mktemp("geojson") / "a.geojson"
    table = replace(make_nuclei([square(0, 0), square(20, 0)]), measurements=columns)
    io.write_geojson(table, path)
    read = io.read_geojson(path)
    known = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    assert set(read.measurements) == set(known)
    for name, values in known.items():
        np.testing.assert_array_equal(read.measurements[name], values)


def test_measurements_of_qupath_are_read(tmp_path):
    polygon = {"type": "Polygon", "coordinates": [[[*square(0, 0)], square(0, 0)[0]][0]]}
    forms = [{"Nucleus: Area µm^2": 4.5, "Cell: Area µm^2": 9}, [{"name": "Nucleus: Area µm^2", "value": 5.5}], None]
    features = [
        {"type": "Feature", "geometry": polygon, "properties": {"objectType": "detection", "measurements": form}}
        for form in forms
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    read = io.read_geojson(tmp_path / "a.geojson").measurements
    np.testing.assert_array_equal(read["area_um2"], np.array([4.5, 5.5, np.nan], np.float32))
    np.testing.assert_array_equal(read["Cell: Area µm^2"], np.array([9, np.nan, np.nan], np.float32))


def test_anndata_keeps_measurements(tmp_path):
    anndata = pytest.importorskip("anndata")
    table = measured()
    io.write_anndata(table, tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obs.columns[-3:].tolist() == list(MEASURED)
    assert_measured(io.read_anndata(tmp_path / "a.h5ad"), table)
    with pytest.raises(DataError, match=r"area_px.*rename"):
        io.write_anndata(replace(table, measurements={"area_px": np.zeros(5, np.float32)}), tmp_path / "b.h5ad")


def test_a_table_without_measurements_is_written_as_before(tmp_path):
    table = many(3)
    assert b"measurements" not in io.to_arrow(table).schema.metadata[b"cellvit"]
    io.write_parquet(table, tmp_path / "a.parquet")
    assert_same(io.read_parquet(tmp_path / "a.parquet"), table)
