"""The bundled model on real tissue: what a newcomer meets has to work."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from skimage import data

from cellvit import CellViT, CentroidDetection, init_from, segment_image
from cellvit.cli.demo import main as demo
from cellvit.io import read_geojson, read_json, read_parquet
from cellvit.io.images import read_image
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.weights.catalogue import BUNDLED

PAGES = Path(__file__).parents[1] / "docs/pages"


def test_the_demo_finds_and_draws_real_nuclei(tmp_path, capsys):
    assert demo(["--out", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    assert "Try next" in shown
    assert "types learnt on colon (CoNSeP)" in shown
    found = read_parquet(tmp_path / "demo/tissue.parquet")
    assert 100 < len(found) < 1000  # by eye there are about 300
    assert found.embedding.shape[0] == len(found)
    assert found.classes.learnt_on == "colon (CoNSeP)"
    # nuclei are blue on a brown and white background: under the centroids it is bluer than elsewhere
    image = data.immunohistochemistry().astype(int)
    blueness = image[..., 2] - image[..., 0]
    x, y = np.clip(found.centroid.round().astype(int), 0, 511).T
    assert blueness[y, x].mean() > blueness.mean() + 15
    for read, name in ((read_geojson, "tissue.geojson"), (read_json, "tissue.json")):
        assert len(read(tmp_path / "demo" / name)) == len(found)
    assert read_image(tmp_path / "demo/tissue.png").shape[0] >= 512


@pytest.mark.slow
def test_nano_beats_chance_clearly_on_unseen_tissue(test_data):
    """F1 of detection of at least 0.70 at 12 px on the whole validation split; its card says 0.77."""
    with (test_data / "nuclei/manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    metric, model = CentroidDetection(radius=12), CellViT.from_pretrained("nano")
    for row in rows:
        folder = test_data / "nuclei" / row["dataset"]
        truth = nuclei_from_instances(np.load(folder / f"labels/{row['image']}.npz")["inst_map"]).nuclei
        found = segment_image(read_image(folder / f"images/{row['image']}.jpg"), model=model, mpp=0.25)
        metric.update(found.centroid, truth.centroid)
    assert metric.compute()["F1_d"] >= 0.70


def test_the_model_card_is_of_these_weights():
    """Whoever trains nano anew measures it anew: cellvit card, see the page."""
    page = (PAGES / "models/nano.md").read_text()
    measured = json.loads((PAGES / "models/nano/card.json").read_text())
    weights = json.loads((BUNDLED / "nano/config.json").read_text())["weights"]["sha256"]
    assert measured["model"]["sha256"] == weights
    roots = [measured[part]["root"] for part in ("data", "settings")]
    assert not any(Path(root).is_absolute() for root in roots)  # measure from beside the data
    assert weights in page
    assert f"{measured['model']['parameters']:,}" in page
    for group in measured["scores"]:
        (row,) = (
            r for r in page.splitlines() if r.startswith(f"| {group['group']} | {group['mpp']:g} | {group['images']} ")
        )
        for name in ("F1_d", "bPQ"):
            score = group["scores"][name]
            assert f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})" in row, (group["group"], name)
    for picture in measured["failures"]:
        assert f"nano/{picture['file']}" in page
        assert (PAGES / "models/nano" / picture["file"]).is_file()


def test_the_configuration_of_nano_makes_the_network_of_its_weights():
    """What the configurations that start from nano rely on."""
    settings = yaml.safe_load((PAGES.parent / "configs/nano.yaml").read_text())["model"]
    model = CellViT(**settings)
    init_from(model, "nano")
    stored = CellViT.from_pretrained("nano").state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_the_same_nuclei_whatever_the_batch(tmp_path):
    image = data.immunohistochemistry()
    alone = segment_image(image, mpp=0.25, tile_size=256, batch_size=1)
    batched = segment_image(image, mpp=0.25, tile_size=256, batch_size=3)
    np.testing.assert_array_equal(alone.centroid, batched.centroid)
    np.testing.assert_array_equal(alone.contour_points, batched.contour_points)
    np.testing.assert_array_equal(alone.type, batched.type)
    for name in ("type_prob", "embedding"):  # what the pages promise
        np.testing.assert_allclose(getattr(alone, name), getattr(batched, name), rtol=1e-6, atol=1e-6)
