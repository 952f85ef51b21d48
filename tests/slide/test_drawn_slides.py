"""The drawn slides and the stand-in model that other tests rely on."""

import pickle

import numpy as np
import openslide
import pytest
import tifffile
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from support.drawn_slides import (
    DrawnModel,
    drawn_block,
    drawn_pixels,
    tokens,
    truth,
    write_drawn_slide,
)

from cellvit.inference.image import segment_image
from cellvit.inference.protocol import NucleiModel
from cellvit.io.images import read_image, read_mpp
from cellvit.model.build import image_arrays
from cellvit.postprocess import nuclei_from_instances


@pytest.fixture(scope="module")
def block():
    return drawn_block(512, seed=3)


def batch_of(*images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def find(pixels):
    model = DrawnModel()
    maps = image_arrays(model.predict_maps(batch_of(pixels)), model.postprocessor)
    return model.postprocess(maps[0]).nuclei


def test_nuclei_are_the_connected_parts_of_the_pixels(block):
    # two blocks each way hold every nucleus whole at least once
    red = drawn_pixels(1024, 1024, block)[..., 0]
    parts = ndimage.label(red > 0, np.ones((3, 3)))[0]
    seen = nuclei_from_instances(parts, type_map=red // 32, min_contour_points=1).nuclei
    drawn = truth(1024, 1024, block)
    assert len(drawn) == len(seen)
    order, same = np.lexsort(drawn.bbox.T), np.lexsort(seen.bbox.T)
    np.testing.assert_array_equal(drawn.bbox[order], seen.bbox[same])
    np.testing.assert_array_equal(drawn.type[order], seen.type[same])
    np.testing.assert_allclose(drawn.centroid[order], seen.centroid[same])
    np.testing.assert_array_equal(drawn.area[order], np.bincount(parts.ravel())[1:][same])
    on_edge = (seen.bbox[:, :2] == 0).any(1) | (seen.bbox[:, 2:] == 1024).any(1)
    assert drawn.cut.any()
    assert on_edge[same][drawn.cut[order]].all()


def test_a_cut_shows_the_distances_of_the_whole_nucleus(block):
    pixels = drawn_pixels(1024, 1024, block)
    hv = DrawnModel().predict_maps(batch_of(pixels))["hv_map"][0].numpy()
    wrapping = block.nuclei.bbox[:, 0] < 0  # on the left edge of the block; whole at its right edge
    assert wrapping.any()
    for row in np.flatnonzero(wrapping):
        points = block.points[block.offsets[row] : block.offsets[row + 1]]
        x, y = (points + np.array([512, 0 if points[:, 1].min() >= 0 else 512])).T
        horizontal = hv[0, y, x]
        assert horizontal.min() == -1
        assert horizontal.max() == 1
        inside = points[:, 0] >= 0  # what a slide shows of it at its left edge
        np.testing.assert_array_equal(hv[0, points[inside, 1] % 512, points[inside, 0]], horizontal[inside])


def test_post_processing_finds_what_was_drawn():
    block = drawn_block(1536)
    pixels = drawn_pixels(1100, 1000, block)
    drawn, found = truth(1100, 1000, block), find(pixels)
    whole = drawn.select(~drawn.cut)
    distance, row = cKDTree(found.centroid).query(whole.centroid)
    assert (distance < 1).mean() > 0.995
    near = distance < 1
    np.testing.assert_array_equal(found.type[row[near]], whole.type[near])
    assert abs(len(found) - (drawn.area >= 10).sum()) < 0.03 * len(drawn)  # slivers at the edge may be lost
    assert (np.ptp(whole.bbox.reshape(-1, 2, 2), axis=1).max(axis=1) > 64).any()  # longer than tiles overlap


def test_a_default_block_makes_a_million_nuclei_in_40000_px():
    block = drawn_block()
    assert len(block.nuclei) / 1536**2 * 40_000**2 > 1e6


def test_segment_image_takes_the_model(block):
    drawn = truth(700, 600, block)
    found = segment_image(drawn_pixels(700, 600, block), model=DrawnModel(), tile_size=256)
    whole = drawn.select(~drawn.cut)
    assert (cKDTree(found.centroid).query(whole.centroid)[0] < 1).all()
    assert found.embedding.shape == (len(found), 8)


def test_model_is_one_and_survives_pickling():
    model = pickle.loads(pickle.dumps(DrawnModel()))
    assert isinstance(model, NucleiModel)
    assert model.device.type == "cpu"
    model.train(True)
    assert model.training


@pytest.mark.parametrize("size", [(256, 320), (250, 301)])
def test_maps_do_not_depend_on_the_batch(block, size):
    height, width = size
    images = [np.ascontiguousarray(block.pixels[y : y + height, y : y + width]) for y in (0, 50, 100)]
    together = DrawnModel().predict_maps(batch_of(*images))
    for index, image in enumerate(images):
        alone = DrawnModel().predict_maps(batch_of(image))
        for name, value in alone.items():
            assert torch.equal(value[0], together[name][index]), name
            assert value.dtype == torch.float32
    assert together["nuclei_type_map"].shape == (3, 5, height, width)
    assert together["embedding_map"].shape == (3, 8, -(-height // 16), -(-width // 16))


def test_tokens_are_means_of_cells(block):
    cells = tokens(torch.from_numpy(block.pixels).permute(2, 0, 1)[None])[0].numpy()
    assert cells.shape == (8, 32, 32)
    cell = block.pixels[48:64, 160:176].astype(np.float64)
    kind = cell[..., 0] // 32
    expected = [*(cell.mean((0, 1)) / 255), (kind > 0).mean(), *((kind == t).mean() for t in (1, 2, 3, 4))]
    np.testing.assert_allclose(cells[:, 3, 10], expected, atol=1e-6)


def test_white_is_background():
    maps = DrawnModel().predict_maps(torch.ones(1, 3, 32, 32))
    assert maps["nuclei_binary_map"][:, 1].sum() == 0
    assert maps["hv_map"].abs().sum() == 0
    assert len(find(np.full((64, 64, 3), 255, np.uint8))) == 0


@pytest.mark.parametrize("size", [(300, 200), (1300, 900)])
def test_slide_holds_the_drawing_for_every_reader(block, tmp_path, size):
    width, height = size
    path = write_drawn_slide(tmp_path / "drawn.tif", width, height, block=block)
    expected = drawn_pixels(width, height, block)
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_mpp(path) == 0.25
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == size
        shown = np.asarray(slide.read_region((37, 11), 0, (width - 37, height - 11)))
        np.testing.assert_array_equal(shown[..., :3], expected[11:, 37:])
        assert float(slide.properties["openslide.mpp-x"]) == 0.25


def test_levels_are_the_slide_made_smaller(block, tmp_path):
    path = write_drawn_slide(tmp_path / "drawn.tif", 4500, 4200, block=block, mpp=0.5)
    assert path.stat().st_size < 2_000_000
    full = drawn_pixels(4500, 4200, block)[:4096, :4096].astype(np.float64)
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert slide.level_dimensions == ((4500, 4200), (1125, 1050), (282, 263))
        assert [level.shape[:2] for level in tiff.series[0].levels] == [(4200, 4500), (1050, 1125), (263, 282)]
        for level, factor in ((1, 4), (2, 16)):
            n = 4096 // factor
            small = full.reshape(n, factor, n, factor, 3).mean((1, 3))
            shown = np.asarray(slide.read_region((0, 0), level, (n, n)))[..., :3]
            assert np.abs(shown - small).max() <= 1
    assert read_mpp(path) == 0.5


def test_refusals(block, tmp_path):
    with pytest.raises(ValueError, match="no room for 3000"):
        drawn_block(512, nuclei=3000)
    with pytest.raises(ValueError, match="multiple of 512"):
        write_drawn_slide(tmp_path / "x.tif", 100, 100, block=drawn_block(400))
