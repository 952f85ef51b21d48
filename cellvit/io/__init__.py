"""Nuclei as files: QuPath GeoJSON, the released JSON layout, Parquet and Arrow, AnnData and SpatialData.

Every writer takes a :class:`cellvit.types.Nuclei` and a path, writes beside the place and renames when complete, so
a file is either whole or not there. Every reader gives :class:`~cellvit.types.Nuclei` back. Writers of whole slides
take nuclei in chunks, a :class:`~cellvit.io.stream.NucleiStream` such as :class:`ParquetStream`, and hold few of
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
===========  ==========================================  =========================================================

The packages that AnnData and SpatialData need come with ``pip install 'cellvit-lightning[spatial]'``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
