import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from export_samples import assert_same, grid_outlines, loose_outlines, make_nuclei, many, nuclei, square
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import DataError
from cellvit.io import from_arrow, read_parquet, to_arrow, write_parquet
from cellvit.io.parquet import ParquetStream, read_facts
from cellvit.types import Nuclei

any_nuclei = nuclei(st.one_of(loose_outlines, grid_outlines))


def assert_all_same(one, two):
    assert_same(one, two)
    assert (one.embedding is None) == (two.embedding is None)
    if one.embedding is not None:
        assert two.embedding.dtype == np.float32
        np.testing.assert_array_equal(one.embedding, two.embedding)


@given(any_nuclei, st.booleans())
@settings(max_examples=40)
def test_reading_gives_back_what_was_written(given_nuclei, geometry):
    with TemporaryDirectory() as folder:
        write_parquet(given_nuclei, Path(folder, "a.parquet"), geometry=geometry)
        assert_all_same(given_nuclei, read_parquet(Path(folder, "a.parquet")))


@given(any_nuclei)
def test_arrow_gives_back_what_went_in(given_nuclei):
    assert_all_same(given_nuclei, from_arrow(to_arrow(given_nuclei)))


@given(any_nuclei, st.integers(0, 4), st.integers(0, 4))
def test_slices_and_concatenations_of_tables_are_tables(given_nuclei, start, count):
    table = to_arrow(given_nuclei)
    rows = np.arange(len(given_nuclei))[start : start + count]
    assert_all_same(given_nuclei.select(rows), from_arrow(table.slice(start, count)))
    twice = pa.concat_tables([table, table])
    assert_all_same(Nuclei.concatenate([given_nuclei, given_nuclei]), from_arrow(twice))


def test_arrow_shares_the_memory():
    table = many(10)
    table = Nuclei(**{**table.__dict__, "embedding": np.ones((10, 3), np.float32)})
    back = from_arrow(to_arrow(table))
    for name in ("centroid", "bbox", "type", "type_prob", "label", "contour_offsets", "contour_points", "embedding"):
        assert np.shares_memory(getattr(table, name), getattr(back, name)), name


def test_the_file_is_geoparquet_with_named_columns_and_facts(tmp_path):
    table = make_nuclei([square(0, 0), [(0, 0), (10, 10), (10, 0), (0, 10)], [(1, 1), (2, 2)]])
    write_parquet(table, tmp_path / "a.parquet", metadata={"mpp": 0.25, "image": "é.png"})
    read = pq.read_table(tmp_path / "a.parquet")
    assert read.column_names == [
        *("label", "type", "classification", "type_prob", "centroid", "bbox", "contour", "geometry")
    ]
    assert read["centroid"].type == pa.list_(pa.float64(), 2)
    assert read["centroid"].to_pylist()[0] == [4.0, 4.0]
    assert read["contour"].to_pylist()[2] == [[1.0, 1.0], [2.0, 2.0]]
    geo = json.loads(read.schema.metadata[b"geo"])
    assert geo["columns"][geo["primary_column"]] == {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}
    shapes = shapely.from_wkb(read["geometry"].to_pylist())
    assert shapely.is_valid(shapes).all()
    assert shapely.area(shapes).tolist() == [64, 25, 1]
    facts = read_facts(read)
    assert facts["metadata"] == {"mpp": 0.25, "image": "é.png"}
    assert facts["classes"][2] == {"name": "Inflammatory", "color": [24, 229, 167]}


def test_two_runs_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_parquet(many(100), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_path_that_looks_like_a_partition_adds_no_column(tmp_path):
    (tmp_path / "type=9").mkdir()
    table = many(3)
    write_parquet(table, tmp_path / "type=9" / "a.parquet")
    assert_same(table, read_parquet(tmp_path / "type=9" / "a.parquet"))


def test_several_row_groups_join(tmp_path, monkeypatch):
    monkeypatch.setattr("cellvit.io.parquet._ROW_GROUP", 7)
    table = many(20)
    write_parquet(table, tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    assert_same(table, read_parquet(tmp_path / "a.parquet"))


def test_centroids_and_types_alone(tmp_path):
    whole = many(50, seed=3)
    write_parquet(whole, tmp_path / "a.parquet")
    stream = ParquetStream(tmp_path / "a.parquet", outlines=False)
    (light,) = stream
    np.testing.assert_array_equal(light.centroid, whole.centroid)
    np.testing.assert_array_equal(light.type, whole.type)
    assert (len(stream), light.classes, stream.embedding_dim, dict(light.measurements)) == (50, whole.classes, None, {})
    assert not light.contour_points.size
    assert not light.bbox.any()


def test_what_is_not_ours_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match="does not exist"):
        read_parquet(path)
    path.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_parquet(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match=r"a\.parquet.*no cellvit metadata"):
        read_parquet(path)
    good = to_arrow(make_nuclei([square(0, 0)]))
    with pytest.raises(DataError, match=r"lacks the columns \['bbox'\]"):
        from_arrow(good.drop_columns(["bbox"]))
    with pytest.raises(DataError, match="not those of nuclei"):
        from_arrow(good.set_column(good.column_names.index("bbox"), "bbox", pa.array(["text"])))
    with pytest.raises(DataError, match="not those of nuclei"):
        from_arrow(good.set_column(good.column_names.index("type"), "type", pa.array([None], pa.int32())))
    with pytest.raises(DataError, match="damaged"):
        from_arrow(good.replace_schema_metadata({b"cellvit": b"{}"}))
    newer = json.dumps({"version": 3, "classes": None, "metadata": {}}).encode()
    with pytest.raises(DataError, match="update cellvit"):
        from_arrow(good.replace_schema_metadata({b"cellvit": newer}))
    with pytest.raises(DataError, match="plain data"):
        write_parquet(make_nuclei([]), path, metadata={"a": object()})


def test_coordinates_that_are_not_finite_need_geometry_left_out(tmp_path):
    table = make_nuclei([square(0, 0)])
    table.contour_points[1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        write_parquet(table, tmp_path / "a.parquet")
    write_parquet(table, tmp_path / "a.parquet", geometry=False)
    assert_same(table, read_parquet(tmp_path / "a.parquet"))
