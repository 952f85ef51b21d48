"""A writer of CZI as a scanner of Zeiss leaves it: mosaics, scenes, levels, and blue before red.

Written after the format's description, "ZISRAW (CZI) File Format" of Carl Zeiss: segments with a head of 32 bytes, of
which a file has one with pointers, one with XML, one for each tile ("subblock") and one that lists the tiles. Tiles of
pixel type 3, Bgr24, hold blue, green and red in this order. pylibCZIrw writes neither levels nor JPEG XR, and it
writes the samples that it is given in their order, so that its own RGB is a file in which red and blue are exchanged.
"""

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np

_NAMES = {("u1", 2): "Gray8", ("u2", 2): "Gray16", ("u1", 3): "Bgr24", ("u2", 3): "Bgr48"}
_KINDS = {"Gray8": 0, "Gray16": 1, "Bgr24": 3, "Bgr48": 4}
_CODES = {"none": 0, "jpeg": 1, "jpegxr": 4, "zstd0": 5, "zstd1": 6}
_RGB, _BGR = (bytes.fromhex(f"24c3dd6f034efe4bb1853d77768dc9{last}") for last in ("0d", "0c"))
_MASKED = b"<METADATA><AttachmentSchema><DataFormat>CHUNKCONTAINER</DataFormat></AttachmentSchema></METADATA>"
_MASK = uuid.UUID("CBE3EA67-5BFC-492B-A16A-ECE378031448").bytes_le


@dataclass(frozen=True)
class CziTile:
    """A piece of a level.

    Attributes:
        pixels: ``(h, w, 3)`` RGB or ``(h, w)`` grey, uint8 or uint16.
        place: ``(x, y)`` of its corner in level-0 pixels.
        ratio: Level-0 pixels in a pixel of it.
        scene: Number of the scene.
        plane: Further dimensions, such as ``(("Z", 3),)``.
        valid: ``(h, w)`` bool, which pixels are those of the slide; None says nothing, which means all.
    """

    pixels: np.ndarray
    place: tuple[int, int]
    ratio: int = 1
    scene: int | None = 0
    plane: tuple[tuple[str, int], ...] = ()
    valid: np.ndarray | None = None


def cut(image, *, tile=128, ratio=1, place=(0, 0), scene=0, plane=(), keep=lambda column, row: True) -> list[CziTile]:
    """Return an image in tiles.

    Args:
        image: A level.
        tile: Side of a tile in pixels of the level.
        ratio: Level-0 pixels in a pixel of it.
        place: ``(x, y)`` of its corner in level-0 pixels.
        scene: Number of the scene.
        plane: Further dimensions.
        keep: Whether a tile is there, by its column and row.
    """
    return [
        CziTile(image[y : y + tile, x : x + tile], (place[0] + x * ratio, place[1] + y * ratio), ratio, scene, plane)
        for y in range(0, image.shape[0], tile)
        for x in range(0, image.shape[1], tile)
        if keep(x // tile, y // tile)
    ]


def write_czi(
    path, tiles: Iterable[CziTile], *, mpp=0.25, power=40, compression="none", quality=95, metadata=True, **about
):
    """Write a file and return its path.

    Args:
        path: The file.
        tiles: In the order in which they lie upon each other.
        mpp: Micrometres per pixel, one number, one for each axis, or None for a file that states none.
        power: Of the objective, or None.
        compression: "none", "jpeg", "jpegxr", "zstd0" or "zstd1".
        quality: Of JPEG and JPEG XR; 100 loses nothing in JPEG XR.
        metadata: Whether there is XML at all.
        about: ``contrast`` of its channels, names of its ``scenes``, the
            ``program`` that wrote it.
    """
    tiles = list(tiles)
    with Path(path).open("wb") as file:
        file.write(bytes(32 + 512))
        entries, coded = [], {}  # pixels that are the same object are encoded once
        for number, tile in enumerate(tiles):
            if id(tile.pixels) not in coded:
                coded[id(tile.pixels)] = _encoded(tile.pixels, compression, quality)
            data = coded[id(tile.pixels)]
            entries.append(_entry(tile, number, file.tell(), compression))
            note, beside = (b"", b"") if tile.valid is None else (_MASKED, _mask(tile.valid))
            head = struct.pack("<iiq", len(note), len(beside), len(data)) + entries[-1]
            _segment(file, "ZISRAWSUBBLOCK", head.ljust(256, b"\0") + note + data + beside)
        told = {"contrast": "Brightfield", "scenes": (), "program": "ZEN"} | about
        xml = _xml(tiles, mpp, power, **told).encode() if metadata else b""
        attachments = file.tell()
        _segment(file, "ZISRAWATTDIR", bytes(256))
        places = [file.tell()]
        _segment(file, "ZISRAWMETADATA", struct.pack("<ii", len(xml), 0).ljust(256, b"\0") + xml)
        places.insert(0, file.tell())
        _segment(file, "ZISRAWDIRECTORY", struct.pack("<i", len(entries)).ljust(128, b"\0") + b"".join(entries))
        file.seek(0)
        head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, b"p" * 16, b"p" * 16, 0, *places, 0, attachments)
        _segment(file, "ZISRAWFILE", head.ljust(512, b"\0"))
    return Path(path)


def _segment(file, name, data):
    padding = bytes(-len(data) % 32)
    file.write(struct.pack("<16sqq", name.encode(), len(data) + len(padding), len(data)) + data + padding)


def _entry(tile, number, position, compression):
    kind = _KINDS[_NAMES[tile.pixels.dtype.str[1:], tile.pixels.ndim]]
    height, width = tile.pixels.shape[:2]
    axes = [("X", tile.place[0], width * tile.ratio, width), ("Y", tile.place[1], height * tile.ratio, height)]
    axes += [("C", 0, 1, 1)] if "C" not in dict(tile.plane) else []
    axes += [(name, start, 1, 1) for name, start in tile.plane]
    axes += [] if tile.scene is None else [("S", tile.scene, 1, 1)]
    axes += [("M", number, 1, 1)] if tile.ratio == 1 else []
    entry = struct.pack(
        "<2siqiiBBii", b"DV", kind, position, 0, _CODES[compression], 2 * (tile.ratio > 1), 0, 0, len(axes)
    )
    return entry + b"".join(
        struct.pack("<4siifi", name.encode(), start, size, start, stored) for name, start, size, stored in axes
    )


def _mask(valid):
    bits = np.packbits(valid, axis=1)
    body = struct.pack("<IIII", valid.shape[1], valid.shape[0], 0, bits.shape[1]) + bits.tobytes()
    return _MASK + struct.pack("<I", len(body)) + body


def _encoded(pixels, compression, quality):
    pixels = np.ascontiguousarray(pixels)
    if compression == "jpeg":
        return imagecodecs.jpeg8_encode(pixels, quality)
    if compression == "jpegxr":
        level = None if quality == 100 else quality / 100
        return imagecodecs.jpegxr_encode(pixels, level).replace(_RGB, _BGR)  # the same picture, decoded blue first
    stored = pixels[..., ::-1].tobytes() if pixels.ndim == 3 else pixels.tobytes()
    if compression == "none":
        return stored
    head = b"\1" if compression == "zstd1" else b""  # a head of one byte: nothing is rearranged
    return head + imagecodecs.zstd_encode(stored)


def _xml(tiles, mpp, power, contrast, scenes, program):
    scaling = instrument = used = named = ""
    if mpp is not None:
        sizes = zip("XYZ", [*np.broadcast_to(mpp, 2).tolist(), 1.0], strict=True)
        items = "".join(f'<Distance Id="{axis}"><Value>{size * 1e-6!r}</Value></Distance>' for axis, size in sizes)
        scaling = f"<Scaling><Items>{items}</Items></Scaling>"
    if power is not None:
        objective = f'<Objective Id="Objective:1"><NominalMagnification>{power}</NominalMagnification></Objective>'
        instrument = f"<Instrument><Objectives>{objective}</Objectives></Instrument>"
        used = '<ObjectiveSettings><ObjectiveRef Id="Objective:1"/></ObjectiveSettings>'
    if scenes:
        items = "".join(f'<Scene Index="{index}" Name="{name}"/>' for index, name in enumerate(scenes))
        named = f"<S><Scenes>{items}</Scenes></S>"
    kinds = {dict(tile.plane).get("C", 0): _NAMES[tile.pixels.dtype.str[1:], tile.pixels.ndim] for tile in tiles}
    channels = "".join(
        f'<Channel Id="Channel:{number}" Name="Cam{number}"><PixelType>{kind}</PixelType>'
        f"<ContrastMethod>{contrast}</ContrastMethod></Channel>"
        for number, kind in sorted(kinds.items())
    )
    full = [tile for tile in tiles if tile.ratio == 1] or tiles
    width, height = (
        max(t.place[i] + t.pixels.shape[1 - i] for t in full) - min(t.place[i] for t in full) for i in (0, 1)
    )
    count = len({tile.scene for tile in tiles} - {None})
    sizes = f"<SizeX>{width}</SizeX><SizeY>{height}</SizeY>" + (f"<SizeS>{count}</SizeS>" if count else "")
    image = f"<Image>{sizes}<Dimensions><Channels>{channels}</Channels>{named}</Dimensions>{used}</Image>"
    application = f"<Application><Name>{program}</Name></Application>"
    information = f"<Information>{image}{instrument}{application}</Information>"
    return f'<?xml version="1.0"?><ImageDocument><Metadata>{information}{scaling}</Metadata></ImageDocument>'
