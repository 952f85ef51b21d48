"""OME-Zarr stores of a given picture, as the tools of the field write them: 0.4 and 0.5, sharded, in any order of axes.

:func:`write_ome_zarr` writes a pyramid; its keyword arguments choose what differs between tools. ``KINDS`` names
combinations that all show the same picture at the same place.
"""

import json
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np

KINDS = {
    "0.4 cyx": {},
    "0.4 yxc": {"axes": "yxc"},
    "0.4 tczyx": {"axes": "tczyx"},
    "0.4 centres": {"convention": "centre"},
    "0.4 nanometre": {"unit": "nanometer"},
    "0.5 cyx": {"version": "0.5"},
    "0.5 xyc": {"version": "0.5", "axes": "xyc"},
    "0.5 sharded": {"version": "0.5", "shard": 2},
    "0.5 moved": {"version": "0.5", "origin": (120.0, -35.0), "convention": "centre"},
    "0.5 scaled as a whole": {"version": "0.5", "whole": True},
}
"""Arguments of :func:`write_ome_zarr` by name."""

_METRES = {"micrometer": 1e-6, "nanometer": 1e-9, "millimeter": 1e-3, None: 1e-6}


def write_ome_zarr(path, levels, *, version="0.4", axes="cyx", mpp=0.25, unit="micrometer", **options):
    """Write an image and return its path.

    Args:
        path: Folder, replaced if there is one.
        levels: Pictures ``(H, W, 3)`` or ``(H, W)``, the largest first.
        version: "0.4" (Zarr 2) or "0.5" (Zarr 3).
        axes: Their order, of "tczyx"; t and z get one plane. Without c the pictures are grey.
        mpp: Micrometres per pixel of the first level, or ``(x, y)``.
        unit: Of the axes of space; None names none.
        **options: See :func:`write_image`.
    """
    shutil.rmtree(path, ignore_errors=True)
    root = open_root(path, version)
    write_image(root, levels, version=version, axes=axes, mpp=mpp, unit=unit, **options)
    return Path(path)


def open_root(path, version="0.4"):
    """Return a new, empty group in a folder."""
    import zarr

    return zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)


def write_image(
    group,
    levels,
    *,
    version="0.4",
    axes="cyx",
    mpp=0.25,
    unit="micrometer",
    chunk=64,
    shard=None,
    convention="corner",
    origin=(0.0, 0.0),
    whole=False,
    fill=0,
    leave_out=(),
    channels=None,
    codec=None,
    name="picture",
    scales=None,
):
    """Write an image into a group of zarr.

    Args:
        group: The group.
        levels: See :func:`write_ome_zarr`.
        version: "0.4" or "0.5".
        axes: Order of the axes.
        mpp: Micrometres per pixel.
        unit: Of the axes of space.
        chunk: Side of a chunk.
        shard: Chunks along the side of a shard, or None.
        convention: "corner": all levels begin at one place; "centre": a level begins half a pixel later, as its first
            pixel shows the mean of several.
        origin: ``(x, y)`` micrometres where the first pixel lies.
        whole: Whether the size of a pixel stands with the image, and the levels have factors.
        fill: Fill value of the arrays.
        leave_out: ``(column, row)`` of chunks of the first level that are not stored.
        channels: Entries of "omero", or None.
        codec: Compressor, or None for that of zarr.
        name: Of the image.
        scales: Factors of the levels that are written down, or None for the true ones.
    """
    sides = (mpp, mpp) if np.isscalar(mpp) else mpp
    in_unit = [side * 1e-6 / _METRES[unit] for side in sides]
    factors = [tuple(a / b for a, b in zip(levels[0].shape[1::-1], each.shape[1::-1], strict=True)) for each in levels]
    factors = [tuple(round(f) if abs(f - round(f)) < 0.1 else f for f in pair) for pair in factors]
    datasets = []
    for number, picture in enumerate(levels):
        array = _ordered(picture, axes)
        sizes = {"y": chunk, "x": chunk, "c": array.shape[axes.index("c")] if "c" in axes else 1}
        chunks = tuple(min(sizes.get(axis, 1), side) for axis, side in zip(axes, array.shape, strict=True))
        options = {"fill_value": fill, "chunks": chunks} | ({} if codec is None else {"compressors": codec})
        if version == "0.4":
            options |= {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        else:
            options |= {"dimension_names": list(axes)}
        if shard:
            options["shards"] = tuple(c * (shard if axis in "xy" else 1) for axis, c in zip(axes, chunks, strict=True))
        stored = group.create_array(str(number), shape=array.shape, dtype=array.dtype, **options)
        stored[:] = array
        for column, row in leave_out if number == 0 else ():
            _remove_chunk(group, stored, axes, column, row, version)
        factor = factors[number] if scales is None else scales[number]
        step = factor if whole else [f * side for f, side in zip(factor, in_unit, strict=True)]
        half = [(f - 1) / 2 if convention == "centre" else 0.0 for f in factors[number]]
        start = [h if whole else h * side for h, side in zip(half, in_unit, strict=True)]
        start = start if whole else [s + o * 1e-6 / _METRES[unit] for s, o in zip(start, origin, strict=True)]
        steps = [{"type": "scale", "scale": _by_axis(axes, step, 1.0)}]
        if any(start):
            steps.append({"type": "translation", "translation": _by_axis(axes, start, 0.0)})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    about = {"name": name, "axes": [_axis(axis, unit) for axis in axes], "datasets": datasets}
    if whole:
        about["coordinateTransformations"] = [{"type": "scale", "scale": _by_axis(axes, in_unit, 1.0)}]
    facts = {"multiscales": [about]} | ({} if channels is None else {"omero": {"channels": channels}})
    describe(group, facts, version)


def describe(group, facts, version="0.4"):
    """Write attributes of the format where its version has them."""
    if version == "0.4":
        for entry in facts.get("multiscales", ()):
            entry["version"] = version
        group.attrs.update(facts)
    else:
        group.attrs["ome"] = {"version": version, **facts}


def write_zipped(path, folder, *, inside=""):
    """Pack the store in a folder as an archive, at its root or in a folder ``inside``, and return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(folder).as_posix()}")
    return Path(path)


def damage_chunk(folder, column=0, row=0, *, level="0"):
    """Overwrite the stored bytes of a chunk of an image with axes cyx, and return its file."""
    found = [f for f in Path(folder, level).rglob(f"{row}/{column}") if f.is_file()]
    (file,) = found
    file.write_bytes(b"\x00" * 40)
    return file


def read_description(folder):
    """Return the attributes of a Zarr 2 group."""
    return json.loads(Path(folder, ".zattrs").read_text())


def _ordered(picture, axes):
    array = picture if picture.ndim == 3 else picture[..., None]
    full = np.transpose(array, (2, 0, 1))[None, :, None]  # tczyx
    kept = full
    present = list("tczyx")
    for axis in "tcz":
        if axis not in axes:
            kept = kept.squeeze(present.index(axis))
            present.remove(axis)
    return np.ascontiguousarray(np.transpose(kept, [present.index(axis) for axis in axes]))


def _by_axis(axes, pair, other):
    values = {"x": float(pair[0]), "y": float(pair[1])}
    return [values.get(axis, other) for axis in axes]


def _axis(axis, unit):
    kind = {"t": "time", "c": "channel"}.get(axis, "space")
    return {"name": axis, "type": kind} | ({"unit": unit} if kind == "space" and unit else {})


def _remove_chunk(group, array, axes, column, row, version):
    place = "/".join(str({"x": column, "y": row}.get(axis, 0)) for axis in axes)
    key = f"{place}" if version == "0.4" else f"c/{place}"
    folder = Path(str(group.store.root), group.path, array.path.rpartition("/")[2])
    (folder / key).unlink()


def quiet():
    """Return a context without the remarks of zarr about itself."""
    context = warnings.catch_warnings()
    warnings.filterwarnings("ignore", category=FutureWarning, module="zarr")
    return context
