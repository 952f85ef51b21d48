"""Labels that people give to nuclei: the table, readers of annotations, and which nucleus each label means."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
