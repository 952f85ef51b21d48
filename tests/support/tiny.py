"""Parts of networks that build, run and train in a moment, and the network most tests use."""

import torch
from torch.utils.data import DataLoader

from cellvit.model.cellvit import CellViT


def spec(name, **arguments):
    """Return a part as a configuration names it."""
    return {"class_path": name, "init_args": arguments}


VIT = spec("vit-256", embed_dim=24, depth=4, num_heads=3)
HYBRID = spec("hybrid", widths=[4, 8, 8], embed_dim=24, depth=1, num_heads=2)
NARROW_HYBRID = spec("hybrid", widths=[4, 6, 8], embed_dim=16, depth=1, num_heads=2)

UNETR = spec("unetr", widths=[4, 8, 8, 16], skip_widths=[8, 8], image_width=4)
NARROW_UNETR = spec("unetr", widths=[4, 6, 8, 10], image_width=3)
SHARED_UNETR = spec("unetr", widths=[4, 6, 8, 10], skip_widths=[6, 4], image_width=3, shared_levels=3)
THIN_UNETR = spec("unetr", widths=[4, 4, 4, 4], skip_widths=[4, 4], image_width=2)
TIMM_UNETR = spec("unetr", widths=[4, 4, 8, 8], skip_widths=[8, 4], image_width=4)


def tiny_network(num_nuclei_classes=6, **settings):
    """Return a small untrained network that finds something in noise."""
    torch.manual_seed(1)
    return CellViT(HYBRID, num_nuclei_classes=num_nuclei_classes, decoder=UNETR, **settings).eval()


def make_loader(count=4):
    """Return batches of two patches with one square nucleus each."""
    labels = torch.zeros(32, 32, dtype=torch.int64)
    labels[8:20, 8:20] = 1
    maps = dict.fromkeys(("instance_map", "nuclei_binary_map", "nuclei_type_map"), labels)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    item = {"image": image, "hv_map": torch.zeros(2, 32, 32), "tissue_types": torch.tensor(0)}
    return DataLoader([{**item, **maps, "name": "a"}] * count, batch_size=2)
