"""Recipes of the pages, run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/pages/how-to/new-encoder.md"
SHORT = [
    *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"),
    *(
        "--data.init_args.crop_size",
        "64",
        "--data.init_args.batch_size",
        "2",
        "--data.init_args.samples_per_epoch",
        "2",
    ),
    *("--model.decoder", '{"class_path": "unetr", "init_args": {"widths": [4, 6, 8, 10], "image_width": 3}}'),
]
"""What makes a training of the recipe a matter of seconds."""


def block(page, language, beginning):
    """Return the block of code of a page that starts so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(beginning)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_an_encoder_in_the_current_folder_is_trained(page, tissue_folder, tmp_path):
    (tmp_path / "my_lab.py").write_text(block(PAGE, "python", "# my_lab.py"), encoding="utf-8")
    beginning = "# my_lab.yaml" if page is PAGE else "model:\n  encoder: {class_path: my_lab"
    (tmp_path / "my_lab.yaml").write_text(block(page, "yaml", beginning), encoding="utf-8")
    assert tissue_folder == tmp_path / "data"
    command = [sys.executable, "-m", "cellvit", "fit", "--config", "my_lab.yaml", *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert "ConvStem" in done.stdout + (checkpoint.parents[1] / "config.yaml").read_text()
