"""Small folds in both layouts of PanNuke, written by the tests."""

from pathlib import Path

import numpy as np

LAYOUTS = {
    "distributed": {
        "images": "Fold {k}/images/fold{k}/images.npy",
        "types": "Fold {k}/images/fold{k}/types.npy",
        "masks": "Fold {k}/masks/fold{k}/masks.npy",
    },
    "types beside masks": {
        "images": "Fold {k}/images/fold{k}/images.npy",
        "types": "Fold {k}/masks/fold{k}/types.npy",
        "masks": "Fold {k}/masks/fold{k}/masks.npy",
    },
    "flat": {kind: "fold{k}/" + kind + ".npy" for kind in ("images", "masks", "types")},
    "upper case": {kind: "FOLD_{k}/" + kind.upper() + ".npy" for kind in ("images", "masks", "types")},
}


def draw_arrays(seed, *, count=4, size=16, channels=6):
    """Return images of noise, masks of rectangles whose ids are unique in each patch, and tissues."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3)).astype(np.float64)
    masks = np.zeros((count, size, size, channels))
    for mask in masks:
        numbers = rng.permutation(np.arange(1, 40))
        for i in range(rng.integers(2, 8)):
            top, left = rng.integers(0, size - 3, 2)
            height, width = rng.integers(2, 8, 2)
            mask[top : top + height, left : left + width, rng.integers(channels - 1)] = numbers[i]
        mask[..., -1] = ~(mask[..., :-1] > 0).any(axis=-1)
    tissues = np.array(["Breast", "Colon", "Bile-duct"])[rng.integers(3, size=count)]
    return {"images": images, "masks": masks, "types": tissues}


def write_fold(root: Path, number, arrays, *, layout="distributed"):
    """Write one fold."""
    for kind, array in arrays.items():
        path = root / LAYOUTS[layout][kind].format(k=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)


def write_folds(root: Path, *, layout="distributed", **drawing):
    """Write folds 1 to 3 and return their arrays by number."""
    folds = {number: draw_arrays(number, **drawing) for number in (1, 2, 3)}
    for number, arrays in folds.items():
        write_fold(root, number, arrays, layout=layout)
    return folds


def slow_maps(mask):
    """Return instance and type map of ``(S, S, C)`` by the published rule, one nucleus and one pixel at a time."""
    height, width, channels = mask.shape
    instances, types = np.zeros((height, width), int), np.zeros((height, width), int)
    count = 0
    for j in range(channels - 1):
        ids = sorted({int(v) for v in mask[..., j].ravel() if v > 0})
        for row in range(height):
            for col in range(width):
                if mask[row, col, j] > 0:
                    instances[row, col] = count + 1 + ids.index(int(mask[row, col, j]))
                    types[row, col] = j + 1
        count += len(ids)
    left = sorted({int(v) for v in instances.ravel() if v > 0})
    for row in range(height):
        for col in range(width):
            if instances[row, col]:
                instances[row, col] = 1 + left.index(instances[row, col])
    return instances, types


def tree_bytes(folder: Path):
    """Return the content of every file of a folder, also hidden ones, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
