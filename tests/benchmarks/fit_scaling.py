"""Fit the table by which an exported model guesses the black and white of an image that QuPath has scaled.

Run as ``python tests/benchmarks/fit_scaling.py DATA``; it prints ``GUESS`` of ``cellvit/export/scaling.py``. Images of
the ``train`` split are scaled as QuPath scales a region, and cut into tiles of several sizes. Least squares, every data
set with the same weight, lead from mean and standard deviation of the channels of a tile to the percentiles 0.1 and
99.9 of its image. Takes a minute.
"""

import sys
from collections import Counter

import numpy as np
from agreement_qupath import scaled

from cellvit.data.folder import FolderDataset
from cellvit.io.images import read_image

TILES = 8
RIDGE = 1e-3


def main():
    rng = np.random.default_rng(0)
    records = FolderDataset(sys.argv[1], split="train").records
    sizes = Counter(record.dataset for record in records)
    rows, targets, weights = [], [], []
    for record in records:
        pixels = read_image(record.image)
        values, low, high = scaled(pixels)
        for _ in range(TILES):
            side = rng.integers(min(256, *pixels.shape[:2]), max(pixels.shape[:2]) + 1)
            y, x = (rng.integers(max(length - side, 0) + 1) for length in pixels.shape[:2])
            tile = values[y : y + side, x : x + side].reshape(-1, 3)
            rows.append([1, *tile.mean(0), *tile.std(0)])
            targets.append(np.concatenate([low, high]) / 255)
            weights.append(1 / sizes[record.dataset])
    a, b, weight = np.array(rows), np.array(targets), np.array(weights)[:, None] / TILES
    table = np.linalg.solve(a.T @ (weight * a) + RIDGE * np.eye(a.shape[1]), a.T @ (weight * b))
    print("mean error, levels of 255:", np.abs(255 * (a @ table - b)).mean(0).round(1).tolist())
    for row in table:
        print(f"    ({', '.join(f'{value:.3f}' for value in row)}),")


if __name__ == "__main__":
    main()
