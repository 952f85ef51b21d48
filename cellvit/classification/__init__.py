"""Types of one's own from a few labels: classifiers of nuclei, how sure they are, and what to label next."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
