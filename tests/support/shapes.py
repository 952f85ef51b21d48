"""Label maps drawn by hand."""

import numpy as np


def squares(*corners, shape=(60, 60), side=8):
    """Return an instance map ``(H, W)`` with one square per corner ``(row, column)``, labels in their order."""
    instances = np.zeros(shape, np.int32)
    for label, (row, col) in enumerate(corners, 1):
        instances[row : row + side, col : col + side] = label
    return instances
