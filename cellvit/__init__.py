"""cellvit finds, outlines and types every cell nucleus in H&E-stained tissue.

Names are imported on first use, so ``import cellvit`` is quick and pulls in nothing that is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellvit.data import FolderDataModule as FolderDataModule
    from cellvit.data import PanNukeDataModule as PanNukeDataModule
    from cellvit.decoders.base import DECODERS as DECODERS
    from cellvit.decoders.base import Decoder as Decoder
    from cellvit.encoders.base import ENCODERS as ENCODERS
    from cellvit.encoders.base import Encoder as Encoder
    from cellvit.errors import CellViTError as CellViTError
    from cellvit.finetuning import init_from as init_from
    from cellvit.heads.base import HEADS as HEADS
    from cellvit.heads.base import Head as Head
    from cellvit.heads.base import HeadSizes as HeadSizes
    from cellvit.metrics.base import METRICS as METRICS
    from cellvit.metrics.base import NucleiMetric as NucleiMetric
    from cellvit.metrics.detection import CentroidDetection as CentroidDetection
    from cellvit.metrics.panoptic import PanopticQuality as PanopticQuality
    from cellvit.model import CellViT as CellViT
    from cellvit.postprocess.base import POSTPROCESSORS as POSTPROCESSORS
    from cellvit.postprocess.base import Postprocessor as Postprocessor
    from cellvit.postprocess.hv import HVPostprocessor as HVPostprocessor
    from cellvit.runner.slide import segment_slide as segment_slide
    from cellvit.segment import segment_image as segment_image
    from cellvit.types import Batch as Batch
    from cellvit.types import EncoderOutput as EncoderOutput
    from cellvit.types import FeatureInfo as FeatureInfo
    from cellvit.types import Nuclei as Nuclei
    from cellvit.types import NucleiClasses as NucleiClasses
    from cellvit.types import NucleiPrediction as NucleiPrediction

_HOMES = {
    "Batch": "cellvit.types",
    "CellViT": "cellvit.model",
    "CellViTError": "cellvit.errors",
    "CentroidDetection": "cellvit.metrics.detection",
    "DECODERS": "cellvit.decoders.base",
    "Decoder": "cellvit.decoders.base",
    "ENCODERS": "cellvit.encoders.base",
    "Encoder": "cellvit.encoders.base",
    "EncoderOutput": "cellvit.types",
    "FeatureInfo": "cellvit.types",
    "FolderDataModule": "cellvit.data",
    "HEADS": "cellvit.heads.base",
    "HVPostprocessor": "cellvit.postprocess.hv",
    "Head": "cellvit.heads.base",
    "HeadSizes": "cellvit.heads.base",
    "METRICS": "cellvit.metrics.base",
    "Nuclei": "cellvit.types",
    "NucleiClasses": "cellvit.types",
    "NucleiMetric": "cellvit.metrics.base",
    "NucleiPrediction": "cellvit.types",
    "POSTPROCESSORS": "cellvit.postprocess.base",
    "PanNukeDataModule": "cellvit.data",
    "PanopticQuality": "cellvit.metrics.panoptic",
    "Postprocessor": "cellvit.postprocess.base",
    "init_from": "cellvit.finetuning",
    "segment_image": "cellvit.segment",
    "segment_slide": "cellvit.runner.slide",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cellvit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
