"""Geometry: polygons, star-convex shapes, the symmetries of the square, regions of interest."""
