"""The frame of coordinates: files state it, and files from before it was stated count from the centres of pixels."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pytest
import shapely
from export_samples import PANNUKE, assert_same, make_nuclei, square

from cellvit import io, read_nuclei
from cellvit.errors import DataError
from cellvit.evaluation.rasterize import draw_outlines
from cellvit.io import detections
from cellvit.io.frames import to_pixel_centres
from cellvit.io.valid_polygons import polygons_from_rings
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import Nuclei

COLUMNS = ("centroid", "bbox", "type", "label", "contour_offsets", "contour_points")


def discs(pixel=(1.0, 1.0)):
    """Return nuclei of a map, as pixels of some size, and the map."""
    instances = np.zeros((60, 90), np.int32)
    y, x = np.indices(instances.shape)
    for label, (row, column, radius) in enumerate([(10, 10, 8), (30, 40, 12), (45, 70, 9), (20, 70, 1)], 1):
        instances[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = label
    instances[58, 3:9] = 5
    nuclei = nuclei_from_instances(instances, min_contour_points=1).nuclei
    return replace(nuclei.transform(scale=pixel), classes=PANNUKE), instances


def as_before(nuclei, pixel=(1.0, 1.0)):
    """Return nuclei as they were before files stated a frame."""
    points, offsets = to_pixel_centres(nuclei.contour_points, nuclei.contour_offsets, pixel=pixel)
    return replace(nuclei, centroid=nuclei.centroid - 0.5, contour_points=points, contour_offsets=offsets)


def assert_same_outlines(one, two, within=0.0):
    """Compare outlines, which may start at different corners."""
    a, b = (polygons_from_rings(n.contour_points, n.contour_offsets) for n in (one, two))
    assert shapely.equals_exact(shapely.normalize(a), shapely.normalize(b), within).all()


def write_parquet(nuclei, path):
    table = io.to_arrow(nuclei).drop_columns(["classification"])
    facts = json.loads(table.schema.metadata[b"cellvit"])
    del facts["frame"]
    facts = json.dumps({**facts, "version": 1}).encode()
    io.parquet.pq.write_table(table.replace_schema_metadata({b"cellvit": facts}), path)


def write_geojson(nuclei, path, *, member=True):
    io.write_geojson(nuclei, path)
    data = json.loads(path.read_text())
    for feature in data["features"]:
        label = feature["properties"]["measurements"].pop("Nucleus: Label")
        feature["properties"]["nucleus"]["label"] = label
    data["cellvit"] = {"version": 1, "classes": data["cellvit"]["classes"]}
    if not member:  # as after other programs
        del data["cellvit"]
    path.write_text(json.dumps(data))


def write_h5ad(nuclei, path):
    io.write_anndata(nuclei, path)
    data = anndata.read_h5ad(path)
    data.uns["cellvit"] = {"version": 1, **{name: data.uns["cellvit"][name] for name in ("classes", "metadata")}}
    data.write_h5ad(path)


@pytest.mark.parametrize("pixel", [(1.0, 1.0), (1.6, 1.57), (0.5, 0.5)])
@pytest.mark.parametrize("write", [write_parquet, write_geojson])
def test_files_that_state_no_frame_are_converted(tmp_path, write, pixel):
    nuclei, _ = discs(pixel)
    path = tmp_path / {write_parquet: "a.parquet", write_geojson: "a.geojson"}[write]
    write(as_before(nuclei, pixel), path)
    read = read_nuclei(path)
    assert_same_outlines(read, nuclei, within=0 if pixel == (1, 1) else 0.02)
    np.testing.assert_allclose(read.centroid, nuclei.centroid, atol=1e-9)
    np.testing.assert_array_equal(read.bbox, nuclei.bbox)


def test_centroids_of_an_old_table_of_annotations_are_moved(tmp_path):
    nuclei, _ = discs()
    write_h5ad(as_before(nuclei), tmp_path / "a.h5ad")
    np.testing.assert_allclose(read_nuclei(tmp_path / "a.h5ad").centroid, nuclei.centroid)


@pytest.mark.parametrize("suffix", [".parquet", ".geojson", ".json"])
def test_old_and_new_files_are_drawn_as_the_same_pixels(tmp_path, suffix):
    nuclei, instances = discs()
    old, new = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    writers = {".parquet": io.write_parquet, ".geojson": io.write_geojson, ".json": io.write_json}
    writers[suffix](nuclei, new)
    if suffix == ".json":  # the released layout is what it was
        assert json.loads(new.read_text())["cells"][0]["contour"] == as_before(nuclei).contour(0).astype(int).tolist()
        old = new
    else:
        {".parquet": write_parquet, ".geojson": write_geojson}[suffix](as_before(nuclei), old)
    for path in (old, new):
        found = detections.read_nuclei(path)
        assert found.corners
        np.testing.assert_array_equal(draw_outlines(found.outlines, instances.shape), instances)


def test_an_old_file_that_lost_its_head_is_known_by_its_features(tmp_path):
    nuclei, _ = discs()
    write_geojson(as_before(nuclei), tmp_path / "a.geojson", member=False)
    read = read_nuclei(tmp_path / "a.geojson")
    assert_same_outlines(read, nuclei)
    np.testing.assert_allclose(read.centroid, nuclei.centroid)


def test_the_frame_is_stated_and_one_that_is_unknown_refused(tmp_path):
    nuclei, _ = discs()
    table = io.to_arrow(nuclei)
    assert io.arrow.read_facts(table)["frame"] == "pixel-corners"
    facts = json.dumps({**io.arrow.read_facts(table), "frame": "microns"}).encode()
    with pytest.raises(DataError, match="'microns', which is unknown; update cellvit"):
        io.from_arrow(table.replace_schema_metadata({b"cellvit": facts}))
    io.write_geojson(nuclei, tmp_path / "a.geojson")
    data = json.loads((tmp_path / "a.geojson").read_text())
    assert data["cellvit"]["frame"] == "pixel-corners"
    data["cellvit"]["frame"] = "microns"
    (tmp_path / "a.geojson").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"a\.geojson.*'microns'"):
        read_nuclei(tmp_path / "a.geojson")


def test_outlines_of_others_are_taken_as_qupath_draws_them(tmp_path):
    ring = [*square(2, 3), square(2, 3)[0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "a.geojson").write_text(json.dumps([feature]))
    read = read_nuclei(tmp_path / "a.geojson")
    assert (read.bbox.tolist(), read.centroid.tolist()) == ([[2, 3, 10, 11]], [[6, 7]])
    assert not detections.read_nuclei(tmp_path / "a.geojson").corners  # evaluate is told by --pixel-corners


def test_nuclei_without_outline_and_of_one_pixel_pass_every_format(tmp_path):
    nuclei = make_nuclei([[], [(4, 4), (4, 5), (5, 5), (5, 4)]], type=[1, 2])
    for suffix, write in ((".parquet", io.write_parquet), (".json", io.write_json)):
        write(nuclei, tmp_path / f"a{suffix}")
        assert_same(nuclei, read_nuclei(tmp_path / f"a{suffix}"), COLUMNS)
    io.write_geojson(nuclei, tmp_path / "a.geojson")
    read = read_nuclei(tmp_path / "a.geojson")  # the first is its box there
    assert_same(nuclei, read, ("centroid", "bbox", "type", "label"))


def test_centroids_alone_are_moved_too(tmp_path):
    nuclei = Nuclei.empty(classes=PANNUKE)
    nuclei = replace(
        nuclei,
        centroid=np.array([[3.5, 4.5]]),
        bbox=np.array([[3.0, 4, 4, 5]]),
        type=np.ones(1, np.int32),
        type_prob=np.ones(1, np.float32),
        label=np.ones(1, np.int32),
        contour_offsets=np.array([0, 4]),
        contour_points=np.array([[3.0, 4], [4, 4], [4, 5], [3, 5]]),
    )
    write_parquet(as_before(nuclei), tmp_path / "old.parquet")
    (light,) = io.ParquetStream(tmp_path / "old.parquet", outlines=False)
    assert light.centroid.tolist() == [[3.5, 4.5]]
    assert light.contour_offsets.tolist() == [0, 0]
