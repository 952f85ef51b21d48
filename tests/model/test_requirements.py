"""Which packages a model's parts come from."""

import json

import numpy
from support.tiny import THIN_UNETR

from cellvit import CellViT
from cellvit.encoders import ViTEncoder
from cellvit.model.requirements import required_packages

SIZES = {"embed_dim": 12, "depth": 4, "num_heads": 2}


class OfThisFile(ViTEncoder):
    """An encoder that no distribution brings."""


def test_our_own_parts_need_nothing(tmp_path):
    model = CellViT({"class_path": "cellvit.encoders.ViTEncoder", "init_args": SIZES}, 3, 2, decoder=THIN_UNETR)
    assert required_packages(model.settings) == {}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["requires"] == {}


def test_a_class_of_a_script_is_under_its_module(tmp_path):
    model = CellViT(OfThisFile(**SIZES), 3, decoder=THIN_UNETR)
    assert required_packages(model.settings) == {__name__: ""}


def test_parts_inside_others_and_their_distributions_are_found():
    settings = {
        "encoder": {"class_path": "lora", "init_args": {"encoder": {"class_path": "numpy.Anything", "init_args": {}}}},
        "decoder": {"class_path": "unetr", "init_args": {"widths": [4, 4, 4, 4]}},
        "postprocessor": {"class_path": "hv-watershed", "init_args": {}},
        "heads": {"hv_map": {"class_path": "hv", "init_args": {}}},
        "metrics": [{"class_path": "cellvit.metrics.PanopticQuality", "init_args": {}}],
    }
    assert required_packages(settings) == {"numpy": numpy.__version__}
