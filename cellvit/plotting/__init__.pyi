from .hotspots import write_closeups as write_closeups
from .overlay import draw_comparison as draw_comparison
from .overlay import draw_instances as draw_instances
from .overlay import draw_overlay as draw_overlay
from .overlay import write_overlay as write_overlay
from .slides import write_density as write_density
from .slides import write_slide_overlay as write_slide_overlay
