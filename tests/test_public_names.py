import subprocess
import sys

import pytest

import cellvit

PUBLIC = [
    "Batch",
    "CellViT",
    "CellViTError",
    "CentroidDetection",
    "DECODERS",
    "Decoder",
    "ENCODERS",
    "Encoder",
    "EncoderOutput",
    "FeatureInfo",
    "FolderDataModule",
    "HEADS",
    "HVPostprocessor",
    "Head",
    "HeadSizes",
    "METRICS",
    "Nuclei",
    "NucleiClasses",
    "NucleiMetric",
    "NucleiPrediction",
    "POSTPROCESSORS",
    "PanNukeDataModule",
    "PanopticQuality",
    "Postprocessor",
    "init_from",
    "segment_image",
    "segment_slide",
]


def test_public_names_are_the_stored_ones():
    assert sorted(cellvit.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(cellvit))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_documented(name):
    thing = getattr(cellvit, name)
    assert thing.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Cellvit'"):
        _ = cellvit.Cellvit


def test_importing_the_package_loads_nothing_heavy():
    code = "import cellvit, sys; print([m for m in ('torch', 'lightning', 'timm', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
