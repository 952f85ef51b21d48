"""A narrow decoder and a few small patches, to train in a moment."""

import torch
from torch.utils.data import DataLoader

DECODER = {
    "class_path": "unetr",
    "init_args": {"widths": [4, 6, 8, 10], "skip_widths": [6, 4], "image_width": 3, "shared_levels": 3},
}


def make_loader(count=4):
    """Return batches of two patches with one square nucleus each."""
    labels = torch.zeros(32, 32, dtype=torch.int64)
    labels[8:20, 8:20] = 1
    maps = dict.fromkeys(("instance_map", "nuclei_binary_map", "nuclei_type_map"), labels)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    item = {"image": image, "hv_map": torch.zeros(2, 32, 32), "tissue_types": torch.tensor(0)}
    return DataLoader([{**item, **maps, "name": "a"}] * count, batch_size=2)
