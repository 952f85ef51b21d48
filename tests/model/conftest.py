import pytest
from support.tiny import NARROW_HYBRID, SHARED_UNETR, spec

from cellvit import CellViT

SMALL = {
    "encoder": spec("hybrid", **NARROW_HYBRID["init_args"], window=4),
    "decoder": SHARED_UNETR,
    "num_nuclei_classes": 3,
}


@pytest.fixture
def small_settings():
    return {**SMALL}


@pytest.fixture
def small_model():
    return CellViT(**SMALL).eval()
