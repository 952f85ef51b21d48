from .table import LABELS_FILE as LABELS_FILE
from .table import Labels as Labels
from .table import nuclei_digest as nuclei_digest
from .table import read_labels as read_labels
from .table import write_labels as write_labels
