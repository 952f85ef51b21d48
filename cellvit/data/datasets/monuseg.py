"""MoNuSeg as distributed: images and outlines of nuclei in XML become images and instance maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellvit.data.pannuke.storage import PREPARED
from cellvit.data.targets import relabel
from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.io.atomic import atomic_path, make_folder
from cellvit.io.images import DAMAGE, read_image
from cellvit.io.imagescope import read_regions
from cellvit.io.labels import raise_problems

IMAGE_SUFFIXES = (".tif", ".tiff")
OUTLINE_SUFFIX = ".xml"
_MIN_VERTICES = 3
_MAX_NUCLEI = int(np.iinfo(np.uint16).max)
_IGNORED = ("__MACOSX",)


@dataclass(frozen=True)
class PreparedImage:
    """What was made of one image.

    Attributes:
        name: Name of the image without its suffix.
        nuclei: Number of nuclei in the instance map.
        dropped: Outlines of fewer than three points.
        occluded: Nuclei that lie wholly under later ones.
        kept: Whether an earlier run had made it; the numbers of outlines that are not kept are then 0.
        excluded: Regions that the file marks as a part that does not count.
        layers: Names of the annotations, where they have several; types are not kept.
    """

    name: str
    nuclei: int
    dropped: int = 0
    occluded: int = 0
    kept: bool = False
    excluded: int = 0
    layers: tuple[str, ...] = ()


def prepare_monuseg(
    root: Path,
    out: Path | None = None,
    *,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[PreparedImage]:
    """Write images and instance maps at full resolution, for :class:`cellvit.data.FolderDataset` with ``split=None``.

    Pairs of files are finished one by one: those without faults are kept even if others have some, and kept by a later
    call unless a source is newer.

    Args:
        root: Folder with ``<name>.tif`` and ``<name>.xml``, in one place or in folders within it.
        out: Folder to write ``images/<name>.png`` and ``labels/<name>.npz`` to; None is ``prepared`` within ``root``.
        report: Called after each image with its name, the number done and the number of all.

    Returns:
        What was made, by name.

    Raises:
        DataError: If something is wrong with the data; one error lists everything.
        ConfigError: If ``out`` is the source.
        OutputError: If a file cannot be written.
    """
    out = root / PREPARED if out is None else out
    pairs, problems = find_pairs(root)
    folders = {path.parent.resolve() for pair in pairs for path in pair}
    if folders & {out.resolve() / "images", out.resolve() / "labels"}:
        raise ConfigError(f"the folder to write, '{out}', holds the source; choose another")
    made = []
    for done, (image, outlines) in enumerate(pairs, start=1):
        try:
            made.append(_kept(image, outlines, out) or _prepare(image, outlines, out))
        except (DataError, ImageError) as error:
            problems.append(str(error))
        report(image.stem, done, len(pairs))
    raise_problems(problems, where=root)
    return made


def find_pairs(root: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Find images and the outlines of the same name.

    Args:
        root: Folder to search, with the folders in it.

    Returns:
        Image and outlines of each pair by name, and what is wrong with the other files.

    Raises:
        DataError: If the folder does not exist or holds neither images nor outlines.
    """
    if not root.is_dir():
        raise DataError(f"'{root}' is no folder; give the one with the .tif images and .xml outlines of MoNuSeg")
    images: dict[str, list[Path]] = {}
    outlines: dict[str, list[Path]] = {}
    for path in _files(root):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(path.stem, []).append(path)
        elif path.suffix.lower() == OUTLINE_SUFFIX:
            outlines.setdefault(path.stem, []).append(path)
    if not images and not outlines:
        raise DataError(f"'{root}' holds no .tif image and no .xml outlines; give the folder of MoNuSeg")
    problems = []
    for stem in sorted(set(images) | set(outlines)):
        for kind, places, others in (("image", images, outlines), ("outlines", outlines, images)):
            found = places.get(stem, [])
            if len(found) > 1:
                problems.append(f"{kind} '{stem}' is there {len(found)} times: {', '.join(map(str, found))}; keep one")
            elif not found:
                problems.append(f"'{others[stem][0]}' has no {kind} of the same name; add it or remove this file")
    whole = [s for s in sorted(images) if len(images[s]) == 1 and len(outlines.get(s, [])) == 1]
    return [(images[stem][0], outlines[stem][0]) for stem in whole], problems


def read_outlines(path: Path) -> list[NDArray[np.float64]]:
    """Read the outlines of nuclei: the regions of all annotations, save those that are marked as excluded.

    Args:
        path: XML of Aperio ImageScope; see :func:`cellvit.io.imagescope.read_regions`.

    Returns:
        Points ``(K, 2)`` of each outline as (x, y) in pixels.

    Raises:
        DataError: If the file is broken, declares a document type, has no annotation, or has points that are no
            numbers.
    """
    return [region.points for region in read_regions(path) if not region.excluded]


def fill_outlines(outlines: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return a map of filled outlines, later ones over earlier ones.

    Args:
        outlines: Points ``(K, 2)`` of each as (x, y) in pixels; the pixels they pass belong to the nucleus.
        shape: Height and width.

    Returns:
        ``(H, W)``: 0 is background, ``i + 1`` is outline ``i``.

    Example:
        >>> fill_outlines([np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])], (3, 3))
        array([[1, 1, 0],
               [1, 1, 0],
               [0, 0, 0]], dtype=int32)
    """
    labels = np.zeros(shape, np.int32)
    for label, points in enumerate(outlines, start=1):
        cv2.fillPoly(labels, [np.rint(points).astype(np.int32)], label)
    return labels


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part in _IGNORED for part in parts)
        if not hidden and path.is_file():
            yield path


def _targets(image: Path, out: Path) -> tuple[Path, Path]:
    return out / "images" / f"{image.stem}.png", out / "labels" / f"{image.stem}.npz"


def _kept(image: Path, outlines: Path, out: Path) -> PreparedImage | None:
    """Return what an earlier run made, or None if it is not there or older than its source."""
    targets = _targets(image, out)
    try:
        written = min(path.stat().st_mtime_ns for path in targets)
        if written < max(path.stat().st_mtime_ns for path in (image, outlines)):
            return None
        with targets[1].open("rb") as file, np.load(file) as arrays:
            return PreparedImage(image.stem, int(arrays["inst_map"].max(initial=0)), kept=True)
    except DAMAGE:
        return None


def _prepare(image: Path, outlines: Path, out: Path) -> PreparedImage:
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    stated = read_regions(outlines)
    regions = [region.points for region in stated if not region.excluded]
    usable = [points for points in regions if len(points) >= _MIN_VERTICES]
    if not usable:
        raise DataError(f"outlines '{outlines}' hold no nucleus; add outlines or remove image and outlines")
    if len(usable) > _MAX_NUCLEI:
        raise DataError(f"outlines '{outlines}' hold {len(usable)} nuclei; an instance map takes {_MAX_NUCLEI}")
    outside = [number for number, points in enumerate(regions, start=1) if _is_outside(points, height, width)]
    if outside:
        shown = f"{', '.join(map(str, outside[:10]))}{' and more' if len(outside) > 10 else ''}"
        raise DataError(
            f"outlines '{outlines}': region {shown} lies outside the image of {width}x{height} px; "
            "check that image and outlines belong together"
        )
    labels = relabel(fill_outlines(usable, (height, width)))
    nuclei = int(labels.max())
    _write(pixels, labels.astype(np.uint16), _targets(image, out))
    layers = tuple(sorted({region.layer for region in stated if region.layer}))
    return PreparedImage(
        image.stem,
        nuclei,
        dropped=len(regions) - len(usable),
        occluded=len(usable) - nuclei,
        excluded=len(stated) - len(regions),
        layers=layers if len(layers) > 1 else (),
    )


def _is_outside(points: NDArray[np.float64], height: int, width: int) -> bool:
    """Return whether an outline has no part in the image, or leaves it by more than the image's size."""
    if len(points) < _MIN_VERTICES:
        return False
    size = np.array((width, height))
    low, high = np.rint(points.min(axis=0)), np.rint(points.max(axis=0))
    apart = (high < 0) | (low > size - 1)
    far = (low < -size) | (high > 2 * size)
    return bool((apart | far).any())


def _write(pixels: NDArray[np.uint8], labels: NDArray[Any], targets: tuple[Path, Path]) -> None:
    for target in targets:
        make_folder(target.parent)
    with atomic_path(targets[0]) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    with atomic_path(targets[1]) as temporary:
        np.savez_compressed(temporary, inst_map=labels)
