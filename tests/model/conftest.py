import pytest

from cellvit import CellViT

SMALL = {
    "encoder": {
        "class_path": "hybrid",
        "init_args": {"widths": [4, 6, 8], "embed_dim": 16, "depth": 1, "num_heads": 2, "window": 4},
    },
    "decoder": {
        "class_path": "unetr",
        "init_args": {"widths": [4, 6, 8, 10], "skip_widths": [6, 4], "image_width": 3, "shared_levels": 3},
    },
    "num_nuclei_classes": 3,
}


@pytest.fixture
def small_settings():
    return {**SMALL}


@pytest.fixture
def small_model():
    return CellViT(**SMALL).eval()
