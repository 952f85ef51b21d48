"""Measuring on slides: what tiles give is what outlines give, and what does not belong together is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_shape_stain_texture import ellipses, stained

from cellvit import io
from cellvit.cli import main
from cellvit.errors import DataError
from cellvit.geometry.raster import draw_rings
from cellvit.measurement import measure_nuclei, measured_names
from cellvit.measurement.measure import TileMeasurement, measure_missing, measure_pixels
from cellvit.measurement.neighbors import neighbor_columns
from cellvit.measurement.pixels import LabelledPixels
from cellvit.measurement.stains import RUIFROK
from cellvit.postprocess import nuclei_from_instances
from cellvit.slide.tiling import TileGrid
from cellvit.types import NucleiPrediction

MPP = (0.25, 0.25)


class Picture:
    """An image that is read in parts."""

    def __init__(self, image):
        self.image, self.height, self.width = image, *image.shape[:2]

    def read(self, x, y, width, height):
        return self.image[y : y + height, x : x + width]


@pytest.fixture(scope="module")
def scene():
    """A picture of 320 x 160 px and its nuclei, without those of one pixel or in a line."""
    labels = np.concatenate([ellipses(1), ellipses(2)], axis=1)
    labels[:, 160:][labels[:, 160:] > 0] += labels[:, :160].max()
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    found = nuclei_from_instances(labels)
    return stained(found.instance_map), found


def whole(image, found):
    return measure_pixels(LabelledPixels(found.instance_map, image, len(found.nuclei), MPP))


def assert_columns(one, two, *, rows=slice(None), atol=1e-5):
    for name, values in one.items():
        np.testing.assert_allclose(two[name][rows], values[rows], rtol=1e-4, atol=atol, err_msg=name)


def test_outlines_give_what_labels_give(scene):
    image, found = scene
    nuclei = found.nuclei
    drawn = draw_rings(nuclei.contour_points, nuclei.contour_offsets, image.shape[:2])
    same = np.array([((drawn == i) == (found.instance_map == i)).all() for i in range(1, len(nuclei) + 1)])
    assert same.mean() > 0.8  # the others consist of several pieces, or another covers them
    measured = measure_missing(Picture(image), nuclei, mpp=MPP, stains=RUIFROK).measurements
    inner = {name: values for name, values in whole(image, found).items() if "ring" not in name}
    assert_columns(inner, measured, rows=same)


def test_tiles_measure_what_they_hold_whole_and_the_rest_is_done_later(scene):
    image, found = scene
    grid = TileGrid(width=320, height=160, tile_size=192, overlap=64)
    measure = TileMeasurement(grid, MPP, RUIFROK)
    expected = whole(image, found)
    seen = np.zeros(len(found.nuclei), bool)
    for index in range(len(grid)):
        tile = grid.tile(index)
        part = nuclei_from_instances(found.instance_map[tile.slices])
        measured = measure(index, image[tile.slices], part).measurements
        original = found.instance_map[tile.slices][part.instance_map > 0]
        row = np.zeros(len(part.nuclei), int)
        row[part.instance_map[part.instance_map > 0] - 1] = original - 1
        known = np.flatnonzero(~np.isnan(measured["area_um2"]))
        boxes = found.nuclei.bbox[row[known]] - [tile.x, tile.y] * 2
        edges = (tile.x == 0, tile.x + tile.width == 320)
        whole_ring = ((boxes[:, 0] > 16) | edges[0]) & ((boxes[:, 2] < tile.width - 16) | edges[1])
        assert (((boxes[:, 0] > 3) | edges[0]) & ((boxes[:, 2] < tile.width - 3) | edges[1])).all()
        seen[row[known]] = True
        for name, values in measured.items():
            rows = known[whole_ring] if "ring" in name else known
            np.testing.assert_allclose(values[rows], expected[name][row[rows]], rtol=1e-4, atol=1e-4, err_msg=name)
    assert seen.all()


def test_a_nucleus_at_a_time_or_all_is_the_same(scene, monkeypatch):
    image, found = scene
    picture = Picture(image)
    at_once = measure_missing(picture, found.nuclei, mpp=MPP, stains=RUIFROK)
    monkeypatch.setattr("cellvit.measurement.measure._BLOCK", 48)
    monkeypatch.setattr("cellvit.measurement.measure.MAX_SIDE", 26)
    steps = []
    blocks = measure_missing(
        picture, found.nuclei, mpp=MPP, stains=RUIFROK, progress=lambda done, total: steps.append((done, total))
    )
    small = ~np.isnan(blocks.measurements["area_um2"])
    assert 0.7 < small.mean() < 1
    assert steps[-1] == (small.sum(), len(small))
    inner = {name: values for name, values in at_once.measurements.items() if "ring" not in name}
    assert_columns(inner, blocks.measurements, rows=small)  # rings reach into what is too large to be drawn
    again = measure_missing(picture, blocks, mpp=MPP, stains=RUIFROK)  # nothing that is known is done again
    assert_columns(blocks.measurements, again.measurements)


def test_a_damaged_place_costs_its_nuclei_only(scene):
    image, found = scene

    class Damaged(Picture):
        def read(self, x, y, width, height):
            raise io.images.ImageError("damaged")

    measured = measure_missing(Damaged(image), found.nuclei, mpp=None, stains=RUIFROK).measurements
    assert tuple(measured) == measured_names("px")
    assert all(np.isnan(values).all() for values in measured.values())


def test_outlines_that_cannot_be_drawn_are_not_measured(scene):
    image, found = scene
    nuclei = found.nuclei[:3]
    points = nuclei.contour_points.copy()
    points[nuclei.contour_offsets[1]] = np.nan
    points[nuclei.contour_offsets[2] :] += 5000
    measured = measure_missing(
        Picture(image), replace(nuclei, contour_points=points), mpp=MPP, stains=RUIFROK
    ).measurements
    assert np.isnan(measured["area_um2"]).tolist() == [False, True, True]


@pytest.fixture
def files(tmp_path, scene):
    """The picture as a file, and its nuclei as Parquet with embeddings."""
    image, found = scene
    Image.fromarray(image).save(tmp_path / "a.png")
    nuclei = replace(found.nuclei, embedding=np.arange(2 * len(found.nuclei), dtype=np.float32).reshape(-1, 2))
    facts = {"image": "a.png", "width": 320, "height": 160, "base_mpp": 0.25, "target_patch_mpp": 0.25}
    io.write_parquet(nuclei, tmp_path / "nuclei.parquet", metadata=facts)
    return tmp_path, nuclei


def test_the_verb_measures_a_table_and_keeps_all_else(files, capsys):
    folder, nuclei = files
    assert main(["measure", str(folder / "a.png"), "--nuclei", str(folder), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["unit"] == "µm"
    measured = io.ParquetStream(folder / "nuclei-measured.parquet")
    assert measured.metadata["stains"]["source"] == "estimated from the pixels (Macenko 2009)"
    assert measured.measurements == (*measured_names(), *neighbor_columns(None))
    read = io.read_parquet(folder / "nuclei-measured.parquet")
    np.testing.assert_array_equal(read.embedding, nuclei.embedding)
    np.testing.assert_array_equal(read.contour_points, nuclei.contour_points)
    assert main(["measure", str(folder / "a.png"), "--nuclei", str(folder)]) == 1
    assert "exists; pass --overwrite" in capsys.readouterr().err
    assert main(["measure", str(folder / "a.png"), "--nuclei", str(folder), "--overwrite"]) == 0
    assert "measurements each, lengths in µm" in capsys.readouterr().out


def test_outlines_of_qupath_and_an_unknown_resolution(files, capsys):
    folder, nuclei = files
    io.write_geojson(replace(nuclei, embedding=None), folder / "q.geojson")
    call = ["measure", str(folder / "a.png"), "--nuclei", str(folder / "q.geojson"), "--out"]
    assert main([*call, str(folder / "px.geojson")]) == 0
    assert "states no resolution: lengths and areas are in pixels; pass --mpp 0.25" in " ".join(
        capsys.readouterr().err.split()
    )
    (first, *_) = json.loads((folder / "px.geojson").read_text())["features"]
    assert "Nucleus: Area px^2" in first["properties"]["measurements"]
    assert main([*call, str(folder / "um.parquet"), "--mpp", "0.25"]) == 0
    microns = io.read_parquet(folder / "um.parquet").measurements
    pixels = io.read_geojson(folder / "px.geojson").measurements
    np.testing.assert_allclose(microns["area_um2"], pixels["area_px2"] / 16, rtol=1e-5)
    assert main([*call, str(folder / "a.txt")]) == 1
    assert main([*call, str(folder / "q.geojson"), "--overwrite"]) == 1
    assert "is the file of the nuclei itself" in " ".join(capsys.readouterr().err.split())


def test_the_table_of_another_slide_is_refused(files):
    folder, nuclei = files
    with pytest.raises(DataError, match=r"of 'b.svs', 9 x 9 px, and slide 'a.png' is 320 x 160; give the slide"):
        measure_nuclei(folder / "a.png", nuclei, facts={"image": "b.svs", "width": 9, "height": 9})
    with pytest.raises(DataError, match=r"nuclei lie outside of slide 'a.png', which is 320 x 160 px: they span x, y"):
        measure_nuclei(folder / "a.png", nuclei.transform(shift=(300, 0)), mpp=0.25)
    with pytest.raises(DataError, match="damaged"):
        measure_nuclei(folder / "a.png", nuclei, mpp=0.25, facts={"stains": {"hematoxylin": [1, 2]}})


def test_few_nuclei_or_none(files):
    folder, nuclei = files
    found = measure_nuclei(folder / "a.png", nuclei[:0], mpp=0.25)
    assert (len(found.nuclei), found.notes) == (0, ())
    assert tuple(found.nuclei.measurements) == (*measured_names(), *neighbor_columns(None))
    bare = replace(nuclei[:2], contour_points=np.zeros((0, 2)), contour_offsets=np.zeros(3, np.int64))
    found = measure_nuclei(folder / "a.png", bare, mpp=0.25)
    assert any("2 of 2 nuclei have no measurements but those of neighbours" in note for note in found.notes)
    assert not np.isnan(found.nuclei.measurements["nearest_um"]).any()


def test_a_prediction_of_another_shape_is_refused(scene):
    image, found = scene
    measure = TileMeasurement(TileGrid(width=320, height=160), MPP, RUIFROK)
    with pytest.raises(DataError, match="number them 1 to"):
        measure(0, image, NucleiPrediction(found.instance_map, found.nuclei[:3]))
