"""What a table of nuclei becomes in other packages: the methods that :class:`cellvit.types.Nuclei` has for it.

The work is done by modules that stand above this one. Which ones, :data:`PROVIDERS` says, which the package's own
``__init__`` fills: here nothing of them is known, and a module is imported when one of its methods is called.
"""

from importlib import import_module
from typing import Any, Self

PROVIDERS: dict[str, str] = {}
"""Dotted path of the module for ``"tables"`` and for ``"pictures"``."""


class Conversions:
    """The conversions of a table of nuclei; mixed into :class:`cellvit.types.Nuclei`."""

    def to_pandas(self) -> Any:
        """Return the nuclei as a ``pandas.DataFrame``, one row each, without outlines and embeddings.

        Columns: ``label``, ``type`` (categorical, missing where no type is known), ``type_id``, ``type_prob``, centroid
        ``x`` and ``y``, box ``xmin``, ``ymin``, ``xmax``, ``ymax``, ``area_px``, where the resolution is known
        ``area_um2``, and the measurements. ``attrs["cellvit"]`` keeps names and colours of types and the resolution.

        Raises:
            ConfigError: If the extra ``formats`` is not installed.
            DataError: If a measurement has the name of another column.
        """
        return _provider("tables").to_pandas(self)

    def to_polars(self) -> Any:
        """Return the columns of :meth:`to_pandas` as a ``polars.DataFrame``; the type is text.

        Raises:
            ConfigError: If the extra ``formats`` is not installed.
        """
        return _provider("tables").to_polars(self)

    def to_geopandas(self) -> Any:
        """Return the columns of :meth:`to_pandas` as a ``geopandas.GeoDataFrame`` with valid polygons.

        Raises:
            ConfigError: If the extra ``formats`` is not installed.
            DataError: If a coordinate is not finite.
        """
        return _provider("tables").to_geopandas(self)

    def to_anndata(self) -> Any:
        """Return the nuclei as ``anndata.AnnData``; see :func:`cellvit.io.anndata.write_anndata`.

        Raises:
            ConfigError: If the extra ``spatial`` is not installed.
        """
        return _provider("tables").to_anndata(self)

    def to_spatialdata(self) -> Any:
        """Return the nuclei as ``spatialdata.SpatialData``; see :func:`cellvit.io.spatialdata.write_spatialdata`.

        Raises:
            ConfigError: If the extra ``spatial`` is not installed.
        """
        return _provider("tables").to_spatialdata(self)

    @classmethod
    def from_pandas(cls, frame: Any) -> Self:
        """Return the nuclei of a frame of :meth:`to_pandas`, or of any with columns ``x`` and ``y``.

        Args:
            frame: A ``pandas.DataFrame``, in any order of rows. The name of a type wins over its number, so that a
                corrected ``type`` is a corrected type.

        Raises:
            DataError: If there are no coordinates.
        """
        return cls._checked(_provider("tables").from_pandas(frame))

    @classmethod
    def from_polars(cls, frame: Any) -> Self:
        """Return the nuclei of a frame of :meth:`to_polars`; see :meth:`from_pandas`."""
        return cls._checked(_provider("tables").from_polars(frame))

    @classmethod
    def from_geopandas(cls, frame: Any) -> Self:
        """Return the nuclei of a ``geopandas.GeoDataFrame``: of :meth:`to_geopandas`, or read from GeoJSON of QuPath.

        Args:
            frame: Polygons in pixels; of one with several pieces the largest counts. See :meth:`from_pandas`.

        Raises:
            DataError: If there are no polygons.
        """
        return cls._checked(_provider("tables").from_geopandas(frame))

    @classmethod
    def from_anndata(cls, data: Any) -> Self:
        """Return the nuclei of an ``anndata.AnnData`` of :meth:`to_anndata`, without outlines.

        Raises:
            DataError: If it is not of nuclei.
        """
        return cls._checked(_provider("tables").from_anndata(data))

    @classmethod
    def from_spatialdata(cls, data: Any) -> Self:
        """Return the nuclei of a ``spatialdata.SpatialData`` of :meth:`to_spatialdata`.

        Raises:
            DataError: If it is not of nuclei.
        """
        return cls._checked(_provider("tables").from_spatialdata(data))

    def plot(self, image: Any, *, legend: bool = True) -> Any:
        """Return a picture of the nuclei on their image, which notebooks show.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, in whose pixels the nuclei are.
            legend: Add a panel with the names and counts of the types.

        Returns:
            A ``PIL.Image.Image``.

        Raises:
            ImageError: If the image is not of this form.
        """
        return _provider("pictures").plot_overlay(image, self, legend=legend)

    @classmethod
    def _checked(cls, nuclei: Any) -> Self:
        assert isinstance(nuclei, cls)  # whoever provides the conversion makes what it is called on
        return nuclei


def _provider(name: str) -> Any:
    return import_module(PROVIDERS[name])
