"""Reading and writing: nuclei in every format, images, label maps.

=============  ==================================  ============================================================
what           functions                           keeps
=============  ==================================  ============================================================
any of these   read_nuclei                         what its format does; the content says which one it is
other formats  formats.base.FORMATS                what each says: CSV, COCO, ImageJ, OME-XML, DICOM, label images
Parquet        write_parquet, read_parquet         everything
Arrow          to_arrow, from_arrow                everything, without copying
GeoJSON        write_geojson, read_geojson         all but embeddings; broken outlines are repaired (QuPath)
cells JSON     write_json, read_json               all but embeddings; the layout of the released tools
AnnData        write_anndata, read_anndata         all but outlines
SpatialData    write_spatialdata                   everything; broken outlines are repaired
frames         Nuclei.to_pandas, from_pandas, ...  all but embeddings; outlines in GeoPandas and SpatialData
conversion     convert_nuclei                      from any format to any other, in pieces
images         read_image, to_rgb                  RGB as ``uint8 (H, W, 3)``
resolution     read_mpp, read_resolution           microns per pixel, where it stands, what is wrong with it
label maps     read_label                          nuclei of a data set as a map of instances
other labels   detections.read_nuclei              Lizard, CoNSeP, HoVer-Net, COCO, LabelMe, ImageScope, ImageJ, masks
any file       atomic_path, atomic_text            a file that is whole or not there
=============  ==================================  ============================================================

A writer takes :class:`cellvit.types.Nuclei` and a path, writes beside the place and renames when complete. A reader
gives :class:`~cellvit.types.Nuclei` back. For a slide that does not fit into memory, the formats of the registry,
``write_parquet_stream``, ``write_geojson_stream``, ``write_json_stream``, ``write_anndata`` and ``write_spatialdata``
take nuclei in chunks, a :class:`~cellvit.io.stream.NucleiStream` such as :class:`ParquetStream`; the same nuclei give
the same bytes either way.

AnnData and SpatialData need the extra ``spatial``, some others ``formats``: ``pip install '.[spatial,formats]'`` in a
checkout.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
