"""Label images as OME-Zarr, for napari, and for what reads NGFF."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.classes import type_color, type_label
from cellvit.errors import DataError
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat, image_size
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei

_LABELS, _NAME = "labels", "nuclei"


@FORMATS.register("ome-zarr")
class OmeZarr(NucleiFormat):
    """Label image as OME-Zarr, a pyramid of chunks with type and colour of every label, beside the thumbnail."""

    file = "labels.ome.zarr"
    suffixes = (".labels.ome.zarr", ".ome.zarr")
    extra = "formats"
    packages = ("ome_zarr", "zarr")
    priority = 50

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a folder is a store with labels of nuclei."""
        return (path / _LABELS / _NAME / "zarr.json").is_file()

    def _read(self, path: Path) -> Nuclei:
        import zarr

        from cellvit.io.formats.label_maps import nuclei_of_map
        from cellvit.io.limits import check_expanded

        try:
            group: Any = zarr.open_group(path, mode="r")[f"{_LABELS}/{_NAME}"]
            about = group.attrs["ome"]
            (dataset, *_) = about["multiscales"][0]["datasets"]
            stated = about["image-label"].get("properties", [])
            types = {int(one["label-value"]): int(one["type_id"]) for one in stated if "type_id" in one}
            names = {int(one["type_id"]): str(one["type"]) for one in stated if "type" in one}
            unit = about["multiscales"][0]["axes"][0].get("unit")
            mpp = float(dataset["coordinateTransformations"][0]["scale"][0]) if unit == "micrometer" else None
            array = group[dataset["path"]]
            check_expanded(array.nbytes, repr(str(path)))
            instances = np.asarray(array)
        except DataError:
            raise
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{str(path)!r} is no OME-Zarr with labels of nuclei ({reason}); write it again") from error
        return nuclei_of_map(instances, source=repr(str(path)), types=types, names=names, mpp=mpp)

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        import zarr

        from cellvit.io.atomic import atomic_store
        from cellvit.io.formats.label_maps import TILE, LabelImage

        with warnings.catch_warnings():  # of the package about itself
            warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
            from ome_zarr.writer import write_label_metadata

        labels = LabelImage(stream, image_size(stream, image))
        shapes = [labels.level_shape(level) for level in range(labels.levels)]
        with atomic_store(path) as temporary:
            root: Any = zarr.open_group(temporary, mode="w", zarr_format=3)
            group = root.create_group(f"{_LABELS}/{_NAME}")
            for level, shape in enumerate(shapes):
                chunks = (min(TILE, shape[0]), min(TILE, shape[1]))
                array = group.create_array(
                    str(level), shape=shape, chunks=chunks, dtype="uint32", dimension_names=["y", "x"]
                )
                for y, x, tile in labels.tiles(level):
                    if tile.any():
                        array[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            _describe(group, [(2.0**level,) * 2 for level in range(labels.levels)], image.mpp)
            values = list(zip(labels.labels.tolist(), labels.types.tolist(), strict=True))
            looks = {
                kind: [int(part) for part in type_color(stream.classes, kind)] for kind in set(labels.types.tolist())
            }
            write_label_metadata(
                root[_LABELS],
                _NAME,
                colors=[{"label-value": label, "rgba": [*map(int, looks[kind]), 255]} for label, kind in values],
                properties=[
                    {"label-value": label}
                    | ({"type": type_label(stream.classes, kind), "type_id": kind} if kind > 0 else {})
                    for label, kind in values
                ],
            )
            if image.picture is not None:
                _add_picture(root, image)


def _describe(group: Any, scales: list[tuple[float, ...]], mpp: float | None, shift: tuple[float, ...] = ()) -> None:
    """Write what the levels of a group are: factor per axis and level, in µm where the resolution is known."""
    from ome_zarr.writer import write_multiscales_metadata

    unit = {} if mpp is None else {"unit": "micrometer"}
    axes = [{"name": "c", "type": "channel"}] * (len(scales[0]) - 2) + [
        {"name": name, "type": "space", **unit} for name in "yx"
    ]
    size = mpp or 1.0
    datasets = []
    for level, scale in enumerate(scales):
        steps = [{"type": "scale", "scale": [*scale[:-2], *(factor * size for factor in scale[-2:])]}]
        if any(shift):
            steps.append({"type": "translation", "translation": [*shift[:-2], *(part * size for part in shift[-2:])]})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    write_multiscales_metadata(group, datasets, axes=axes, name=_NAME)


def _add_picture(root: Any, image: ImageFacts) -> None:
    """Write the thumbnail as the image that the labels belong to."""
    picture = np.moveaxis(np.asarray(image.picture), -1, 0)
    height, width = picture.shape[1:]
    x, y, across, down = image.bounds or (0, 0, width, height)
    array = root.create_array("0", shape=picture.shape, dtype="uint8", dimension_names=["c", "y", "x"])
    array[:] = picture
    _describe(root, [(1.0, down / height, across / width)], image.mpp, (0.0, float(y), float(x)))
