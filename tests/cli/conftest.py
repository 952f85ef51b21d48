import csv
import json

import cv2
import numpy as np
import pytest


def draw_tissue(seed, size=64):
    """Return a pink image with dark discs, their instance map and types 1 or 2 by size."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), (230, 180, 210), np.uint8)
    instances, types = np.zeros((size, size), np.int32), [0]
    for row in range(12, size - 8, 20):
        for col in range(12, size - 8, 20):
            radius = int(rng.integers(4, 8))
            types.append(1 if radius < 6 else 2)
            cv2.circle(instances, (col, row), radius, len(types) - 1, -1)
    image[instances > 0] = (90, 40, 120)
    noise = rng.integers(-12, 12, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), instances, np.array(types, np.uint8)


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
    class_path: cellvit.schedules.WarmupCosineLR
    init_args: {{total_steps: null}}
  lr_interval: step
data:
  class_path: FolderDataModule
  init_args: {{root: {tissue_folder}, crop_size: 64, batch_size: 2, samples_per_epoch: 4, num_workers: 0}}
"""
    )
    return path


def write_fold(root, number, patches):
    """Write one fold of the compact form from a list of (image, instance map, types by label)."""
    folder = root / f"fold{number}"
    folder.mkdir(parents=True)
    images, instances, types = zip(*patches, strict=True)
    np.save(folder / "images.npy", np.stack(images))
    np.save(folder / "instance_maps.npy", np.stack(instances).astype(np.uint16))
    type_maps = [kinds[labels] for labels, kinds in zip(instances, types, strict=True)]
    np.save(folder / "type_maps.npy", np.stack(type_maps).astype(np.uint8))
    with (folder / "patches.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "source", "tissue", "Small", "Large"])
        for i, kinds in enumerate(types):
            name = f"fold{number}/{i:04d}"
            rows.writerow([name, name, ("Colon", "Skin")[i % 2], (kinds == 1).sum(), (kinds == 2).sum()])


@pytest.fixture
def patch_folds(tmp_path):
    """A prepared data set of three folds with 64 px patches of two tissues."""
    root = tmp_path / "folds"
    for fold in (1, 2, 3):
        write_fold(root, fold, [draw_tissue(10 * fold + i) for i in range(4)])
    described = {
        "format": "cellvit-patches",
        "version": 1,
        "name": "drawn",
        "mpp": 0.25,
        "class_names": ["Background", "Small", "Large"],
        "tissue_names": ["Colon", "Skin"],
        "folds": [1, 2, 3],
        "patch_size": 64,
        "about": {},
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


@pytest.fixture
def folds_config(patch_folds, tmp_path):
    """A configuration of folds, small enough for a test."""
    path = tmp_path / "folds.yaml"
    path.write_text(
        f"""
seed_everything: 7
trainer:
  accelerator: cpu
  max_epochs: 3
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: cellvit.callbacks.EpochSeeds
    - class_path: cellvit.callbacks.EncoderFreezing
      init_args: {{unfreeze_epoch: 1}}
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {{monitor: val/bPQ, mode: max, patience: 130, check_finite: false}}
model:
  encoder:
    class_path: vit-256
    init_args: {{embed_dim: 16, depth: 4, num_heads: 2}}
  decoder:
    class_path: unetr
    init_args: {{widths: [4, 6, 8, 10], image_width: 3, shared_levels: 3}}
  num_nuclei_classes: 3
  num_tissue_classes: 2
  class_names: [Background, Small, Large]
  tissue_names: [Colon, Skin]
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.003}}}}
data:
  class_path: PanNukeDataModule
  init_args: {{root: {patch_folds}, batch_size: 2, val_batch_size: 3, num_workers: 0}}
"""
    )
    return path
