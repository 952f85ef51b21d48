"""A small table of nuclei with embeddings that tell their types apart."""

from dataclasses import replace

import numpy as np

from cellvit.classes import NucleiClasses
from cellvit.io.parquet import write_parquet
from cellvit.types import Nuclei

CLASSES = NucleiClasses(("Background", "Round", "Long"), ((0, 0, 0), (200, 30, 30), (30, 80, 200)))
ACROSS, STEP, SIDE = 16, 30, 12
SIZE = ACROSS * STEP


def drawn_nuclei(*, seed=0):
    """256 squares on a grid, of two types in stripes, with four numbers each as embedding."""
    rng = np.random.default_rng(seed)
    column, row = np.meshgrid(np.arange(ACROSS), np.arange(ACROSS))
    centroid = (np.stack([column.ravel(), row.ravel()], axis=1) + 0.5) * STEP
    count, half = len(centroid), SIDE / 2
    ring = np.array([(-half, -half), (-half, half), (half, half), (half, -half)])
    kind = (1 + column.ravel() // 2 % 2).astype(np.int32)
    embedding = rng.normal(0, 0.3, (count, 4)).astype(np.float32)
    embedding[:, 0] += 3 * kind
    return Nuclei(
        centroid=centroid,
        bbox=np.concatenate([centroid - half, centroid + half], axis=1),
        type=kind,
        type_prob=np.linspace(0.3, 0.99, count, dtype=np.float32),
        contour_offsets=np.arange(count + 1) * 4,
        contour_points=(centroid[:, None] + ring).reshape(-1, 2),
        label=np.arange(1, count + 1, dtype=np.int32),
        embedding=embedding,
        classes=CLASSES,
        measurements={"area_um2": np.full(count, SIDE**2 / 4, np.float32)},
        mpp=0.5,
    )


def write_table(folder, nuclei=None, *, image="slide.svs", **changes):
    """Write a table of nuclei and return it; beside it nothing lies."""
    folder.mkdir(parents=True, exist_ok=True)
    nuclei = drawn_nuclei() if nuclei is None else nuclei
    facts = {"image": image, "width": SIZE, "height": SIZE, "model": "drawn", "weights_hash": "0"}
    write_parquet(replace(nuclei, **changes), folder / "nuclei.parquet", metadata=facts)
    return folder / "nuclei.parquet"
