from .base import EXPORTS as EXPORTS
from .base import Exporter as Exporter
from .base import exporter as exporter
from .qupath import export_qupath as export_qupath
