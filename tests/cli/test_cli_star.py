"""The second decoding family goes through the same command line as the first."""

import json

import cv2
import numpy as np
from drawn_folds import draw_tissue

from cellvit import CellViT, segment_image
from cellvit.cli import main
from cellvit.io import read_parquet
from cellvit.postprocess import StarPostprocessor

HEADS = {
    "object_probability": "object-probability",
    "radial_distances": {"class_path": "radial-distances", "init_args": {"num_rays": 16}},
    "nuclei_type_map": "nuclei-type",
}


def test_train_validate_test_export_and_segment(training_config, tmp_path, capsys):
    star = tmp_path / "star.yaml"
    postprocessor = {"class_path": "star-nms", "init_args": {"prob_threshold": 0.1}}
    star.write_text(json.dumps({"model": {"heads": HEADS, "postprocessor": postprocessor}}))
    common = ["--config", str(training_config), "--config", str(star)]
    assert main(["fit", *common]) == 0
    run = tmp_path / "run"
    assert len(list(run.glob("tensorboard/version_0/pictures/epoch_*/*.png"))) == 2
    header = next(run.glob("csv/version_*/metrics.csv")).read_text().splitlines()[0]
    assert "train/radial_distances/absolute_error" in header
    assert "val/object_probability/cross_entropy" in header
    assert "val/bPQ" in header

    checkpoint = run / "checkpoints/last.ckpt"
    for verb in ("validate", "test"):
        assert main([verb, *common, "--ckpt_path", str(checkpoint)]) == 0
    assert "test/F1_d" in capsys.readouterr().out

    assert main(["export", str(checkpoint), "--out", str(tmp_path / "model")]) == 0
    model = CellViT.from_pretrained(tmp_path / "model")
    assert isinstance(model.postprocessor, StarPostprocessor)
    assert model.postprocessor.prob_threshold == 0.1

    image = np.tile(draw_tissue(0)[0], (3, 3, 1))
    cv2.imwrite(str(tmp_path / "tissue.png"), image[..., ::-1])
    command = ["segment", str(tmp_path / "tissue.png"), "--model", str(tmp_path / "model"), "--mpp", "0.25"]
    assert main([*command, "--out", str(tmp_path / "found"), "--tile-size", "96", "--overlap", "32"]) == 0
    nuclei = read_parquet(next((tmp_path / "found").rglob("*.parquet")))
    again = segment_image(image, model=model, tile_size=96, overlap=32)
    assert len(nuclei) == len(again) > 0
    np.testing.assert_allclose(nuclei.centroid, again.centroid)
