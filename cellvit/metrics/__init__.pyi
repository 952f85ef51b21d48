from .base import METRICS as METRICS
from .base import NucleiMetric as NucleiMetric
from .detection import CentroidDetection as CentroidDetection
from .overlap import AggregatedJaccard as AggregatedJaccard
from .overlap import BinaryOverlap as BinaryOverlap
from .panoptic import PanopticQuality as PanopticQuality
from .tissue import TissueAccuracy as TissueAccuracy
