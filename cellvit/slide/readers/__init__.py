"""What reads slides, a module for each kind of file. Importing registers them, without the libraries they need."""

from cellvit.slide.readers import image, openslide, tiff

__all__ = ["image", "openslide", "tiff"]
