from .base import EXPORTS as EXPORTS
from .base import Exporter as Exporter
from .base import exporter as exporter
from .programs import export_onnx as export_onnx
from .programs import export_torch as export_torch
from .qupath import export_qupath as export_qupath
