"""A writer of tiled TIFF that stores a tile once, however many places of the picture show it."""

import io
import struct
import zlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

_LETTERS = {"short": (3, "H"), "long": (4, "I"), "ratio": (5, "I")}


def write_tiled_tiff(path, levels, *, mpp, jpeg=None) -> Path:
    """Write a classic TIFF, deflate with horizontal differences, and return its path.

    Args:
        path: The file.
        levels: Per level, the largest first: a period ``(s, s, 3)`` uint8 that fills it, the side of its tiles (a
            multiple of 16 that divides ``s``), width and height.
        mpp: Resolution of the first level in micrometres per pixel.
        jpeg: Quality; tiles are JPEG then, as scanners write them.
    """
    file = _File(jpeg)
    for number, (period, tile, width, height) in enumerate(levels):
        file.add_level(period, tile, (width, height), mpp=mpp * levels[0][2] / width, reduced=number > 0)
    Path(path).write_bytes(file.content())
    return Path(path)


class _File:
    def __init__(self, jpeg=None):
        self.jpeg = jpeg
        self.parts = []
        self.end = 8
        self.directories = []  # place in the file, number of the part

    def store(self, data):
        self.parts.append(data + b"\0" * (len(data) % 2))
        place, self.end = self.end, self.end + len(self.parts[-1])
        return place

    def add_level(self, period, tile, size, *, mpp, reduced):
        across, down = (-(-pixels // tile) for pixels in size)
        count = len(period) // tile
        cells = period.reshape(count, tile, count, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
        coded = [_deflated(cell) if self.jpeg is None else _jpeg(cell, self.jpeg) for cell in cells]
        places = np.array([(self.store(data), len(data)) for data in coded]).reshape(count, count, 2)
        shown = places[np.ix_(np.arange(down) % count, np.arange(across) % count)].reshape(-1, 2)
        per_cm = Fraction(10_000 / mpp).limit_denominator(10_000)
        fields = {
            254: ("long", int(reduced)),
            256: ("long", size[0]),
            257: ("long", size[1]),
            258: ("short", 8, 8, 8),  # bits
            259: ("short", 8 if self.jpeg is None else 7),  # deflate, JPEG
            262: ("short", 2 if self.jpeg is None else 6),  # RGB, YCbCr
            277: ("short", 3),  # samples
            282: ("ratio", per_cm.numerator, per_cm.denominator),
            283: ("ratio", per_cm.numerator, per_cm.denominator),
            284: ("short", 1),  # samples side by side
            296: ("short", 3),  # per centimetre
            317: ("short", 2),  # horizontal differences
            322: ("long", tile),
            323: ("long", tile),
            324: ("long", *shown[:, 0].tolist()),
            325: ("long", *shown[:, 1].tolist()),
            530: ("short", 1, 1),  # colours as fine as brightness
        }
        if self.jpeg is not None:
            del fields[317]
        entries = b"".join(self.entry(code, *field) for code, field in fields.items())
        place = self.store(struct.pack("<H", len(fields)) + entries + b"\0" * 4)
        self.directories.append((place, len(self.parts) - 1))

    def entry(self, code, kind, *values):
        number, letter = _LETTERS[kind]
        data = struct.pack(f"<{len(values)}{letter}", *values)
        count = len(values) // 2 if kind == "ratio" else len(values)
        field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", self.store(data))
        return struct.pack("<HHI", code, number, count) + field

    def content(self):
        for (_, part), (following, _) in pairwise(self.directories):
            self.parts[part] = self.parts[part][:-4] + struct.pack("<I", following)
        return struct.pack("<2sHI", b"II", 42, self.directories[0][0]) + b"".join(self.parts)


def _deflated(tile):
    differences = np.diff(tile, axis=1, prepend=np.zeros_like(tile[:, :1]))  # modulo 256, as TIFF has it
    return zlib.compress(np.ascontiguousarray(differences).tobytes(), 6)


def _jpeg(tile, quality):
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
