import json
import uuid
import weakref
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
from export_samples import (
    PANNUKE,
    CutStream,
    assert_same,
    coordinates,
    cut_tables,
    grid_outlines,
    loose_outlines,
    make_nuclei,
    many,
    square,
    star_outlines,
    with_embedding,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import ring_offsets
from cellvit.io import (
    ParquetStream,
    Patches,
    as_stream,
    read_geojson,
    read_json,
    read_parquet,
    write_geojson,
    write_geojson_stream,
    write_json,
    write_json_stream,
    write_parquet,
    write_parquet_stream,
)
from cellvit.io.geojson import _NAMESPACE, _identity
from cellvit.io.stream import blocks
from cellvit.io.text import ring_texts
from cellvit.types import Nuclei

any_cut_tables = cut_tables(st.one_of(loose_outlines, grid_outlines, star_outlines()))


def assert_all_same(one, two):
    assert_same(one, two)
    assert (one.embedding is None) == (two.embedding is None)
    if one.embedding is not None:
        np.testing.assert_array_equal(one.embedding, two.embedding)


@contextmanager
def small_blocks(rows):
    with patch("cellvit.io.text.CHUNK", rows), patch("cellvit.io.parquet._ROW_GROUP", rows):
        yield


def write_stream(stream, path, **options):
    """Write Parquet from a stream as the other formats do."""
    about = {"classes": stream.classes, "embedding_dim": stream.embedding_dim}
    return write_parquet_stream(stream, path, **about, **options)


# --- blocks ---------------------------------------------------------------------------------------------------------


@given(any_cut_tables, st.integers(1, 7))
def test_blocks_are_full_and_hold_all_rows_in_order(cut, size):
    table, cuts = cut
    stream = CutStream(table, cuts)
    found = list(blocks(stream, size, classes=stream.classes, embedding_dim=stream.embedding_dim))
    assert [row for row, _ in found] == list(range(0, len(table), size))
    assert [len(block) for _, block in found[:-1]] == [size] * (len(found) - 1)
    assert all(len(block) for _, block in found)
    if found:
        assert_all_same(table, Nuclei.concatenate([block for _, block in found]))
    plain = blocks(stream, size, classes=stream.classes, embedding_dim=None)
    assert all(block.embedding is None for _, block in plain)


@given(any_cut_tables, st.integers(0, 12), st.integers(0, 12))
def test_a_slice_is_selecting_them_without_a_copy(cut, start, count):
    table, _ = cut
    part = table[start : start + count]
    assert_all_same(table.select(np.arange(len(table))[start : start + count]), part)
    if len(part):
        assert np.shares_memory(part.centroid, table.centroid)


def test_chunks_that_differ_from_their_stream_are_refused():
    table = with_embedding(many(3), 4)
    other = Nuclei(**{**table.__dict__, "classes": None})
    with pytest.raises(DataError, match=r"chunk at nucleus 3 has the types None, the stream \('Background'"):
        list(blocks([table, other], 2, classes=PANNUKE, embedding_dim=4))
    with pytest.raises(DataError, match="chunk at nucleus 3 has no embedding, the stream 4"):
        list(blocks([table, many(1)], 2, classes=PANNUKE, embedding_dim=4))
    with pytest.raises(DataError, match="chunk at nucleus 0 has embeddings of width 4, the stream 5"):
        list(blocks([table], 2, classes=PANNUKE, embedding_dim=5))
    # a chunk without rows is of any kind
    empty = Nuclei.empty(classes=None)
    assert [len(b) for _, b in blocks([empty, table, empty], 2, classes=PANNUKE, embedding_dim=4)] == [2, 1]


@pytest.mark.parametrize("kind", ["geojson", "points", "json", "parquet"])
def test_writers_hold_few_chunks(tmp_path, kind):
    alive, most = [], [0]

    class Watched(CutStream):
        def __iter__(self):
            for _ in range(12):
                chunk = with_embedding(many(24), 3)
                alive.append(weakref.ref(chunk.type_prob))  # owns its memory, which every view keeps alive
                yield chunk
                del chunk
                most[0] = max(most[0], sum(ref() is not None for ref in alive))

    stream = Watched(with_embedding(many(24), 3), [], count=12 * 24)
    writers = {
        "geojson": lambda: write_geojson_stream(stream, tmp_path / "a"),
        "points": lambda: write_geojson_stream(stream, tmp_path / "a", points=True),
        "json": lambda: write_json_stream(stream, tmp_path / "a"),
        "parquet": lambda: write_stream(stream, tmp_path / "a"),
    }
    with small_blocks(16):
        writers[kind]()
    assert 0 < most[0] <= 2


# --- the same bytes however the chunks are cut ----------------------------------------------------------------------


@given(any_cut_tables, st.integers(1, 5), st.booleans())
@settings(max_examples=40)
def test_geojson_does_not_depend_on_the_cuts(cut, rows, points):
    table, cuts = cut
    with TemporaryDirectory() as folder, small_blocks(rows):
        for suffix in (".geojson", ".geojson.gz"):
            write_geojson(table, Path(folder, f"whole{suffix}"), points=points)
            write_geojson_stream(CutStream(table, cuts), Path(folder, f"cut{suffix}"), points=points)
            assert Path(folder, f"whole{suffix}").read_bytes() == Path(folder, f"cut{suffix}").read_bytes()
        text = Path(folder, "cut.geojson").read_text()
    features = json.loads(text)["features"]
    # what is formatted by hand is what the encoder of the standard library writes
    expected = [json.dumps(feature, separators=(",", ":")) for feature in features]
    assert [line.removesuffix(",") for line in text.splitlines()[1:-1] if line] == expected
    assert [uuid.UUID(feature["id"]).version for feature in features] == [5] * len(table)


@given(any_cut_tables, st.integers(1, 5))
@settings(max_examples=40)
def test_json_does_not_depend_on_the_cuts(cut, rows):
    table, cuts = cut
    with TemporaryDirectory() as folder, small_blocks(rows):
        for suffix in (".json", ".json.gz"):
            write_json(table, Path(folder, f"whole{suffix}"), metadata={"a": 1})
            write_json_stream(CutStream(table, cuts), Path(folder, f"cut{suffix}"), metadata={"a": 1})
            assert Path(folder, f"whole{suffix}").read_bytes() == Path(folder, f"cut{suffix}").read_bytes()
        text = Path(folder, "cut.json").read_text()
    cells = [json.dumps(cell, separators=(",", ":")) for cell in json.loads(text)["cells"]]
    assert [line.removesuffix(",") for line in text.splitlines()[3:-1] if line] == cells


@given(any_cut_tables, st.integers(1, 5), st.booleans())
@settings(max_examples=40)
def test_parquet_does_not_depend_on_the_cuts(cut, rows, geometry):
    table, cuts = cut
    with TemporaryDirectory() as folder, small_blocks(rows):
        write_parquet(table, Path(folder, "whole"), metadata={"a": 1}, geometry=geometry)
        count = write_stream(CutStream(table, cuts), Path(folder, "cut"), metadata={"a": 1}, geometry=geometry)
        assert Path(folder, "whole").read_bytes() == Path(folder, "cut").read_bytes()
        assert count == len(table)
        assert_all_same(table, read_parquet(Path(folder, "cut")))
        stream = ParquetStream(Path(folder, "cut"))
        assert len(stream) == len(table)
        assert_all_same(table, Nuclei.concatenate([Nuclei.empty(embedding_dim=stream.embedding_dim), *stream]))


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 9), st.just(2)), elements=coordinates), st.data())
def test_outlines_are_the_text_of_the_encoder(points, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(points)), max_size=3)))
    lengths = np.diff([0, *cuts, len(points)])
    offsets = ring_offsets(lengths)
    whole = all(float(v).is_integer() for v in points.flat)
    numbers = [[int(v) if whole else v for v in point] for point in points.tolist()]
    expected = [json.dumps(numbers[a:b], separators=(",", ":")) for a, b in pairwise(offsets)]
    assert ring_texts(points, offsets) == expected


@given(st.text())
def test_ids_are_uuids_of_version_five(name):
    assert _identity(name) == str(uuid.uuid5(_NAMESPACE, name))


def test_ids_do_not_depend_on_the_cuts_and_differ_for_twins(tmp_path):
    table = make_nuclei([square(0, 0)] * 5, label=[1] * 5)
    write_geojson_stream(CutStream(table, [1, 3]), tmp_path / "a.geojson")
    ids = [f["id"] for f in json.loads((tmp_path / "a.geojson").read_text())["features"]]
    assert len(set(ids)) == 5
    write_geojson(table, tmp_path / "b.geojson")
    assert ids == [f["id"] for f in json.loads((tmp_path / "b.geojson").read_text())["features"]]


def test_more_than_a_block_of_the_real_size(tmp_path):
    table = many(9000, points=5)
    stream = CutStream(table, [10, 4090, 4100])
    write_geojson(table, tmp_path / "a.geojson")
    write_geojson_stream(stream, tmp_path / "b.geojson")
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()
    assert_same(table, read_geojson(tmp_path / "b.geojson"))
    write_json_stream(stream, tmp_path / "b.json.gz")
    assert_same(table, read_json(tmp_path / "b.json.gz"), ("bbox", "type", "type_prob", "label"))


# --- streams that end early -----------------------------------------------------------------------------------------


class Failing(CutStream):
    def __iter__(self):
        yield from super().__iter__()
        raise KeyError("mine")


@pytest.mark.parametrize(
    "write", [write_geojson_stream, write_json_stream, write_stream], ids=["geojson", "json", "parquet"]
)
def test_an_error_of_the_stream_comes_through_and_leaves_no_file(tmp_path, write):
    stream = Failing(many(20, points=4), [10])
    with small_blocks(4), pytest.raises(KeyError, match="mine"):
        write(stream, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "write", [write_geojson_stream, write_json_stream, write_stream], ids=["geojson", "json", "parquet"]
)
def test_coordinates_that_are_not_finite_are_named_by_their_row_in_the_stream(tmp_path, write):
    table = many(20, points=4)
    table.bbox[17, 2] = np.inf
    with small_blocks(4), pytest.raises(DataError, match="bbox of nucleus 17 holds"):
        write(CutStream(table, [5, 15]), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_outline_too_large_for_an_area_is_named(tmp_path):
    table = make_nuclei([square(0, 0), [(0, 0), (1e200, 0), (0, 1e200)]])
    with np.errstate(over="ignore"), pytest.raises(DataError, match="outline of nucleus 1 is too large"):
        write_geojson(table, tmp_path / "a.geojson")


def test_kinds_of_object_are_checked_first(tmp_path):
    with pytest.raises(ConfigError, match="'tile'"):
        write_geojson_stream(as_stream(make_nuclei([])), tmp_path / "a.geojson", object_type="tile")


# --- patches of the released layout ---------------------------------------------------------------------------------


def patches_of(nuclei):
    row = (nuclei.centroid[:, 1] // 100).astype(np.int64)
    column = (nuclei.centroid[:, 0] // 100).astype(np.int64)
    place = np.stack([row, column], axis=1)
    return Patches(place, row % 9, place * 100)


@given(cut_tables(), st.integers(1, 5))  # open outlines: a reader opens the others
@settings(max_examples=30)
def test_patches_are_written_per_nucleus(cut, rows):
    table, cuts = cut
    with TemporaryDirectory() as folder, small_blocks(rows):
        path = Path(folder, "a.json")
        write_json_stream(CutStream(table, cuts), path, patches=patches_of)
        cells = json.loads(path.read_text())["cells"]
        assert_same(table, read_json(path), ("bbox", "type", "type_prob", "label"))
    expected = patches_of(table)
    assert [cell["patch_coordinates"] for cell in cells] == expected.coordinates.tolist()
    assert [cell["cell_status"] for cell in cells] == expected.status.tolist()
    assert [cell["offset_global"] for cell in cells] == expected.offset.tolist()


def test_a_patch_too_few_is_an_error(tmp_path):
    def too_few(nuclei):
        found = patches_of(nuclei)
        return found._replace(status=found.status[1:])

    with pytest.raises(DataError, match=r"patches of \[3, 2, 3\] rows for 3 nuclei"):
        write_json_stream(as_stream(many(3)), tmp_path / "a.json", patches=too_few)
    assert list(tmp_path.iterdir()) == []


# --- Parquet as a stream --------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    table = with_embedding(many(20, points=6), 3)
    with small_blocks(8):
        write_parquet(table, tmp_path / "a.parquet", metadata={"mpp": 0.25})
    return table, tmp_path / "a.parquet"


def test_a_file_is_a_stream_of_its_row_groups(file):
    table, path = file
    stream = ParquetStream(path)
    assert (len(stream), stream.classes, stream.embedding_dim) == (20, PANNUKE, 3)
    assert stream.metadata == {"mpp": 0.25}
    for _ in range(2):
        chunks = list(stream)
        assert [len(c) for c in chunks] == [8, 8, 4]
        assert_all_same(table, Nuclei.concatenate(chunks))


def test_embeddings_can_be_left_out(file):
    table, path = file
    stream = ParquetStream(path, embedding=False)
    assert stream.embedding_dim is None
    assert_all_same(Nuclei(**{**table.__dict__, "embedding": None}), Nuclei.concatenate(list(stream)))


def test_a_stream_of_a_file_gives_the_same_file(file, tmp_path):
    _, path = file
    with small_blocks(8):
        write_stream(ParquetStream(path), tmp_path / "b.parquet", metadata={"mpp": 0.25})
    assert path.read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_row_groups_are_limited_by_their_embeddings(tmp_path):
    table = with_embedding(many(11), 4)
    with patch("cellvit.io.parquet._EMBEDDING_BYTES", 5 * 4 * 4):
        write_parquet(table, tmp_path / "a.parquet")
    assert [len(c) for c in ParquetStream(tmp_path / "a.parquet")] == [5, 5, 1]
    assert_all_same(table, read_parquet(tmp_path / "a.parquet"))


@pytest.mark.parametrize("width", [None, 384])
@pytest.mark.parametrize("chunks", [0, 2])
def test_zero_nuclei_have_all_columns(tmp_path, width, chunks):
    empty = Nuclei.empty(embedding_dim=width, classes=PANNUKE)
    path = tmp_path / "a.parquet"
    assert write_parquet_stream([empty] * chunks, path, classes=PANNUKE, embedding_dim=width) == 0
    stream = ParquetStream(path)
    assert (len(stream), stream.classes, stream.embedding_dim) == (0, PANNUKE, width)
    assert sum(len(c) for c in stream) == 0
    assert_all_same(empty, read_parquet(path))
    assert "geometry" in pq.read_schema(path).names
    write_geojson_stream(stream, tmp_path / "a.geojson.gz")
    write_json_stream(stream, tmp_path / "a.json")
    for read in (read_geojson(tmp_path / "a.geojson.gz"), read_json(tmp_path / "a.json")):
        assert_same(Nuclei.empty(classes=PANNUKE), read)


def test_streams_of_files_that_are_not_ours_are_errors(file, tmp_path):
    _, path = file
    with pytest.raises(DataError, match="does not exist"):
        ParquetStream(tmp_path / "missing.parquet")
    (tmp_path / "b.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"b\.parquet.*not a readable Parquet"):
        ParquetStream(tmp_path / "b.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["bbox"]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet.*lacks the columns \['bbox'\]"):
        ParquetStream(tmp_path / "c.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet.*no cellvit metadata"):
        ParquetStream(tmp_path / "d.parquet")


def test_a_row_group_that_is_damaged_is_an_error_when_it_comes(file, tmp_path):
    _, path = file
    second = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = second.dictionary_page_offset or second.data_page_offset
    data[start : start + second.total_compressed_size] = b"\xff" * second.total_compressed_size
    (tmp_path / "b.parquet").write_bytes(data)
    chunks = iter(ParquetStream(tmp_path / "b.parquet"))
    assert len(next(chunks)) == 8
    with pytest.raises(DataError, match=r"b\.parquet.*not a readable Parquet"):
        next(chunks)


@pytest.mark.parametrize("count", [0, 20])
def test_geopandas_reads_the_polygons(tmp_path, count):
    table = with_embedding(many(count), 3)
    with small_blocks(8):
        write_parquet(table, tmp_path / "a.parquet")
    frame = geopandas.read_parquet(tmp_path / "a.parquet")
    assert len(frame) == count
    assert frame.crs is None
    assert frame.geometry.name == "geometry"
    assert set(frame.geom_type) <= {"Polygon"}
    assert frame.is_valid.all()
    assert frame["label"].tolist() == table.label.tolist()
    expected = [np.append(table.contour(i), table.contour(i)[:1], axis=0).tolist() for i in range(count)]
    assert [[list(p) for p in g.exterior.coords] for g in frame.geometry] == expected


def test_as_stream_gives_a_table_as_one_chunk_and_a_stream_as_it_is(file):
    table, path = file
    stream = as_stream(table)
    assert (len(stream), stream.classes, stream.embedding_dim) == (20, PANNUKE, 3)
    assert [chunk is table for chunk in stream] == [True]
    whole = ParquetStream(path)
    assert as_stream(whole) is whole
