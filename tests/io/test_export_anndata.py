import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import anndata
import h5py
import numpy as np
import pytest
from export_samples import (
    PANNUKE,
    CutStream,
    assert_same,
    cut_tables,
    grid_outlines,
    loose_outlines,
    make_nuclei,
    many,
    square,
    with_embedding,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.io import read_anndata, write_anndata
from cellvit.types import Nuclei, NucleiClasses

COLUMNS = ("centroid", "bbox", "type", "type_prob", "label")

any_cut_tables = cut_tables(st.one_of(loose_outlines, grid_outlines))


def without_nul(table):
    return all("\0" not in name for name in (table.classes.names if table.classes else ()))


@given(any_cut_tables, st.integers(1, 5))
@settings(max_examples=20)
def test_reading_gives_back_all_but_outlines_however_the_chunks_are_cut(cut, rows):
    table, cuts = cut
    assume(without_nul(table))
    with TemporaryDirectory() as folder, patch("cellvit.io.text.CHUNK", rows):
        write_anndata(table, Path(folder, "whole.h5ad"), metadata={"a": 1})
        write_anndata(CutStream(table, cuts), Path(folder, "cut.h5ad"), metadata={"a": 1})
        assert Path(folder, "whole.h5ad").read_bytes() == Path(folder, "cut.h5ad").read_bytes()
        read = read_anndata(Path(folder, "cut.h5ad"))
    assert_same(table, read, COLUMNS)
    assert len(read.contour_points) == 0
    assert (table.embedding is None) == (read.embedding is None)
    if table.embedding is not None:
        np.testing.assert_array_equal(table.embedding, read.embedding)


def test_the_file_is_anndata_as_the_packages_around_scanpy_have_it(tmp_path):
    bow_tie = [(0, 0), (10, 10), (10, 0), (0, 10)]
    table = make_nuclei([square(0, 0), bow_tie, square(40, 0)], type=[3, 0, 9], type_prob=[0.25, np.nan, 1])
    table = with_embedding(table, 4)
    write_anndata(table, tmp_path / "a.h5ad", metadata={"mpp": 0.25, "name": "é"})
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert data.shape == (3, 0)
    assert data.X is None
    assert data.obs_names.tolist() == ["1", "2", "3"]
    assert data.obs.columns.tolist() == ["label", "type", "type_id", "type_prob", "area_px"]
    # only those that occur, and none missing: squidpy divides by their number, and cannot read a missing one
    assert data.obs["type"].cat.categories.tolist() == ["No type", "Connective", "Type 9"]
    assert data.obs["type"].tolist() == ["Connective", "No type", "Type 9"]
    assert data.obs["type_id"].tolist() == [3, 0, 9]
    assert data.obs["area_px"].tolist() == [Polygon(square(0, 0)).area, 25, 64]
    assert data.obsm["spatial"].dtype == np.float64
    assert data.obsm["spatial"].tolist() == table.centroid.tolist()
    assert data.obsm["embedding"].dtype == np.float32
    # scanpy takes the colours of a column from uns[f"{column}_colors"]: one for every category
    assert data.uns["type_colors"].tolist()[:2] == ["#808080", "#6375ff"]
    assert len(data.uns["type_colors"]) == 3
    about = data.uns["cellvit"]
    assert (about["version"], about["frame"]) == (2, "pixel-corners")
    assert json.loads(about["metadata"]) == {"mpp": 0.25, "name": "é"}
    assert json.loads(about["classes"])[2] == {"name": "Inflammatory", "color": [24, 229, 167]}


def test_the_package_itself_writes_the_same_content(tmp_path):
    table = with_embedding(many(50), 4)
    write_anndata(table, tmp_path / "a.h5ad", metadata={"mpp": 0.25})
    anndata.read_h5ad(tmp_path / "a.h5ad").write_h5ad(tmp_path / "b.h5ad")

    def content(path):
        found = {}
        with h5py.File(path) as file:
            found["/"] = dict(file.attrs)
            file.visititems(lambda name, item: found.__setitem__(name, {k: str(v) for k, v in item.attrs.items()}))
        return found

    assert content(tmp_path / "a.h5ad") == content(tmp_path / "b.h5ad")


def test_a_part_of_the_observations_is_read(tmp_path):
    table = with_embedding(many(30), 4)
    write_anndata(table, tmp_path / "a.h5ad")
    rows = np.arange(3, 30, 4)
    part = anndata.read_h5ad(tmp_path / "a.h5ad")[rows].copy()
    part.obs["cluster"] = "x"
    part.write_h5ad(tmp_path / "b.h5ad")
    assert_same(table.select(rows), read_anndata(tmp_path / "b.h5ad"), COLUMNS)


def test_places_are_also_in_microns_where_the_resolution_is_known(tmp_path):
    table = many(5)
    for facts, known in (({"base_mpp": 0.25}, True), ({}, False)):
        write_anndata(table, tmp_path / "a.h5ad", metadata=facts)
        data = anndata.read_h5ad(tmp_path / "a.h5ad")
        assert data.uns["cellvit"]["spatial_unit"] == "px"
        assert ("spatial_um" in data.obsm) == known
        if known:
            np.testing.assert_array_equal(data.obsm["spatial_um"], table.centroid * 0.25)


def test_a_name_that_was_changed_wins_over_the_number_beside_it(tmp_path):
    table = make_nuclei([square(20 * i, 0) for i in range(6)], type=[1, 1, 2, 2, 0, 5])
    write_anndata(table, tmp_path / "a.h5ad")
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    names = data.obs["type"].astype(object)
    names.iloc[[0, 2, 3, 4]] = ["Inflammatory", "Mitosis", None, "Dead"]
    data.obs["type"] = names.astype("category")
    data[::-1].copy().write_h5ad(tmp_path / "b.h5ad")
    read = read_anndata(tmp_path / "b.h5ad")
    assert read.type.tolist() == [5, 4, 0, 6, 1, 2]
    assert read.classes.names == (*PANNUKE.names, "Mitosis")
    assert read.classes.colors[:6] == PANNUKE.colors
    assert read.label.tolist() == [6, 5, 4, 3, 2, 1]


@pytest.mark.filterwarnings("ignore")  # those of squidpy and numba
@pytest.mark.parametrize("types", [[1, 2, 3, 5], [0, 1, 2, 3, 4, 5], [2], [0]])
def test_squidpy_can_use_every_file(tmp_path, types):
    squidpy = pytest.importorskip("squidpy", reason="squidpy is no dependency: it is large, and pins others")
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1000, (80, 2))
    table = make_nuclei([square(x, y) for x, y in points], type=rng.choice(types, 80))
    write_anndata(table, tmp_path / "a.h5ad", metadata={"base_mpp": 0.25})
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    squidpy.gr.spatial_neighbors(data, coord_type="generic", spatial_key="spatial_um")
    kinds = len(set(table.type.tolist()))
    if kinds > 1:  # with one type there is nothing to compare, and 1.8.2 divides by the number of all others
        squidpy.gr.nhood_enrichment(data, cluster_key="type", n_perms=10, show_progress_bar=False, seed=0)
        assert np.isfinite(data.uns["type_nhood_enrichment"]["zscore"]).all()
        found, _ = squidpy.gr.co_occurrence(data, cluster_key="type", copy=True, show_progress_bar=False)
        assert found.shape[:2] == (kinds, kinds)
        squidpy.gr.centrality_scores(data, cluster_key="type", show_progress_bar=False)
        assert data.uns["type_centrality_scores"].shape[0] == kinds


@pytest.mark.parametrize("classes", [PANNUKE, None])
@pytest.mark.parametrize("width", [None, 384])
def test_zero_nuclei_have_all_columns(tmp_path, width, classes):
    write_anndata(Nuclei.empty(embedding_dim=width, classes=classes), tmp_path / "a.h5ad")
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert data.obsm["spatial"].shape == (0, 2)
    assert data.obs.columns.tolist() == ["label", "type", "type_id", "type_prob", "area_px"]
    assert len(data.obs["type"].cat.categories) == len(data.uns["type_colors"]) == 0
    read = read_anndata(tmp_path / "a.h5ad")
    assert read.classes == classes
    assert (None if read.embedding is None else read.embedding.shape) == (None if width is None else (0, width))


def test_types_of_one_name_stay_apart(tmp_path):
    names = ("Background", "a", "a (3)", "a")
    classes = NucleiClasses(names, ((0, 0, 0),) * 4)
    table = make_nuclei([square(0, 0)] * 3, type=[1, 2, 3], classes=classes)
    write_anndata(table, tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obs["type"].tolist() == ["a", "a (3)", "a (3) (3)"]
    assert read_anndata(tmp_path / "a.h5ad").classes == classes


def test_the_time_does_not_enter_the_file(tmp_path):
    table = with_embedding(many(10), 4)
    write_anndata(table, tmp_path / "a.h5ad")
    time.sleep(1.1)  # HDF5 would store seconds
    write_anndata(table, tmp_path / "b.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()


def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path):
    path, table = tmp_path / "a.h5ad", many(9)
    for count in (8, 10):
        with pytest.raises(DataError, match=f"holds {count} nuclei but gave 9"):
            write_anndata(CutStream(with_embedding(table, 2), [4], count=count), path)
    with pytest.raises(DataError, match="plain data"):
        write_anndata(table, path, metadata={"a": object()})
    named = NucleiClasses(("Background", "a\0b"), ((0, 0, 0),) * 2)
    with pytest.raises(DataError, match="NUL"):
        write_anndata(make_nuclei([square(0, 0)], classes=named), path)
    table.contour_points[31] = np.nan
    with patch("cellvit.io.text.CHUNK", 1), pytest.raises(DataError, match="contour_points of nucleus 1"):
        write_anndata(table, path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="create it first"):
        write_anndata(table, tmp_path / "missing" / "a.h5ad")


def test_a_full_disk_is_told_as_such(tmp_path):
    def close_fails(self):
        raise RuntimeError("Can't decrement id ref count (file write failed: errno = 28, error message = 'No space')")

    with patch("h5py.File.close", close_fails), pytest.raises(OutputError, match=r"No space.*free some space"):
        write_anndata(many(3), tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["h5py", "anndata.io"])
def test_a_package_that_is_missing_is_named_with_its_cure(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"'{package}'.*from a checkout: pip install '\.\[spatial\]'"):
        write_anndata(many(3), tmp_path / "a.h5ad")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ConfigError, match="'anndata'"):
        read_anndata(tmp_path / "a.h5ad")


def test_files_that_are_not_ours_are_errors(tmp_path):
    path = tmp_path / "a.h5ad"
    with pytest.raises(DataError, match="does not exist"):
        read_anndata(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"a\.h5ad.*not AnnData of nuclei"):
        read_anndata(path)
    write_anndata(many(3), path)
    data = anndata.read_h5ad(path)
    for change in ("version", "classes", "spatial"):
        other = data.copy()
        if change == "spatial":
            del other.obsm["spatial"]
        else:
            other.uns["cellvit"] = {**other.uns["cellvit"], change: "3"}
        other.write_h5ad(path)
        with pytest.raises(DataError, match="update cellvit" if change == "version" else r"a\.h5ad"):
            read_anndata(path)


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, cellvit.io as e; print([m for m in ('anndata', 'h5py', 'spatialdata') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
