"""Annotations of people as a data set: outlines with classes, in images or in regions of slides, split by slide."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from cellvit.data.targets import relabel
from cellvit.errors import CellViTError, ConfigError, DataError, OutputError
from cellvit.geometry.polygons import ring_offsets
from cellvit.geometry.raster import draw_rings
from cellvit.io.annotations.base import Annotations, read_annotations, spelling_notes
from cellvit.io.atomic import atomic_path, atomic_text, make_folder
from cellvit.io.coco import coco_images, is_coco
from cellvit.io.detections import cached_json, stem_of, suffix_of
from cellvit.io.file_kind import file_kind
from cellvit.io.labels import MANIFEST, read_label_map
from cellvit.io.limits import MALFORMED, brief
from cellvit.io.tables import write_csv
from cellvit.slide.naming import SLIDE_SUFFIXES
from cellvit.slide.open import Slide, open_slide
from cellvit.slide.resolution import given_resolution

REGIONS = ("Region*", "Region")
"""Classes of areas in which every nucleus is annotated; the first is QuPath's own. Case does not matter."""

CLASSES_FILE = "classes.yaml"
"""Beside the manifest: the names of the types, as a configuration that a training takes as it is."""

SPLITS = ("train", "val", "test")
UNKNOWN = -1

_MAPS = ("matlab", "npy", "npz", "png", "tiff")
_IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", *SLIDE_SUFFIXES}
_WHOLE = 4096  # pixels; of a larger image without a region, nobody can tell what is complete
_SMALLEST = 32
_RECTANGULAR = 0.98  # of its box, an area fills so much
_IGNORED = "*"

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedPatch:
    """A patch of the data set.

    Attributes:
        name: Name of its files without suffix.
        split: ``"train"``, ``"val"`` or ``"test"``.
        slide: Name of the image or slide it was cut from.
        box: ``(x, y, width, height)`` there, in pixels of full resolution.
        mpp: Micrometres per pixel; None where not known.
        nuclei: How many nuclei of each class it shows; the empty name stands for those of unknown class.
    """

    name: str
    split: str
    slide: str
    box: tuple[int, int, int, int]
    mpp: float | None
    nuclei: Mapping[str, int]


@dataclass(frozen=True)
class PreparedLabels:
    """A data set that was made from annotations.

    Attributes:
        out: Its folder, with ``manifest.csv`` and ``classes.yaml``.
        dataset: Name of the data set, a folder in it.
        class_names: Names of the types, background first.
        patches: What was written.
        problems: Files and regions that were left out, and why; sentences.
        notes: What the user should know; sentences.
    """

    out: Path
    dataset: str
    class_names: tuple[str, ...]
    patches: tuple[PreparedPatch, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


class _Outlines(NamedTuple):
    """Nuclei of an image: rings of points, the nucleus of each ring, and the class of each nucleus."""

    shapes: NDArray[Any]
    kinds: list[str]


class _Map(NamedTuple):
    """Nuclei of an image as a map, and the class of each label."""

    instances: NDArray[Any]
    kinds: list[str]


@dataclass
class _Source:
    """An annotated image."""

    image: Path
    nuclei: _Outlines | _Map
    boxes: list[tuple[int, int, int, int]]
    mpp: float | None
    split: str = "train"

    @property
    def kinds(self) -> list[str]:
        return self.nuclei.kinds


@dataclass
class _Work:
    """What is asked for, and what was found so far."""

    images: Mapping[str, list[Path]]
    region_class: frozenset[str]
    class_map: Mapping[str, str]
    class_names: tuple[str, ...] | None
    patch_size: int
    mpp: float | None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def prepare_annotated(
    annotations: Sequence[str | Path],
    out: str | Path,
    *,
    images: Sequence[str | Path] = (),
    region_class: Sequence[str] = REGIONS,
    class_map: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    val: float | Sequence[str] = 0.2,
    test: float | Sequence[str] = 0.0,
    patch_size: int = 1024,
    mpp: float | None = None,
    report: Report = lambda what, done, total: None,
) -> PreparedLabels:
    """Write images and instance maps with types for :class:`cellvit.data.FolderDataset`, from annotations of people.

    An annotation belongs to the image of the same name. Rectangles of a region's class say where every nucleus is
    outlined: patches are cut to them, and nothing outside becomes background. An image without any is taken for
    complete, if it is no larger than 4096 px. Outlines without a class are nuclei of unknown type, which train the
    outlines only. Later outlines lie over earlier ones. All patches of a slide go into the same split.

    Args:
        annotations: GeoJSON of QuPath, COCO, LabelMe and what else
            :func:`cellvit.io.annotations.base.read_annotations` reads, label images, or folders of one of these.
        out: Folder to write; it must not hold a data set.
        images: Images and slides, or folders of them; none: they lie beside the annotations.
        region_class: Classes of areas that are complete; case does not matter.
        class_map: Names in the files and what each is to be called; the empty name leaves the type unknown.
        class_names: Names of the types in their order, without background; None takes all, sorted.
        val: Share of the slides for validation, or their names without suffix.
        test: The same for the test.
        patch_size: Larger regions are cut into pieces of at most so many pixels.
        mpp: Micrometres per pixel of all images, where they state none or a wrong one.
        report: Called after each image with its name, the number done and the number of all.

    Raises:
        ConfigError: If a setting cannot work.
        DataError: If nothing can be prepared.
        OutputError: If the folder holds a data set, or a file cannot be written.
    """
    out, files = Path(out), _files(annotations)
    dataset = out.resolve().name or "data"
    _check(out, patch_size, mpp)
    work = _Work(
        images=_images_by_name([Path(each) for each in images], files),
        region_class=frozenset(name.casefold() for name in region_class),
        class_map=dict(class_map or {}),
        class_names=None if class_names is None else tuple(class_names),
        patch_size=patch_size,
        mpp=mpp,
    )
    sources = list(_sources(files, work))
    if not sources:
        raise DataError("nothing to prepare: " + ("; ".join(work.problems) or "no annotations were named"))
    names = _names_of(sources, work)
    _split(sources, val, test, work)
    patches = []
    for done, source in enumerate(sources, start=1):
        patches += _write(source, out / dataset, names, work)
        report(source.image.name, done, len(sources))
    if not patches:
        raise DataError("nothing to prepare: " + "; ".join(work.problems))
    _write_lists(out, dataset, names, patches)
    notes = (*work.notes, *(f"{count:,} {text}" for text, count in work.counts.items()))
    return PreparedLabels(out, dataset, names, tuple(patches), tuple(work.problems), notes)


def _check(out: Path, patch_size: int, mpp: float | None) -> None:
    if patch_size < _SMALLEST:
        raise ConfigError(f"patch_size={patch_size} is too small; give at least {_SMALLEST}")
    given_resolution(mpp, None)
    if (out / MANIFEST).exists():
        raise OutputError(f"{str(out)!r} holds a data set already; remove it or choose another out=FOLDER")


def _files(paths: Sequence[str | Path]) -> list[Path]:
    """Return files, and those in folders: outlines, or label images where there are none."""
    found = []
    for path in map(Path, paths):
        inside = sorted(each for each in path.iterdir() if suffix_of(each)) if path.is_dir() else [path]
        outlines = [each for each in inside if each.suffix.lower() not in _IMAGES]
        found += outlines if path.is_dir() and outlines else inside
    return found


def _images_by_name(images: Sequence[Path], annotations: Sequence[Path]) -> dict[str, list[Path]]:
    """Return images by their name, with and without suffix."""
    found: dict[str, list[Path]] = {}
    places = list(images) or list(dict.fromkeys(path.parent for path in annotations))
    given = {path.resolve() for path in annotations}
    for place in places:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        for path in files:
            if path.suffix.lower() in _IMAGES and path.resolve() not in given:
                for name in {path.name, path.stem}:
                    found.setdefault(name, []).append(path)
    return found


def _sources(annotations: Sequence[Path], work: _Work) -> Iterable[_Source]:
    """Yield every annotated image; what cannot be used becomes a problem."""
    seen: dict[Path, Path] = {}
    for path in annotations:
        try:
            kind = file_kind(path)
            data = cached_json(path) if kind == "json" else None
            names = [image.name for image in coco_images(data)] if is_coco(data) else [stem_of(path)]
        except MALFORMED as error:  # DataError among them
            work.problems.append(str(error) if isinstance(error, CellViTError) else f"{str(path)!r}: {brief(error)}")
            continue
        for name in names:
            try:
                source = _source(path, name, kind, work)
            except CellViTError as error:
                work.problems.append(str(error))
                continue
            first = seen.setdefault(source.image.resolve(), path)
            if first is path:
                yield source
            else:
                work.problems.append(
                    f"{str(path)!r} annotates {source.image.name!r}, as {str(first)!r} does; join them"
                )


def _source(path: Path, name: str, kind: str | None, work: _Work) -> _Source:
    """Return an annotated image, with the boxes that become patches."""
    candidates = work.images.get(name, [])
    if len(candidates) != 1:
        what = f"{len(candidates)} images" if candidates else "no image"
        raise DataError(f"annotations {str(path)!r}: {what} of the name {name!r}; pass images=FOLDER with one")
    (image,) = candidates
    with open_slide(image) as slide:
        size, stated = slide.level_sizes[0], slide.stated_mpp
    mpp = work.mpp if work.mpp is not None else None if stated is None else sum(stated) / 2
    if mpp is None:
        work.counts["images state no resolution and are trained on as they are; pass mpp=0.25"] += 1
    nuclei: _Outlines | _Map
    if kind in _MAPS:
        nuclei, boxes = _map_of(path, size, work), [(0, 0, *size)]
    else:
        annotations = read_annotations(path, image=name)
        work.notes += [f"{str(path)!r}: {text}" for text in annotations.notes]
        nuclei, boxes = _outlines_of(annotations, path, size, work)
    if not nuclei.kinds:
        raise DataError(f"annotations {str(path)!r} outline no nucleus; draw outlines, points are not enough")
    return _Source(image, nuclei, [piece for box in boxes for piece in _pieces(box, work.patch_size)], mpp)


def _map_of(path: Path, size: tuple[int, int], work: _Work) -> _Map:
    """Return the nuclei of a label image."""
    found = read_label_map(path)
    if found.instances.shape != size[::-1]:
        shape = found.instances.shape
        raise DataError(f"label image {str(path)!r} is {shape[1]} x {shape[0]} px, its image {size[0]} x {size[1]}")
    labels = np.unique(found.instances)
    labels = labels[labels > 0]
    types = np.zeros(len(labels), np.int64) if found.types is None else np.asarray(found.types)[labels]
    names = found.names or ("", *(work.class_names or ()))
    kinds = ["" if kind <= 0 else names[kind] if kind < len(names) else f"Type {kind}" for kind in types.tolist()]
    return _Map(relabel(found.instances), [work.class_map.get(kind, kind) for kind in kinds])


def _outlines_of(
    annotations: Annotations, path: Path, size: tuple[int, int], work: _Work
) -> tuple[_Outlines, list[tuple[int, int, int, int]]]:
    """Return the outlines of nuclei, and the boxes in which they are complete."""
    names = annotations.class_name.astype(object)
    is_region = np.array([str(name).casefold() in work.region_class for name in names], bool)
    boxes = _boxes(annotations.geometry[is_region], path, size, work)
    ignored = np.array([str(name).endswith(_IGNORED) for name in names], bool) & ~is_region
    points = annotations.is_point & ~is_region
    outlines = ~(is_region | ignored | points)
    if (annotations.found & outlines).any():
        _note(work, path, outlines & ~annotations.found, "drawn annotations lie beside detections and were left out")
        outlines &= annotations.found
    _note(work, path, points, "points outline nothing and were left out")
    _note(work, path, ignored, "annotations of a class that ends in '*' were left out: they count as background")
    if is_region.any():
        rows, _ = shapely.STRtree([shapely.box(x, y, x + w, y + h) for x, y, w, h in boxes]).query(annotations.geometry)
        outside = outlines & ~np.isin(np.arange(len(annotations)), rows)
        _note(work, path, outside, "outlines lie outside of the regions and were left out")
        outlines &= ~outside
    kinds = [work.class_map.get(name, name) for name in names[outlines].tolist()]
    return _Outlines(annotations.geometry[outlines], kinds), boxes


def _note(work: _Work, path: Path, which: NDArray[np.bool_], text: str) -> None:
    if which.any():
        work.notes.append(f"{str(path)!r}: {int(which.sum()):,} {text}")


def _boxes(regions: NDArray[Any], path: Path, size: tuple[int, int], work: _Work) -> list[tuple[int, int, int, int]]:
    """Return the boxes ``(x, y, width, height)`` in which annotations are complete."""
    if not len(regions):
        if max(size) > _WHOLE:
            message = f"annotations {str(path)!r} have no region, and the image of {size[0]} x {size[1]} px is larger "
            raise DataError(f"{message}than {_WHOLE}; draw a rectangle of class 'Region*' around what is complete")
        work.counts["images have no region, and were taken for annotated completely"] += 1
        return [(0, 0, *size)]
    boxes = []
    for region in regions:
        left, top, right, bottom = region.bounds
        if region.area < _RECTANGULAR * (right - left) * (bottom - top):
            work.problems.append(f"{str(path)!r}: the region at x={left:.0f}, y={top:.0f} is no rectangle; draw one")
            continue
        # whole pixels that lie inside of the region and of the image
        low = np.maximum(np.ceil(np.round([left, top], 3)), 0).astype(int)
        high = np.minimum(np.floor(np.round([right, bottom], 3)), size).astype(int)
        width, height = (high - low).tolist()
        if min(width, height) < _SMALLEST:
            where = f"the region at x={left:.0f}, y={top:.0f} shows {max(width, 0)} x {max(height, 0)} px of the image"
            work.problems.append(f"{str(path)!r}: {where}; draw it at least {_SMALLEST} px wide and high")
            continue
        boxes.append((int(low[0]), int(low[1]), width, height))
    return boxes


def _pieces(box: tuple[int, int, int, int], side: int) -> list[tuple[int, int, int, int]]:
    """Return boxes of nearly equal size that fill a box, each no larger than a side.

    Example:
        >>> _pieces((10, 20, 300, 100), 200)
        [(10, 20, 150, 100), (160, 20, 150, 100)]
    """
    x, y, width, height = box
    columns, rows = (
        np.rint(np.linspace(start, start + length, -(-length // side) + 1)).astype(int).tolist()
        for start, length in ((x, width), (y, height))
    )
    return [
        (left, top, right - left, bottom - top) for top, bottom in pairwise(rows) for left, right in pairwise(columns)
    ]


def _names_of(sources: Sequence[_Source], work: _Work) -> tuple[str, ...]:
    """Return the names of types, background first."""
    found = sorted({kind for source in sources for kind in source.kinds if kind})
    work.notes += spelling_notes(found)
    if work.class_names is None:
        return ("Background", *found)
    unknown = [name for name in found if name not in work.class_names]
    if unknown:
        message = f"the annotations have the classes {unknown}, which are not among {list(work.class_names)}; "
        raise DataError(message + f"name them, or pass class_map='{unknown[0]}={work.class_names[0]}'")
    return ("Background", *work.class_names)


def _split(sources: Sequence[_Source], val: float | Sequence[str], test: float | Sequence[str], work: _Work) -> None:
    """Give every image its split: named ones theirs, then by share, those with most nuclei first."""
    slides = {source.image.resolve(): source.image.stem for source in sources}
    weight = Counter[Path]()
    for source in sources:
        weight[source.image.resolve()] += len(source.kinds)
    shares, splits = {"train": 1.0, "val": 0.0, "test": 0.0}, dict[Path, str]()
    for name, wanted in (("val", val), ("test", test)):
        if isinstance(wanted, int | float):
            shares[name] = float(wanted)
            continue
        missing = sorted(set(wanted) - set(slides.values()))
        if missing:
            raise ConfigError(f"{name} names {missing}, and the images are {sorted(slides.values())}")
        splits |= {path: name for path, stem in slides.items() if stem in wanted}
    shares["train"] = round(1 - shares["val"] - shares["test"], 9)
    if not (min(shares.values()) >= 0 and shares["train"] > 0):
        raise ConfigError(f"val={val} and test={test} leave nothing to train on; give shares that add up to below 1")
    taken = Counter(dict.fromkeys(SPLITS, 0.0))
    total = sum(count for path, count in weight.items() if path not in splits)
    for path, count in sorted(weight.items(), key=lambda pair: (-pair[1], str(pair[0]))):
        if path in splits:
            continue
        # an empty split that is wanted comes first, as far as there are slides; then the one that lacks most
        splits[path] = max(
            SPLITS, key=lambda name: (bool(shares[name]) and not taken[name], shares[name] * total - taken[name])
        )
        taken[splits[path]] += count
    for source in sources:
        source.split = splits[source.image.resolve()]
    missing = [name for name in ("train", "val") if name not in splits.values()]
    if missing:
        work.notes.append(
            f"no slide is left for {' and '.join(missing)}: {len(slides)} annotated in all, and none may be in two "
            "splits; annotate a region of another slide"
        )


def _write(source: _Source, folder: Path, names: Sequence[str], work: _Work) -> list[PreparedPatch]:
    """Write the patches of an image; one that cannot be read becomes a problem."""
    make_folder(folder / "images")
    make_folder(folder / "labels")
    ids = {name: number for number, name in enumerate(names) if number} | {"": UNKNOWN}
    kinds = np.array([0, *(ids[kind] for kind in source.kinds)], np.int32)
    written = []
    try:
        with open_slide(source.image) as slide:
            for number, box in enumerate(source.boxes):
                name = f"{source.image.stem}_{number:03}"
                written.append(_write_patch(source, slide, box, folder / "images" / name, kinds, names))
    except CellViTError as error:
        work.problems.append(str(error))
    return written


def _write_patch(
    source: _Source,
    slide: Slide,
    box: tuple[int, int, int, int],
    image: Path,
    kinds: NDArray[np.int32],
    names: Sequence[str],
) -> PreparedPatch:
    """Write a box as ``images/NAME.png`` and ``labels/NAME.npz``; ``image`` is the first without suffix."""
    x, y, width, height = box
    pixels = slide.read_region(x, y, width, height)
    if isinstance(source.nuclei, _Map):
        drawn = source.nuclei.instances[y : y + height, x : x + width]
    else:
        drawn = _drawn(source.nuclei.shapes, box)
    labels = np.unique(drawn)
    labels = labels[labels > 0]
    types = kinds[np.concatenate([np.zeros(1, np.int64), labels])]
    with atomic_path(image.with_name(f"{image.name}.png")) as temporary:
        Image.fromarray(pixels).save(temporary)
    with atomic_path(image.parents[1] / "labels" / f"{image.name}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, inst_map=relabel(drawn).astype(np.int32), inst_type=types)
    known = {number: each for number, each in enumerate(names) if number} | {UNKNOWN: ""}
    counts = Counter(known[kind] for kind in types[1:].tolist())
    return PreparedPatch(image.name, source.split, source.image.name, box, source.mpp, dict(counts))


def _drawn(shapes: NDArray[Any], box: tuple[int, int, int, int]) -> NDArray[np.int32]:
    """Return the map of the outlines in a box; the label of outline ``i`` is ``i + 1``."""
    x, y, width, height = box
    bounds = shapely.bounds(shapes)
    near = np.flatnonzero((bounds[:, :2] < (x + width, y + height)).all(axis=1) & (bounds[:, 2:] > (x, y)).all(axis=1))
    parts, owner = shapely.get_parts(shapes[near], return_index=True)
    areas = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    rings, owner = shapely.get_exterior_ring(parts[areas]), owner[areas]
    points, ring = shapely.get_coordinates(rings, return_index=True)
    offsets = ring_offsets(np.bincount(ring, minlength=len(rings)))
    number = np.concatenate([[0], near[owner] + 1]).astype(np.int32)
    return np.asarray(number[draw_rings(points - (x, y), offsets, (height, width))], np.int32)


def _write_lists(out: Path, dataset: str, names: Sequence[str], patches: Sequence[PreparedPatch]) -> None:
    """Write the names of the types, and, last, the manifest."""
    with atomic_text(out / CLASSES_FILE) as file:
        file.write(
            "# Names of the types, for: cellvit fit --config docs/configs/finetune.yaml --config THIS FILE\n"
            f"model:\n  num_nuclei_classes: {len(names)}\n  class_names: {_yaml(names)}\n  class_colors: null\n"
            f"data:\n  init_args:\n    root: {_yaml(str(out))}\n    datasets: null\n"
        )
    columns = ("dataset", "image", "split", "mpp", "slide", "x", "y", "width", "height", "nuclei")
    rows = (
        (dataset, one.name, one.split, one.mpp or "unknown", one.slide, *one.box, sum(one.nuclei.values()))
        for one in patches
    )
    write_csv(out / MANIFEST, (dict(zip(columns, row, strict=True)) for row in rows), columns=columns)


def _yaml(value: Any) -> str:
    """Return a value as JSON, which YAML reads."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
