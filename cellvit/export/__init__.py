"""Nuclei as files: QuPath GeoJSON, the released JSON layout, Parquet and Arrow, and pictures.

Every writer takes a :class:`cellvit.types.Nuclei` and a path, writes beside the place and renames when complete, so
a file is either whole or not there. Every reader gives :class:`~cellvit.types.Nuclei` back.

============  ==========================  =========================================================
format        functions                   keeps
============  ==========================  =========================================================
GeoJSON       write_geojson, read_geojson all but embeddings; broken outlines are repaired
JSON          write_json, read_json       all but embeddings
Parquet       write_parquet, read_parquet everything
Arrow         to_arrow, from_arrow        everything, without copying
picture       write_overlay, draw_overlay for the eye only
============  ==========================  =========================================================
"""

from cellvit.atomic import atomic_path, atomic_text
from cellvit.export.geojson import read_geojson, write_geojson
from cellvit.export.json import read_json, write_json
from cellvit.export.overlay import draw_comparison, draw_instances, draw_overlay, write_overlay
from cellvit.export.palette import type_color, type_name
from cellvit.export.parquet import from_arrow, read_parquet, to_arrow, write_parquet

__all__ = [
    "atomic_path",
    "atomic_text",
    "draw_comparison",
    "draw_instances",
    "draw_overlay",
    "from_arrow",
    "read_geojson",
    "read_json",
    "read_parquet",
    "to_arrow",
    "type_color",
    "type_name",
    "write_geojson",
    "write_json",
    "write_overlay",
    "write_parquet",
]
