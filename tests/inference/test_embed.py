"""Embeddings for nuclei of other tools, on a drawn image of 256 px."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cellvit import cli, io, segment_image
from cellvit.classification import TypeClassifier
from cellvit.errors import ConfigError, DataError, ImageError, OutputError
from cellvit.inference.embed import embed_slide, read_given
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.protocol import load_model
from cellvit.model.network import CellViTNetwork
from cellvit.postprocess.measure import nuclei_from_instances

MPP = 0.25


@pytest.fixture(scope="module")
def nano():
    return load_model("nano", device="cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, nano):
    """The file of an image, the map of its nuclei, and their table as nano would embed them, with outlines of ours."""
    folder, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(3)
    y, x = np.mgrid[:256, :256]
    labels, pixels = np.zeros((256, 256), np.int32), np.full((256, 256, 3), (235, 200, 220), np.uint8)
    for number in range(20):
        centre = 30 + 50 * np.array(divmod(number, 5)) + rng.integers(-8, 8, 2)
        inside = (y - centre[0]) ** 2 / rng.integers(90, 160) + (x - centre[1]) ** 2 / rng.integers(60, 160) < 1
        labels[inside], pixels[inside] = number + 1, rng.integers((60, 30, 90), (130, 90, 160))
    pixels = np.clip(pixels + rng.integers(-9, 9, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder / "image.png", labels


def given(labels, *, types=(1, 2)):
    nuclei = nuclei_from_instances(labels).nuclei
    return replace(nuclei, type=np.resize(np.array(types, np.int32), len(nuclei)))


def write(path, labels, **changes):
    io.write_geojson(replace(given(labels), **changes), path)
    return path


def test_outlines_of_our_own_get_the_embeddings_they_had(drawn, nano, tmp_path):
    found = segment_image(np.asarray(Image.open(drawn[0])), model=nano)
    assert len(found) > 10
    io.write_geojson(found, tmp_path / "own.geojson")
    result = embed_slide(drawn[0], tmp_path / "own.geojson", tmp_path / "out", model=nano, mpp=MPP)
    again = result.nuclei()
    order = np.argsort(again.label)
    np.testing.assert_allclose(again.embedding[order], found.embedding, atol=1e-4)
    np.testing.assert_array_equal(again.type[order], found.type)
    assert again.classes == found.classes
    np.testing.assert_allclose(again.centroid[order], found.centroid, atol=0.02)
    np.testing.assert_allclose(again.measurements["area_um2"][order], found.measurements["area_um2"], rtol=0.02)
    assert result.summary["nuclei"]["total"] == len(found)
    assert sum(result.summary["nuclei"]["by_type"].values()) == len(found)
    assert result.summary["outlines"] == {
        "file": "own.geojson",
        "sha256": read_given(tmp_path / "own.geojson").sha256,
        "nuclei": len(found),
        "without_outline": 0,
        "radius_um": None,
    }
    assert io.ParquetStream(tmp_path / "out/nuclei.parquet").metadata["outlines"] == result.summary["outlines"]


def test_tiles_are_resumed_and_a_finished_folder_is_left_alone(drawn, nano, tmp_path):
    outlines, told = write(tmp_path / "a.geojson", drawn[1]), []

    def stop(done, total):
        told.append((done, total))
        if done == 18:  # a part of 16 tiles is on the disk
            raise KeyboardInterrupt

    job = {"model": nano, "mpp": MPP, "tile_size": 64, "overlap": 16, "formats": ()}
    with pytest.raises(KeyboardInterrupt):
        embed_slide(drawn[0], outlines, tmp_path / "out", progress=stop, **job)
    resumed = []
    result = embed_slide(drawn[0], outlines, tmp_path / "out", progress=lambda done, _: resumed.append(done), **job)
    assert resumed[0] == 16
    assert resumed[-1] == told[0][1] > 18
    whole = embed_slide(drawn[0], outlines, tmp_path / "whole", **job)
    np.testing.assert_array_equal(result.nuclei().embedding, whole.nuclei().embedding)
    assert sorted(result.nuclei().label) == list(range(1, 21))
    assert not (tmp_path / "out/.work").exists()
    assert embed_slide(drawn[0], outlines, tmp_path / "out", **job).summary == result.summary
    other = write(tmp_path / "b.geojson", drawn[1], type=np.full(20, 2, np.int32))
    with pytest.raises(OutputError, match=r"holds results of another run: outlines sha256 was"):
        embed_slide(drawn[0], other, tmp_path / "out", **job)
    again = embed_slide(drawn[0], other, tmp_path / "out", overwrite=True, **job)
    assert set(again.nuclei().type) == {2}


def test_tiles_that_are_cut_down_go_through_the_network_together_by_size(drawn, nano, tmp_path, monkeypatch):
    monkeypatch.setattr("cellvit.slide.tiling.CROP_STEP", 32)
    outlines = write(tmp_path / "a.geojson", drawn[1])
    job = {"model": nano, "mpp": MPP, "tile_size": 112, "overlap": 16, "formats": ()}
    sizes, predict = set(), type(nano).predict_maps

    def watched(model, pixels):
        sizes.add(tuple(pixels.shape))
        return predict(model, pixels)

    monkeypatch.setattr(type(nano), "predict_maps", watched)
    one, four = (embed_slide(drawn[0], outlines, tmp_path / str(n), batch_size=n, **job).nuclei() for n in (1, 4))
    assert len({size[2:] for size in sizes}) > 1
    assert max(size[0] for size in sizes) > 1
    np.testing.assert_array_equal(one.label, four.label)
    np.testing.assert_allclose(one.embedding, four.embedding, atol=1e-4)


def test_the_digest_of_a_model_covers_how_it_embeds(nano):
    decoder = nano.settings["decoder"]
    without = {name: value for name, value in decoder["init_args"].items() if name != "embedding"}
    assert decoder["init_args"] == {**without, "embedding": True}
    before = CellViTNetwork(**{**nano.settings, "decoder": {**decoder, "init_args": without}}).eval()
    before.load_state_dict(nano.state_dict())
    maps = [model.predict_maps(torch.rand(1, 3, 32, 32)) for model in (before, nano)]
    assert [tuple(of["embedding_map"].shape) for of in maps] == [(1, 128, 2, 2), (1, 60, 8, 8)]
    assert weights_hash(before) != weights_hash(nano)


@pytest.mark.parametrize("name", ["labels.tif", "labels.npz", "labels.png", "outlines.parquet", "nuclei.csv"])
def test_files_of_any_tool_give_the_same_nuclei(drawn, tmp_path, name):
    path, nuclei = tmp_path / name, given(drawn[1])
    if name.endswith(".npz"):
        np.savez(path, inst_map=drawn[1], inst_type=np.resize([2, 1], 21).astype(np.uint8))
    elif name.startswith("labels"):
        Image.fromarray(drawn[1].astype(np.uint8 if name.endswith("png") else np.uint16)).save(path)
    elif name.endswith(".csv"):
        path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in nuclei.centroid))
    else:
        io.write_parquet(nuclei, path)
    found = read_given(path)
    np.testing.assert_allclose(found.nuclei.centroid, nuclei.centroid, atol=0.01)
    assert sorted(found.nuclei.label) == list(range(1, 21))
    assert bool(found.without_outline.any()) == name.endswith(".csv")
    if name.endswith(".npz"):
        assert set(found.nuclei.type) == {1, 2}


def test_centroids_are_embedded_as_discs(drawn, nano, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in given(drawn[1]).centroid))
    job = {"model": nano, "mpp": MPP, "formats": ()}
    whole = embed_slide(drawn[0], write(tmp_path / "a.geojson", drawn[1]), tmp_path / "whole", **job).nuclei()
    result = embed_slide(drawn[0], path, tmp_path / "points", radius=2.5, **job)
    found = result.nuclei()
    assert result.summary["outlines"]["radius_um"] == 2.5
    assert any(
        "20 of 20 nuclei have no outline: each was embedded as a disc of 2.5 µm" in text
        for text in result.summary["warnings"]
    )
    near = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.embedding, whole.embedding, strict=True)]
    assert min(near) > 0.8
    assert len(found.contour_points) == 0  # the disc is ours, not an outline of theirs
    assert np.isnan(found.measurements["area_um2"]).all()


def test_what_cannot_be_is_refused(drawn, nano, tmp_path):
    image, labels = drawn
    outlines, out = write(tmp_path / "a.geojson", labels), tmp_path / "out"
    plain = tmp_path / "plain.csv"
    plain.write_text("x,y\n30,30\n")
    with pytest.raises(ImageError, match=r"states no resolution; pass mpp=0\.25"):
        embed_slide(image, plain, out, model=nano)
    far = given(labels)
    io.write_geojson(far.transform(shift=(5000, 0)), tmp_path / "far.geojson")
    with pytest.raises(DataError, match=r"20 of 20 nuclei lie outside of slide 'image\.png'.*coordinates in pixels"):
        embed_slide(image, tmp_path / "far.geojson", out, model=nano, mpp=MPP)
    io.write_parquet(far, tmp_path / "other.parquet", metadata={"image": "other.svs", "width": 9000, "height": 9000})
    with pytest.raises(DataError, match=r"are of 'other\.svs', 9000 x 9000 px"):
        embed_slide(image, tmp_path / "other.parquet", out, model=nano, mpp=MPP)
    io.write_geojson(far[:0], tmp_path / "none.geojson")
    with pytest.raises(DataError, match=r"none\.geojson' holds no nuclei; give a file with outlines"):
        embed_slide(image, tmp_path / "none.geojson", out, model=nano, mpp=MPP)
    with pytest.raises(ConfigError, match="radius 0 is not that of a nucleus; give microns"):
        embed_slide(image, outlines, out, model=nano, mpp=MPP, radius=0)
    assert not out.exists()


def test_command(drawn, tmp_path, capsys):
    outlines = write(tmp_path / "a.geojson", drawn[1])
    call = ["embed", str(drawn[0]), "--outlines", str(outlines), "--out", str(tmp_path / "out"), "--mpp", "0.25"]
    assert cli.main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nuclei"] == 20
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "nuclei.parquet",
        "nuclei.geojson.gz",
        "summary.json",
    }
    assert cli.main([*call[:3], str(tmp_path / "none.geojson"), *call[4:]]) == 1
    assert "none.geojson' does not exist" in capsys.readouterr().err


def test_command_with_a_classifier(drawn, tmp_path, capsys):
    outlines, out = write(tmp_path / "a.geojson", drawn[1]), tmp_path / "out"
    call = ["embed", str(drawn[0]), "--outlines", str(outlines), "--mpp", "0.25", "--formats", "", "--json"]
    assert cli.main([*call, "--out", str(out)]) == 0
    nuclei = io.read_parquet(out / "nuclei.parquet")
    names = np.where(nuclei.embedding[:, 0] > np.median(nuclei.embedding[:, 0]), "High", "Low").astype(object)
    TypeClassifier(features=("embedding",)).fit(nuclei, names).save(tmp_path / "mine")
    capsys.readouterr()
    assert cli.main([*call, "--out", str(out), "--classifier", str(tmp_path / "mine")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["types"]) & {"High", "Low"}
    assert set(io.read_parquet(out / "nuclei.parquet").classes.names) >= {"High", "Low"}
    assert cli.main([*call, "--out", str(tmp_path / "new"), "--classifier", str(tmp_path / "none")]) == 1
    assert not (tmp_path / "new").exists()
