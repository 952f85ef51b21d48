"""What reads slides, a module for each kind of file. Importing registers them, without the libraries they need."""

from cellvit.slide.readers import czi, dicom, image, ome_zarr, openslide, tiff

__all__ = ["czi", "dicom", "image", "ome_zarr", "openslide", "tiff"]
