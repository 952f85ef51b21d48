import csv
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image


class DataFolder:
    """Writes small data sets: square nuclei of a known colour on a grey ground."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = []

    def arrays(self, height=40, width=48, *, nuclei=3):
        rng = np.random.default_rng(height * 1000 + width)
        instance_map = np.zeros((height, width), np.uint16)
        for label in range(1, nuclei + 1):
            top, left = rng.integers(0, height - 6), rng.integers(0, width - 6)
            instance_map[top : top + 6, left : left + 6] = label
        instance_map = np.unique(instance_map, return_inverse=True)[1].reshape(height, width).astype(np.uint16)
        image = np.full((height, width, 3), 200, np.uint8)
        image[instance_map > 0] = (90, 60, 140)
        return image, instance_map

    def add(self, dataset, stem, split, *, size=(40, 48), mpp="unknown", typed=False, nuclei=3):
        """Add an image to the manifest layout."""
        image, instance_map = self.arrays(*size, nuclei=nuclei)
        types = {"inst_type": np.r_[0, np.arange(instance_map.max()) % 4 + 1].astype(np.uint8)} if typed else {}
        self._save(self.root / dataset, stem, image, {"inst_map": instance_map, **types})
        self.rows.append({"dataset": dataset, "image": stem, "split": split, "mpp": mpp})
        return self

    def add_plain(self, folder, stem, *, size=(40, 48)):
        """Add an image to a plain layout."""
        image, instance_map = self.arrays(*size)
        self._save(self.root / folder, stem, image, {"inst_map": instance_map})
        return self

    def _save(self, folder, stem, image, label):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / "images" / f"{stem}.png")
        np.savez(folder / "labels" / f"{stem}.npz", **label)

    def write(self):
        """Write the manifest."""
        with (self.root / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["dataset", "image", "split", "mpp"])
            writer.writeheader()
            writer.writerows(self.rows)
        return self.root


@pytest.fixture
def as_rank(monkeypatch):
    """Make torch say that this is one of several processes."""

    def pretend(rank, ranks):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)

    return pretend


@pytest.fixture
def data_folder(tmp_path):
    return DataFolder(tmp_path / "nuclei")


@pytest.fixture
def two_datasets(data_folder):
    data_folder.add("typed", "a", "train", typed=True, size=(64, 64)).add("typed", "b", "train", typed=True)
    data_folder.add("plain", "c", "train").add("plain", "d", "val", size=(50, 30)).add("typed", "e", "val", typed=True)
    return data_folder.write()
