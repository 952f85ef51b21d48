"""How fast each format of slides is read, beside the same pixels as a tiled TIFF; print one JSON object.

Run as ``python tests/benchmarks/bench_formats.py [--size 40000] [--rounds 2] [--codecs zstd]``. A drawn slide (its side
rounded down to whole tiles) is written in every format from the same few tiles, so that drawing takes seconds, and read
as segmentation reads it: tiles of 1,024 px that share 64, row by row, by a process of its own. Formats of one codec are
read in turn, so that a busy machine slows all of them alike; times are processor seconds of the process, user and
system. Memory is what the process has after a quarter of the tiles, at the end, and at most: flat means that the first
two are alike.
Files go to a temporary folder (up to 3 GB at 40,000 px) and are deleted as soon as their codec is done.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import cv2
import imagecodecs
import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "slide"))
from dicom_drawings import USUAL, _head, _optical_paths, _place, _save
from drawn_pyramids import INK, WHITE
from pydicom.uid import JPEGBaseline8Bit, generate_uid
from support.drawn_czi import CziTile, write_czi
from timing import processor

from cellvit.slide.open import open_slide

TILE, PERIOD = 512, 4  # side of a stored tile, and how many in a row differ
READ, STEP = 1024, 960


def pictures():
    """Return a period of different tiles ``(H, W, 3)``: nuclei-like spots, soft grain, some glass."""
    rng = np.random.default_rng(0)
    side = PERIOD * TILE
    spots = cv2.GaussianBlur((rng.random((side, side)) > 0.9985).astype(np.float32), (0, 0), 5) * 130
    stain = cv2.resize(rng.random((side // 128, side // 128), np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    amount = np.clip(spots + 0.3 * stain, 0, 1)[..., None]
    grain = cv2.GaussianBlur(rng.normal(0, 2, (side, side, 3)).astype(np.float32), (0, 0), 1.0)
    whole = np.clip(WHITE + amount * (INK - WHITE) + grain, 0, 255).astype(np.uint8) // 4 * 4  # compresses as tissue
    return [
        [np.ascontiguousarray(whole[y : y + TILE, x : x + TILE]) for x in range(0, side, TILE)]
        for y in range(0, side, TILE)
    ]


class Drawing:
    """The slide: its size and its tiles, encoded once by codec."""

    def __init__(self, size):
        self.size, self.count, self.tiles = size, size // TILE, pictures()

    def each(self, encode):
        """Return encoded tiles, row by row."""
        coded = [[encode(tile) for tile in row] for row in self.tiles]
        return [coded[row % PERIOD][column % PERIOD] for row in range(self.count) for column in range(self.count)]


def jpeg(tile):
    return imagecodecs.jpeg8_encode(tile, 85, colorspace="RGB", outcolorspace="YCBCR", subsampling="422")


def write_tiff(drawing, path, codec):
    encode = {"jpeg": jpeg, "zstd": lambda tile: imagecodecs.zstd_encode(tile.tobytes())}[codec]
    options = {"photometric": "rgb", "compression": codec, "tile": (TILE, TILE), "metadata": None, "bigtiff": True}
    options |= {"subsampling": (2, 1)} if codec == "jpeg" else {}
    options |= {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, iter(drawing.each(encode)), shape=(drawing.size, drawing.size, 3), dtype=np.uint8, **options)
    return path


def write_dicom(drawing, path, codec):
    path.mkdir()
    shape = np.broadcast_to(np.uint8(0), (drawing.size, drawing.size, 3))
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    names = [generate_uid() for _ in range(3)]
    head = _head(*names, kind, shape, (0.00025, 0.00025), (TILE, TILE), USUAL, (20.0, 40.0), 8)
    head.update(_optical_paths(("0",), ("111744", "Brightfield illumination"), 40, False))
    head.PhotometricInterpretation, head.TotalPixelMatrixFocalPlanes, head.InstanceNumber = "YBR_FULL_422", 1, 1
    frames = drawing.each(jpeg)
    head.NumberOfFrames = len(frames)
    _place(head, [(0, "0", i) for i in range(len(frames))], [], (TILE, TILE), sparse=False, several=False)
    _save(head, path / "slide.dcm", frames, JPEGBaseline8Bit)
    return path / "slide.dcm"


def write_zarr(drawing, path, codec):
    """Write the first chunks with zarr, and let all others be links to them."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    size, side = drawing.size, PERIOD * TILE
    codecs = zarr.codecs.ZstdCodec(level=3)
    array = group.create_array(
        "0", shape=(3, size, size), chunks=(3, TILE, TILE), dtype="uint8", compressors=codecs, fill_value=0
    )
    whole = np.block([[[tile] for tile in row] for row in drawing.tiles])
    part = min(size, side)
    array[:, :part, :part] = np.moveaxis(whole[:part, :part], 2, 0)
    for row in range(drawing.count):
        (path / "0/c/0" / str(row)).mkdir(exist_ok=True)
        for column in range(drawing.count):
            source, target = (
                path / "0/c/0" / str(y) / str(x) for y, x in ((row % PERIOD, column % PERIOD), (row, column))
            )
            if not target.exists():
                os.link(source, target)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    scale = [{"type": "scale", "scale": [1, 0.25, 0.25]}]
    image = {"name": "drawn", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def write_zeiss(drawing, path, codec):
    tiles = [
        CziTile(drawing.tiles[row % PERIOD][column % PERIOD], (column * TILE, row * TILE))
        for row in range(drawing.count)
        for column in range(drawing.count)
    ]
    return write_czi(
        path.with_suffix(".czi"), tiles, compression={"zstd": "zstd0", "jpegxr": "jpegxr"}[codec], quality=85
    )


RUNS = {
    "jpeg": {"TIFF": write_tiff, "DICOM": write_dicom},
    "zstd": {"TIFF": write_tiff, "OME-Zarr": write_zarr, "CZI": write_zeiss},
    "jpegxr": {"CZI": write_zeiss},
}
"""What is compared with each other: formats by codec. JPEG XR of a TIFF is rare; it is compared with JPEG."""


def read(path, side):
    """Read a slide as segmentation does, and print what it took."""
    slide = open_slide(path)
    places = [(x, y) for y in range(0, side, STEP) for x in range(0, side, STEP)]
    slide.read_region(0, 0, 64, 64)  # libraries are loaded when something is read
    started, wall, early, total = time.process_time(), time.perf_counter(), 0, 0
    for number, (x, y) in enumerate(places):
        total += int(slide.read_region(x, y, READ, READ)[::97, ::97].sum())
        if number == len(places) // 4:
            early = resident()
    spent = time.process_time() - started
    said = {"reader": slide.reader, "tiles": len(places), "seconds": spent, "wall": time.perf_counter() - wall}
    print(json.dumps(said | {"mb_at_a_quarter": early, "mb_at_the_end": resident(), "mb_peak": peak(), "sum": total}))


def resident():
    """Return the memory of this process in MB, without pages of files that are only mapped."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return round(int(fields["RssAnon"].split()[0]) / 1e3)


def peak():
    """Return the largest resident set that this process had, in MB, with libraries and mapped files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return round(int(fields["VmHWM"].split()[0]) / 1e3)


def child(path, side):
    command = [sys.executable, __file__, "--read", str(path), "--size", str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bench(size, rounds, codecs):
    """Return for each codec and format tiles per processor second, memory, and the ratio to TIFF."""
    drawing, report = Drawing(size), {}
    for codec in codecs:
        writers = RUNS[codec]
        with tempfile.TemporaryDirectory(prefix="cellvit-bench-") as folder:
            files = {}
            for name, write in writers.items():
                started = time.process_time()
                files[name] = write(drawing, Path(folder) / f"{name}.tif", codec)
                print(f"{codec} {name}: written in {time.process_time() - started:.1f} s", file=sys.stderr)
            runs = {name: [] for name in files}
            for _ in range(rounds):
                for name, path in files.items():
                    runs[name].append(child(path, size))
                    print(codec, name, runs[name][-1], file=sys.stderr)
            sizes = {name: sum(f.stat().st_size for f in _files(path)) for name, path in files.items()}
        for name, found in runs.items():
            report[f"{name}, {codec}"] = {
                "reader": found[0]["reader"],
                "tiles_per_second": round(median(one["tiles"] / one["seconds"] for one in found), 1),
                "mb": {key: max(one[f"mb_{key}"] for one in found) for key in ("at_a_quarter", "at_the_end", "peak")},
                "file_mb": round(sizes[name] / 1e6),
                "sum_of_some_pixels": found[0]["sum"],
            }
    for name, row in report.items():
        codec = name.rpartition(", ")[2]
        twin = report.get(f"TIFF, {'jpeg' if codec == 'jpegxr' else codec}")
        row["of_tiff"] = None if twin is None else round(row["tiles_per_second"] / twin["tiles_per_second"], 2)
    return report


def _files(path):
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=40_000, help="side of the slide in pixels")
    parser.add_argument("--rounds", type=int, default=2, help="how often each format is read")
    parser.add_argument("--codecs", nargs="+", choices=RUNS, default=list(RUNS), help="which are compared")
    parser.add_argument("--read", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read, options.size)
        return
    size = options.size // TILE * TILE
    report = {"size": size, "processor": processor(), "formats": bench(size, options.rounds, options.codecs)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
