"""The base class of formats of nuclei, and their registry: a new format is one file with one class.

A format says what its files are called, whether a file is one of its own, what it holds and what it needs; it reads
:class:`~cellvit.types.Nuclei` and writes a :class:`~cellvit.io.stream.NucleiStream`. ``FORMATS.register("name")``, or
an entry point in the group ``cellvit.formats``, makes ``cellvit segment --formats``, ``cellvit convert-nuclei`` and
:func:`cellvit.io.nuclei.read_nuclei` know it. Modules import what they need when it is needed.

All coordinates are ``(x, y)`` pixels of full resolution; pixel ``i`` covers ``[i, i + 1)``.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cellvit.errors import ConfigError, DataError
from cellvit.io.provenance import with_mpp
from cellvit.plugins.registry import Registry

if TYPE_CHECKING:  # the help of the command line lists formats, and waits for no arrays
    import numpy as np
    from numpy.typing import NDArray

    from cellvit.io.stream import NucleiStream, Patches
    from cellvit.types import Nuclei

Size = tuple[int, int]


class Pixels(Protocol):
    """An image that is read part by part, as :func:`cellvit.open_slide` opens it."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def level_sizes(self) -> tuple[Size, ...]:
        """``(width, height)`` per level, full resolution first."""

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> "NDArray[np.uint8]":
        """Return ``(height, width, 3)`` RGB of a part of a level."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of the image that nuclei are from, beside them; a format uses what it can hold.

    Attributes:
        mpp: Microns per pixel.
        size: Width and height in pixels.
        path: The file of the image.
        metadata: Further facts, plain data.
        patches: Tells where the tiles of nuclei lie, in the terms of the released layout.
        pixel: ``(x, y)`` size of the pixels that outlines follow, where nuclei were found at another resolution.
        simplify: Pixels by which outlines may deviate where a format can leave points out.
        picture: ``(h, w, 3)`` RGB, the image made smaller.
        bounds: The box ``(x, y, width, height)`` that the picture covers.
        pixels: The image itself, for a format that can hold it.
    """

    mpp: float | None = None
    size: Size | None = None
    path: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    patches: "Callable[[Nuclei], Patches] | None" = None
    pixel: tuple[float, float] = (1.0, 1.0)
    simplify: float = 0.0
    picture: "NDArray[np.uint8] | None" = None
    bounds: tuple[int, int, int, int] | None = None
    pixels: Pixels | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Return the further facts with the resolution, as files keep them."""
        return with_mpp(self.metadata, self.mpp)


class NucleiFormat(ABC):
    """A format of nuclei; the arguments of a subclass, all with defaults, are the ways to write it.

    Attributes:
        file: What the file is called in the folder of a slide.
        suffixes: Ends of names by which ``cellvit convert-nuclei`` chooses it for a new file; the first one names the
            files of images.
        extra: The extra of the project that brings ``packages``; of another package, what to install.
        packages: Modules that reading or writing needs beside those of every installation.
        outlines: Whether outlines are kept.
        embeddings: Whether embeddings are kept.
        max_nuclei: The most that a file can hold; None for no limit of its own.
        instead: What to do with more.
        priority: The format with the highest number is asked first whether a file is its own. Ours have less than 100.
    """

    file: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    outlines: ClassVar[bool] = True
    embeddings: ClassVar[bool] = False
    max_nuclei: ClassVar[int | None] = None
    instead: ClassVar[str] = "choose 'parquet' or 'geojson', or write a part of the nuclei"
    priority: ClassVar[int] = 100

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is of this format; unless overridden, by its name.

        Args:
            path: A file or a folder that exists.
            start: Its first bytes, those inside if it is compressed with gzip; empty for a folder.
        """
        return path.name.lower().endswith(cls.suffixes)

    def read(self, path: str | Path) -> "Nuclei":
        """Return the nuclei of a file, with what the format keeps.

        Args:
            path: The file or the folder.

        Raises:
            ConfigError: If a package is missing.
            DataError: If the file is missing, damaged, or holds what is not read.
        """
        self.check_packages()
        if not Path(path).exists():
            raise DataError(f"{str(path)!r} does not exist; check the path")
        return self._read(Path(path))

    def stream(self, path: str | Path, *, embedding: bool = True) -> "NucleiStream":
        """Return the nuclei of a file in chunks; unless overridden, all in one.

        Args:
            path: The file or the folder.
            embedding: Whether embeddings are needed.

        Raises:
            ConfigError: If a package is missing.
            DataError: If the file is missing, damaged, or holds what is not read.
        """
        from cellvit.io.stream import TableStream

        nuclei = self.read(path)
        return TableStream(nuclei if embedding else replace(nuclei, embedding=None))

    def write(self, nuclei: "NucleiStream | Nuclei", path: str | Path, image: ImageFacts | None = None) -> None:
        """Write nuclei to a file that appears when complete.

        Args:
            nuclei: The nuclei; a stream may be iterated more than once.
            path: The file or the folder.
            image: What is known of their image; None: nothing but what the nuclei say.

        Raises:
            ConfigError: If a package is missing.
            DataError: If the format cannot hold these nuclei.
            OutputError: If the file cannot be written.
        """
        from cellvit.io.stream import as_stream
        from cellvit.types import Nuclei

        self.check_packages()
        stream = as_stream(nuclei)
        if self.max_nuclei is not None and len(stream) > self.max_nuclei:
            raise DataError(
                f"{len(stream):,} nuclei are too many for {str(path)!r}: a file of this format holds at most "
                f"{self.max_nuclei:,}; {self.instead}"
            )
        if image is None:
            image = ImageFacts(mpp=nuclei.mpp if isinstance(nuclei, Nuclei) else None)
        self._write(stream, Path(path), image)

    def check_image(self, path: Path | None) -> None:
        """Refuse an image whose nuclei the format cannot hold, before they are looked for; by default none.

        Args:
            path: The file of the image; None if there is none, or coordinates do not count from its corner.

        Raises:
            ConfigError: If a package is missing.
            DataError: If it cannot, with what to choose instead.
        """
        self.check_packages()

    def check_packages(self) -> None:
        """Raise :class:`~cellvit.errors.ConfigError` if a package is not installed, with how to install it."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise ConfigError(f"{type(self).__name__} needs {', '.join(missing)}; {self.cure()}")

    @classmethod
    def cure(cls) -> str:
        """Return how to install what the format needs."""
        return f"from a checkout: pip install '.[{cls.extra}]'"

    @abstractmethod
    def _read(self, path: Path) -> "Nuclei":
        """Return the nuclei of a file that exists."""

    @abstractmethod
    def _write(self, stream: "NucleiStream", path: Path, image: ImageFacts) -> None:
        """Write nuclei to a file that appears when complete."""


def image_size(stream: "NucleiStream", image: ImageFacts) -> Size:
    """Return the width and height of the image in pixels: the stated ones, else as far as the nuclei reach.

    Args:
        stream: The nuclei; iterated where the size is not stated, which is a warning.
        image: What is known of the image.
    """
    if image.size is not None:
        return image.size
    import numpy as np

    reach = np.ones(2)
    for chunk in stream:
        for corners in (chunk.bbox[:, 2:], chunk.contour_points):
            reach = np.fmax(reach, np.nanmax(corners, axis=0, initial=1))
    width, height = (int(side) for side in np.ceil(reach))
    warnings.warn(
        f"the size of the image is not known: the file says {width} x {height} px, as far as the nuclei reach; "
        f"state it with image_size=({width}, {height})",
        stacklevel=4,
    )
    return width, height


FORMATS: Registry[NucleiFormat] = Registry(
    "format",
    NucleiFormat,
    package="cellvit.io.formats",
    own={
        "parquet": "parquet",
        "geojson": "geojson",
        "geojson-plain": "geojson",
        "points": "geojson",
        "json": "cells",
        "h5ad": "h5ad",
        "spatialdata": "spatialdata",
        "csv": "csv",
        "coco": "coco",
        "coco-rle": "coco",
        "imagej": "imagej",
        "ome-xml": "ome_xml",
        "dicom": "dicom",
        "dicom-3d": "dicom",
        "ome-tiff": "ome_tiff",
        "ome-zarr": "ome_zarr",
    },
)
