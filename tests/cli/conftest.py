import cv2
import numpy as np
import pytest
from drawn_folds import draw_tissue, write_folds, write_folds_config


@pytest.fixture
def tissue_folder(tmp_path):
    """A plain data folder with train, val and test images and a folder of images to predict."""
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for i in range(count):
            image, instances, types = draw_tissue(i)
            cv2.imwrite(str(tmp_path / "data" / split / "images" / f"t{i}.png"), image[..., ::-1])
            np.savez(tmp_path / "data" / split / "labels" / f"t{i}.npz", inst_map=instances, inst_type=types)
    return tmp_path / "data"


@pytest.fixture
def training_config(tissue_folder, tmp_path):
    """A configuration like nano's, small enough for a test."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
seed_everything: 7
trainer:
  accelerator: cpu
  max_epochs: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}/run
  logger:
    - class_path: lightning.pytorch.loggers.TensorBoardLogger
      init_args: {{save_dir: {tmp_path}/run, name: tensorboard}}
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {{save_dir: {tmp_path}/run, name: csv}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {tmp_path}/run/checkpoints, filename: best, monitor: val/F1_d, mode: max}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {tmp_path}/run/checkpoints, filename: last, save_on_train_epoch_end: true,
        enable_version_counter: false}}
    - class_path: cellvit.callbacks.SamplePictures
      init_args: {{num_images: 1, max_size: 64}}
    - class_path: cellvit.callbacks.EncoderFreezing
      init_args: {{unfreeze_epoch: 1}}
model:
  encoder:
    class_path: hybrid
    init_args: {{widths: [4, 6, 8], embed_dim: 16, depth: 1, num_heads: 2}}
  decoder:
    class_path: unetr
    init_args: {{widths: [4, 6, 8, 10], image_width: 3, shared_levels: 3}}
  num_nuclei_classes: 3
  class_names: [Background, Small, Large]
  lr_scheduler:
    class_path: cellvit.model.schedules.WarmupCosineLR
    init_args: {{total_steps: null}}
  lr_interval: step
data:
  class_path: FolderDataModule
  init_args: {{root: {tissue_folder}, crop_size: 64, batch_size: 2, samples_per_epoch: 4, num_workers: 0}}
"""
    )
    return path


@pytest.fixture
def patch_folds(tmp_path):
    """A prepared data set of three folds."""
    return write_folds(tmp_path / "folds")


@pytest.fixture
def folds_config(patch_folds, tmp_path):
    """A configuration that trains on ``patch_folds``."""
    return write_folds_config(tmp_path / "folds.yaml", patch_folds)
