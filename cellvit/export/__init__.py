"""Nuclei as files: QuPath GeoJSON, the released JSON layout, Parquet and Arrow, AnnData and SpatialData, and pictures.

Every writer takes a :class:`cellvit.types.Nuclei` and a path, writes beside the place and renames when complete, so
a file is either whole or not there. Every reader gives :class:`~cellvit.types.Nuclei` back. Writers of whole slides
take nuclei in chunks, a :class:`~cellvit.export.stream.NucleiStream` such as :class:`ParquetStream`, and hold few of
them in memory; the same nuclei give the same bytes either way.

===========  ==========================================  =========================================================
format       functions                                   keeps
===========  ==========================================  =========================================================
GeoJSON      write_geojson(_stream), read_geojson        all but embeddings; broken outlines are repaired
JSON         write_json(_stream), read_json              all but embeddings
Parquet      write_parquet(_stream), read_parquet        everything
Arrow        to_arrow, from_arrow                        everything, without copying
AnnData      write_anndata, read_anndata                 all but outlines
SpatialData  write_spatialdata                           everything; broken outlines are repaired
picture      write_overlay, draw_overlay                 for the eye only
of slides    write_slide_overlay, write_density,         for the eye only
             write_closeups
===========  ==========================================  =========================================================

The packages that AnnData and SpatialData need come with ``pip install 'cellvit-lightning[spatial]'``.
"""

from cellvit.atomic import atomic_path, atomic_text
from cellvit.export.anndata import read_anndata, write_anndata
from cellvit.export.closeups import write_closeups
from cellvit.export.geojson import read_geojson, write_geojson, write_geojson_stream
from cellvit.export.json import read_json, write_json, write_json_stream
from cellvit.export.overlay import draw_comparison, draw_instances, draw_overlay, write_overlay
from cellvit.export.palette import type_color, type_name
from cellvit.export.parquet import (
    ParquetStream,
    from_arrow,
    read_parquet,
    to_arrow,
    write_parquet,
    write_parquet_stream,
)
from cellvit.export.slide_pictures import write_density, write_slide_overlay
from cellvit.export.spatialdata import write_spatialdata
from cellvit.export.stream import NucleiStream, Patches, as_stream

__all__ = [
    "NucleiStream",
    "ParquetStream",
    "Patches",
    "as_stream",
    "atomic_path",
    "atomic_text",
    "draw_comparison",
    "draw_instances",
    "draw_overlay",
    "from_arrow",
    "read_anndata",
    "read_geojson",
    "read_json",
    "read_parquet",
    "to_arrow",
    "type_color",
    "type_name",
    "write_anndata",
    "write_closeups",
    "write_density",
    "write_geojson",
    "write_geojson_stream",
    "write_json",
    "write_json_stream",
    "write_overlay",
    "write_parquet",
    "write_parquet_stream",
    "write_slide_overlay",
    "write_spatialdata",
]
