"""The shipped model on real tissue: a transformer sees its tile, so seams are tested where that matters."""

import csv
import warnings

import numpy as np
import pytest
import shapely
from scipy.spatial import cKDTree

from cellvit.inference.protocol import load_model
from cellvit.inference.slide import segment_slide
from cellvit.io.valid_polygons import polygons_from_rings, valid_rings
from cellvit.slide.open import is_slide
from cellvit.slide.stitching import CUT_MARGIN
from cellvit.slide.tiling import TileGrid

SETTINGS = {"device": "cpu", "workers": 0, "formats": ()}
NEAR = 32
FAR = 64
SAME = 5


def distance_to_seams(grid, points):
    """Return how far points lie from the nearest border between two cores."""
    across = np.abs(points[:, :1] - grid.columns.cuts).min(axis=1, initial=np.inf)
    return np.minimum(across, np.abs(points[:, 1:] - grid.rows.cuts).min(axis=1, initial=np.inf))


@pytest.mark.slow
def test_seams_on_real_tissue(test_data, tmp_path):
    """Near seams, tiles of 512 px differ from the whole images no more than far from them."""
    with (test_data / "nuclei" / "manifest.csv").open(newline="") as file:
        images = [row["image"] for row in csv.DictReader(file) if row["dataset"] == "consep" and row["split"] == "val"]
    model, near, far = load_model("nano", device="cpu"), [], []
    for image in images:
        (path,) = (test_data / "nuclei" / "consep" / "images").glob(f"{image}.*")
        tiled, whole, size = segment_in_tiles(path, tmp_path / image, model)
        assert len(whole) >= 50

        shapes = polygons_from_rings(*valid_rings(tiled))
        first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        first, second = first[first < second], second[first < second]
        common = shapely.area(shapely.intersection(shapes[first], shapes[second]))
        assert (common <= 0.1 * np.minimum(shapely.area(shapes[first]), shapely.area(shapes[second]))).all()

        grid = TileGrid(**size, tile_size=512, overlap=64)
        owner = grid.owner(tiled.centroid)
        cut = [grid.cut(int(o), tiled.bbox[i : i + 1], margin=CUT_MARGIN)[0] for i, o in enumerate(owner)]
        assert not any(cut)

        for one, other in ((tiled, whole), (whole, tiled)):
            alone = cKDTree(other.centroid).query(one.centroid)[0] > SAME
            distance = distance_to_seams(grid, one.centroid)
            near.append(alone[distance < NEAR])
            far.append(alone[distance >= FAR])
    near, far = np.concatenate(near), np.concatenate(far)
    assert min(len(near), len(far)) > 1000
    # the standard error of the difference of two shares of this size
    noise = np.sqrt(far.mean() * (1 - far.mean()) * (1 / len(near) + 1 / len(far)))
    assert near.mean() <= far.mean() + 3 * noise


def segment_in_tiles(path, folder, model):
    """Return the nuclei from tiles of 512 px, those of the whole image, and its size."""
    found = {}
    for tile_size in (512, 1024):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of nuclei without a type, which are not the question here
            out = folder / str(tile_size)
            result = segment_slide(
                path, out, model=model, mpp=0.25, tile_size=tile_size, tissue_filter=False, **SETTINGS
            )
        found[tile_size] = result.nuclei(embedding=False)
    assert result.summary["tiles"] == {"total": 1, "done": 1, "unreadable": []}
    slide = result.summary["slide"]
    return found[512], found[1024], {"width": slide["width"], "height": slide["height"]}


@pytest.mark.slow
def test_a_real_slide(test_data, tmp_path):
    """A corner of a slide at 0.5 µm per pixel: enlarged, typed, in its own pixels, on the tissue."""
    path = test_data / "wsi" / "cmu_small_region.svs"
    assert is_slide(path)
    roi = tmp_path / "roi.geojson"
    roi.write_text(
        '{"type": "Polygon", "coordinates": [[[600, 700], [1000, 700], [1000, 1050], [600, 1050], [600, 700]]]}'
    )
    result = segment_slide(path, tmp_path / "out", tile_size=512, roi=roi, **SETTINGS)
    nuclei = result.nuclei(embedding=False)
    assert (nuclei.type > 0).all()
    assert result.summary["resolution"] == {"mpp": [0.499, 0.499], "source": "slide"}
    assert len(nuclei) > 20
    assert ((nuclei.centroid >= (600, 700)) & (nuclei.centroid <= (1000, 1050))).all()
    # a nucleus is 4 to 12 µm wide
    size = (nuclei.bbox[:, 2:] - nuclei.bbox[:, :2]).mean(axis=1) * 0.499
    assert 3 < np.median(size) < 15
    # nuclei are darker than what surrounds them, so outlines lie where they should
    from cellvit.slide.open import open_slide

    with open_slide(path) as slide:
        grey = slide.read_region(600, 700, 400, 350).mean(axis=2)
    inside = np.rint(nuclei.centroid - (600, 700)).astype(int).clip(0, (399, 349))
    assert np.median(grey[inside[:, 1], inside[:, 0]]) < np.median(grey) - 15
