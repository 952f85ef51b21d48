import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import get_type_hints

import pytest

import cellvit
from cellvit import FeatureInfo, Nuclei, NucleiClasses, SlideSettings, segment_slide

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
    "SlideResult",
    "SlideSettings",
    "evaluate",
    "init_from",
    "list_models",
    "load_model",
    "open_slide",
    "read_image",
    "read_nuclei",
    "segment_image",
    "segment_slide",
    "view",
]
MODULES = sorted(
    path.stem
    for path in Path(cellvit.__file__).parent.iterdir()
    if not path.stem.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file())
)
HEAVY = ("torch", "lightning", "timm", "cv2", "shapely", "pyarrow", "scipy", "skimage", "PIL", "rich", "matplotlib")


def heavy_modules_after(statement):
    """Return which of the heavy packages a fresh interpreter has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*(m for m in {HEAVY} if m in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


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


def test_the_version_is_that_of_the_distribution():
    assert cellvit.__version__ == version("cellvit-lightning")
    assert "__version__" in dir(cellvit)


@pytest.mark.parametrize("name", MODULES)
def test_packages_are_attributes_and_listed(name):
    assert getattr(cellvit, name) is import_module(f"cellvit.{name}")
    assert name in dir(cellvit)
    assert name not in cellvit.__all__


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import cellvit; cellvit.__version__; dir(cellvit)", ""),
        ("from cellvit import Nuclei, NucleiClasses, Batch, EncoderOutput, FeatureInfo, NucleiPrediction", ""),
        ("from cellvit import list_models; list_models()", ""),
        ("import cellvit.types, cellvit.classes, cellvit.geometry.polygons", ""),
        ("from cellvit import SlideSettings", ""),
        ("from cellvit import read_image", "PIL"),
        ("from cellvit import open_slide", "PIL"),
        ("from cellvit.io import read_json, write_json", ""),
        ("import cellvit.io.geojson, cellvit.io.anndata, cellvit.io.spatialdata, cellvit.io.stream", "shapely"),
        ("from cellvit import read_nuclei", "shapely pyarrow"),
    ],
)
def test_what_an_import_brings_along(statement, allowed):
    assert heavy_modules_after(statement) <= set(allowed.split())


@pytest.mark.parametrize("package", ["io", "plotting"])
def test_files_and_pictures_need_no_torch(package):
    names = [path.stem for path in Path(cellvit.__file__).with_name(package).glob("*.py")]
    statement = "; ".join(f"import cellvit.{package}.{name}" for name in names if name != "__init__")
    assert not heavy_modules_after(statement) & {"torch", "lightning", "timm"}


def test_arguments_that_a_command_line_parses_have_hints_that_resolve():
    for thing in (FeatureInfo, NucleiClasses, SlideSettings, Nuclei, segment_slide):
        assert get_type_hints(thing)
