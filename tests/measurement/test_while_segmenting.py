"""Nuclei are measured while images and slides are segmented, and the files say how."""

import json

import numpy as np
import pytest
from PIL import Image
from support.stand_ins import DarkSpots

from cellvit import io
from cellvit.cli import main
from cellvit.errors import OutputError
from cellvit.geometry.polygons import polygon_area
from cellvit.inference.image import segment_image
from cellvit.inference.slide import segment_slide
from cellvit.measurement import measure_nuclei, measured_names
from cellvit.measurement.neighbors import neighbor_columns
from cellvit.measurement.stains import RUIFROK
from cellvit.types import NucleiClasses

CLASSES = NucleiClasses(("background", "dark"), ((0, 0, 0), (255, 0, 0)))
NAMES = (*measured_names(), *neighbor_columns(CLASSES))
PLAIN = {"device": "cpu", "workers": 0, "tissue_filter": False, "formats": ("geojson",), "tile_size": 256}


@pytest.fixture(scope="module")
def picture():
    """A pink picture of 700 x 400 px with round violet nuclei, one of which is longer than two tiles share."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:400, :700]
    inside = (((x % 50) - 24) ** 2 + ((y % 50) - 24) ** 2 < 100) | ((abs(y - 225) < 14) & (abs(x - 230) < 60))
    density = np.where(inside[..., None], np.array([0.65, 0.70, 0.29]) * 0.9, np.array([0.1, 0.9, 0.2]) * 0.25)
    return np.rint(255 * 10 ** -(density * rng.uniform(0.9, 1.1, (400, 700, 1)))).astype(np.uint8)


@pytest.fixture(scope="module")
def slide(picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    Image.fromarray(picture).save(folder / "a.png")
    found = segment_slide(folder / "a.png", folder / "out", model=DarkSpots(CLASSES), mpp=0.25, **PLAIN)
    return folder, found


def test_an_image_is_measured_whatever_its_tiles(picture):
    whole = segment_image(picture, model=DarkSpots(CLASSES), tile_size=1024)
    assert tuple(whole.measurements) == NAMES
    np.testing.assert_allclose(
        whole.measurements["area_um2"], polygon_area(whole.contour_points, whole.contour_offsets) / 16, rtol=1e-6
    )
    assert np.median(whole.measurements["hematoxylin_mean"]) == pytest.approx(0.9, abs=0.05)
    tiled = segment_image(picture, model=DarkSpots(CLASSES), tile_size=256)
    assert len(tiled) == len(whole)
    order, other = (np.lexsort(np.rint(nuclei.centroid.T)) for nuclei in (whole, tiled))
    for name, values in whole.measurements.items():
        if "ring" not in name:
            np.testing.assert_allclose(
                tiled.measurements[name][other], values[order], rtol=1e-4, atol=1e-4, err_msg=name
            )
    assert segment_image(picture, model=DarkSpots(CLASSES), measurements=False).measurements == {}
    given = segment_image(picture, model=DarkSpots(CLASSES), stains=RUIFROK).measurements["eosin_mean"]
    assert not np.array_equal(given, whole.measurements["eosin_mean"])


def test_no_stains_in_an_image_is_a_warning():
    grey = np.full((100, 100, 3), 240, np.uint8)
    grey[40:60, 40:60] = 30
    with pytest.warns(UserWarning, match="the published vectors of haematoxylin and eosin are used"):
        segment_image(grey, model=DarkSpots(CLASSES))
    segment_image(np.full((100, 100, 3), 240, np.uint8), model=DarkSpots(CLASSES))  # nothing was measured with them


def test_a_slide_has_the_same_measurements_in_all_files(slide):
    _, found = slide
    nuclei = found.nuclei()
    assert tuple(nuclei.measurements) == NAMES
    assert not np.isnan(nuclei.measurements["area_um2"]).any()
    assert nuclei.measurements["area_um2"].max() > 150  # the long one is whole
    assert found.summary["stains"]["source"].startswith("estimated")
    assert io.ParquetStream(found.out / "nuclei.parquet").metadata["stains"] == found.summary["stains"]
    read = io.read_geojson(found.out / "nuclei.geojson.gz").measurements
    for name, values in nuclei.measurements.items():
        if not np.isnan(values).all():
            np.testing.assert_array_equal(read[name], values, err_msg=name)


def test_measuring_again_gives_the_same(slide):
    folder, found = slide
    table = io.ParquetStream(found.out / "nuclei.parquet")
    again = measure_nuclei(folder / "a.png", found.nuclei(), facts=table.metadata)
    assert again.notes == ()
    for name, values in found.nuclei().measurements.items():
        if "ring" not in name:
            np.testing.assert_allclose(again.nuclei.measurements[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_slide_without_measurements(slide, tmp_path):
    folder, found = slide
    plain = segment_slide(
        folder / "a.png", tmp_path / "out", model=DarkSpots(CLASSES), mpp=0.25, measurements=False, **PLAIN
    )
    assert plain.nuclei().measurements == {}
    assert "stains" not in plain.summary
    with pytest.raises(OutputError, match="measurements was True, is False"):
        segment_slide(folder / "a.png", found.out, model=DarkSpots(CLASSES), mpp=0.25, measurements=False, **PLAIN)


def test_the_command_line_measures_a_result_folder_once_more(slide, capsys):
    folder, found = slide
    assert main(["measure", str(folder / "a.png"), "--nuclei", str(found.out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nuclei"] == len(found.nuclei())
