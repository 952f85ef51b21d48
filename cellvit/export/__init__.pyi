from .base import EXPORTS as EXPORTS
from .base import Exporter as Exporter
from .base import exporter as exporter
