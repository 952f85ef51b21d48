"""Small drawn data sets of patches in folds, and a configuration that trains on them in seconds."""

import csv
import json

import cv2
import numpy as np


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


def write_fold(root, number, patches, *, tissues, classes):
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
        rows.writerow(["name", "source", "tissue", *classes[1:]])
        for i, kinds in enumerate(types):
            name = f"fold{number}/{i:04d}"
            counts = [(kinds == kind).sum() for kind in range(1, len(classes))]
            rows.writerow([name, name, tissues[i % len(tissues)], *counts])


def write_folds(root, *, patches=4, tissues=("Colon", "Skin"), classes=("Background", "Small", "Large"), mpp=0.25):
    """Write a prepared data set of three folds with 64 px patches; the nuclei are of the first two types."""
    for number in (1, 2, 3):
        drawn = [draw_tissue(10 * number + i) for i in range(patches)]
        write_fold(root, number, drawn, tissues=tissues, classes=classes)
    described = {
        "format": "cellvit-patches",
        "version": 1,
        "name": "drawn",
        "mpp": mpp,
        "class_names": list(classes),
        "tissue_names": list(tissues),
        "folds": [1, 2, 3],
        "patch_size": 64,
        "about": {},
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def write_folds_config(path, root):
    """Write a configuration that trains a small network on :func:`write_folds`."""
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
  init_args: {{root: {root}, batch_size: 2, val_batch_size: 3, samples_per_epoch: 12, num_workers: 0}}
"""
    )
    return path
