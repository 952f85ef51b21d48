"""Other libraries that read slides, each as it is: what ``cellvit info --compare`` and the tests compare with.

None of them is needed to find nuclei. A referee says what its library says, also where that is wrong: nothing is
corrected here, so that a difference between it and a reader of :data:`cellvit.slide.readers.base.READERS` is seen.
"""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cellvit.io.dicom import is_dicom
from cellvit.io.images import Rgb8, open_pillow
from cellvit.io.pixels import to_rgb
from cellvit.slide.readers.base import Size

MAX_WHOLE = 2**27
"""Pixels up to which a library is asked that decodes an image whole."""


class RefusedError(Exception):
    """A library does not open a file, or would need much memory for it."""


class Referee(ABC):
    """A slide as another library sees it, opened with ``Referee(path)``.

    Attributes:
        name: Of the library.
        distribution: What brings it, for its version.
        level_sizes: ``(width, height)`` of each level that it tells.
        mpp: ``(x, y)`` micrometres per pixel, or None where it says nothing.
        pyramids: Whether it is asked for smaller levels; else for full resolution only.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    pyramids: ClassVar[bool] = True
    level_sizes: tuple[Size, ...]
    mpp: tuple[float, float] | None = None

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            self._open(path, stack)
            self._stack = stack.pop_all()

    @classmethod
    def version(cls) -> str:
        """Return the version of the library."""
        return version(cls.distribution)

    @abstractmethod
    def _open(self, path: Path, stack: ExitStack) -> None:
        """Open a file, what is to be closed on the stack, and say what levels and resolution it has."""

    @abstractmethod
    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return ``(height, width, 3)`` of a level, in its pixels; it lies inside."""

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


class OpenSlideReferee(Referee):
    """OpenSlide."""

    name, distribution = "OpenSlide", "openslide-bin"

    def _open(self, path: Path, stack: ExitStack) -> None:
        from openslide import OpenSlide

        self._slide = stack.enter_context(OpenSlide(path))
        self.level_sizes = tuple(self._slide.level_dimensions)
        stated = self._slide.properties
        if {"openslide.mpp-x", "openslide.mpp-y"} <= set(stated):
            self.mpp = (float(stated["openslide.mpp-x"]), float(stated["openslide.mpp-y"]))

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region; what is transparent is laid on white."""
        downsample = self._slide.level_downsamples[level]
        place = (round(x * downsample), round(y * downsample))
        return to_rgb(np.asarray(self._slide.read_region(place, level, (width, height))))


class TifffileReferee(Referee):
    """tifffile."""

    name, distribution = "tifffile", "tifffile"

    def _open(self, path: Path, stack: ExitStack) -> None:
        import zarr
        from tifffile import TiffFile, xml2dict

        tiff = stack.enter_context(TiffFile(path))
        series = tiff.series[0]
        if not set(series.axes) <= set("YXS"):
            raise RefusedError(f"axes {series.axes}")
        self._levels: list[Any] = []
        for number, level in enumerate(series.levels):
            page = level.keyframe
            if not page.is_tiled and page.rowsperstrip * page.imagewidth > MAX_WHOLE:
                raise RefusedError("strips that are too large")
            self._levels.append(zarr.open_array(series.aszarr(level=number), mode="r"))
        self._axes = series.axes
        self.level_sizes = tuple((level.keyframe.imagewidth, level.keyframe.imagelength) for level in series.levels)
        page = series.keyframe
        per_micron = page.get_resolution(unit="micrometer") if page.tags.valueof("ResolutionUnit") in (2, 3) else (0, 0)
        if min(per_micron) > 0:
            self.mpp = (1 / per_micron[0], 1 / per_micron[1])
        if tiff.is_ome and tiff.ome_metadata:
            images = xml2dict(tiff.ome_metadata)["OME"]["Image"]
            pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
            if {"PhysicalSizeX", "PhysicalSizeY"} <= set(pixels):
                self.mpp = (float(pixels["PhysicalSizeX"]), float(pixels["PhysicalSizeY"]))

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region."""
        rows, columns = slice(y, y + height), slice(x, x + width)
        if self._axes == "SYX":
            return to_rgb(np.moveaxis(self._levels[level][:, rows, columns], 0, -1))
        return to_rgb(self._levels[level][rows, columns])


class PillowReferee(Referee):
    """Pillow, its first frame."""

    name, distribution = "Pillow", "pillow"
    pyramids = False

    def _open(self, path: Path, stack: ExitStack) -> None:
        image = stack.enter_context(open_pillow(path))
        if image.width * image.height > MAX_WHOLE:
            raise RefusedError(f"{image.width} x {image.height} px, which it would decode whole")
        self._pixels = to_rgb(np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB")))
        self.level_sizes = ((image.width, image.height),)
        dpi = image.info.get("dpi")
        if dpi and min(dpi) > 0:
            self.mpp = (25_400 / float(dpi[0]), 25_400 / float(dpi[1]))

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region."""
        return self._pixels[y : y + height, x : x + width]


class PylibczirwReferee(Referee):
    """pylibCZIrw, whose samples are in the order of the file."""

    name, distribution = "pylibCZIrw", "pylibCZIrw"
    pyramids = False

    def _open(self, path: Path, stack: ExitStack) -> None:
        from pylibCZIrw import czi

        self._czi = stack.enter_context(czi.open_czi(str(path)))
        self._box = self._czi.total_bounding_rectangle_no_pyramid
        self.level_sizes = ((self._box.w, self._box.h),)
        scaling = self._czi.metadata["ImageDocument"]["Metadata"].get("Scaling") or {"Items": {"Distance": []}}
        sizes = {item["@Id"]: float(item["Value"]) * 1e6 for item in scaling["Items"]["Distance"]}
        if {"X", "Y"} <= set(sizes):
            self.mpp = (sizes["X"], sizes["Y"])

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region; what no tile covers is black, which is the library's default."""
        return to_rgb(self._czi.read(roi=(self._box.x + x, self._box.y + y, width, height)))


class WsidicomReferee(Referee):
    """wsidicom."""

    name, distribution = "wsidicom", "wsidicom"

    def _open(self, path: Path, stack: ExitStack) -> None:
        from wsidicom import WsiDicom

        if path.is_file() and not is_dicom(path):
            raise RefusedError("no DICOM")
        self._slide = stack.enter_context(WsiDicom.open(path if path.is_dir() else path.parent))
        self._numbers = [level.level for level in self._slide.levels]
        self.level_sizes = tuple((level.size.width, level.size.height) for level in self._slide.levels)
        spacing = self._slide.levels[0].pixel_spacing
        self.mpp = (spacing.width * 1000, spacing.height * 1000)

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region."""
        return to_rgb(np.asarray(self._slide.read_region((x, y), self._numbers[level], (width, height)).convert("RGB")))


class ZarrReferee(Referee):
    """zarr, with the metadata of OME-Zarr as they stand there."""

    name, distribution = "zarr", "zarr"

    def _open(self, path: Path, stack: ExitStack) -> None:
        import zarr

        group: Any = zarr.open_group(path, mode="r")
        told: Any = dict(group.attrs.get("ome") or group.attrs)
        image = told["multiscales"][0]
        axes = [axis["name"] for axis in image["axes"]]
        self._levels: list[Any] = [group[level["path"]] for level in image["datasets"]]
        if [axis for axis, size in zip(axes, self._levels[0].shape, strict=True) if size > 1 or axis in "yx"] != [
            *"cyx"
        ]:
            raise RefusedError(f"axes {''.join(axes)}")
        self.level_sizes = tuple((level.shape[-1], level.shape[-2]) for level in self._levels)
        scale = image["datasets"][0]["coordinateTransformations"][0]["scale"]
        self.mpp = (float(scale[-1]), float(scale[-2]))

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region."""
        found: NDArray[Any] = self._levels[level][..., y : y + height, x : x + width]
        return to_rgb(np.moveaxis(found.reshape(-1, height, width), 0, -1))


class PyvipsReferee(Referee):
    """libvips, its first image."""

    name, distribution = "libvips", "pyvips"
    pyramids = False

    @classmethod
    def version(cls) -> str:
        """Return the version of the library, where that is installed and not only its binding."""
        version(cls.distribution)
        import pyvips

        return ".".join(str(pyvips.version(part)) for part in range(3))

    def _open(self, path: Path, stack: ExitStack) -> None:
        import pyvips

        self._image = pyvips.Image.new_from_file(str(path))
        whole = not self._image.get("vips-loader").startswith(("openslide", "tiff", "dcm"))
        if whole and self._image.width * self._image.height > MAX_WHOLE:
            raise RefusedError(f"{self._image.width} x {self._image.height} px, which it would decode whole")
        self.level_sizes = ((self._image.width, self._image.height),)
        if self._image.xres != 1 or self._image.yres != 1:  # 1 stands for "not stated"
            self.mpp = (1000 / self._image.xres, 1000 / self._image.yres)

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region."""
        return to_rgb(self._image.crop(x, y, width, height).numpy())


class SlideioReferee(Referee):
    """slideio, its first scene."""

    name, distribution = "slideio", "slideio"

    def _open(self, path: Path, stack: ExitStack) -> None:
        import slideio

        self._slide = slideio.open_slide(str(path), "AUTO")
        self._scene = self._slide.get_scene(0)
        sizes = [self._scene.get_zoom_level_info(level).size for level in range(self._scene.num_zoom_levels)]
        self.level_sizes = tuple((size.width, size.height) for size in sizes)
        if min(self._scene.resolution) > 0:
            self.mpp = (self._scene.resolution[0] * 1e6, self._scene.resolution[1] * 1e6)

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a region, of a smaller level as the library shrinks it."""
        across, down = (full / its for full, its in zip(self.level_sizes[0], self.level_sizes[level], strict=True))
        box = (round(x * across), round(y * down), round(width * across), round(height * down))
        return to_rgb(self._scene.read_block(box, (width, height)))


REFEREES: tuple[type[Referee], ...] = (
    OpenSlideReferee,
    TifffileReferee,
    PillowReferee,
    WsidicomReferee,
    ZarrReferee,
    PylibczirwReferee,
    PyvipsReferee,
    SlideioReferee,
)
"""Every referee; one whose library is not installed is left out where they are asked."""
