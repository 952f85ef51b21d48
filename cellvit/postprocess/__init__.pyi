from .base import POSTPROCESSORS as POSTPROCESSORS
from .base import Postprocessor as Postprocessor
from .hv import HVPostprocessor as HVPostprocessor
from .hv_torch import HVTorchPostprocessor as HVTorchPostprocessor
from .measure import nuclei_from_instances as nuclei_from_instances
from .star import StarPostprocessor as StarPostprocessor
