"""The slides that are looked at: what is opened of each, when it is asked for, and what it says of itself."""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cellvit.classes import NO_TYPE, palette_color, standard_colors
from cellvit.errors import CellViTError, ConfigError
from cellvit.io.format import visible
from cellvit.slide.open import open_slide
from cellvit.view.cache import BoundedCache
from cellvit.view.image import TILE, DeepZoom
from cellvit.view.sources import Source, find_sources
from cellvit.view.table import Floats, NucleiTable, Stamp, stamp_of

_TABLE_BYTES = 160_000_000
_COLUMN_BYTES = 64_000_000
_TILE_BYTES = 48_000_000
_OPEN_IMAGES = 2  # each may hold hundreds of megabytes of decoded pixels


class UnknownSlideError(ConfigError):
    """No slide has that id."""


class Gallery:
    """All slides of a viewer, and the memory that they share. Threads may use it at the same time.

    Args:
        sources: What there is to look at, or paths for :func:`cellvit.view.sources.find_sources`.
        slides: See there.
        title: What the page is called; None takes the name of the slide, or says how many there are.

    Raises:
        DataError: If a path does not exist, or holds nothing to look at.
    """

    def __init__(
        self, sources: Iterable[Source | str | Path], *, slides: str | Path | None = None, title: str | None = None
    ) -> None:
        found: list[Source] = []
        for given in sources:
            found += [given] if isinstance(given, Source) else find_sources([given], slides=slides)
        self.tables: BoundedCache[NucleiTable] = BoundedCache(_TABLE_BYTES, lambda table: table.nbytes)
        self.columns: BoundedCache[Floats] = BoundedCache(_COLUMN_BYTES, lambda values: values.nbytes)
        self.images: BoundedCache[DeepZoom] = BoundedCache(_OPEN_IMAGES, lambda image: 1)
        self.tiles: BoundedCache[bytes] = BoundedCache(_TILE_BYTES, len)
        self.slides = {source.id: ViewedSlide(source, self) for source in found}
        only = next(iter(self.slides.values())).source.name if len(self.slides) == 1 else f"{len(self.slides)} slides"
        self.title = only if title is None else title

    def slide(self, id: str) -> "ViewedSlide":
        """Return a slide by its id.

        Raises:
            UnknownSlideError: If there is none.
        """
        try:
            return self.slides[id]
        except KeyError:
            raise UnknownSlideError(f"no slide {visible(id)!r} is open here; load the page again") from None


class ViewedSlide:
    """A slide or an image, opened as far as it is asked for.

    Args:
        source: Where it lies.
        gallery: Whose memory it uses.

    Attributes:
        source: Where it lies.
        id: What it is called in addresses.
    """

    def __init__(self, source: Source, gallery: Gallery) -> None:
        self.source, self.id, self._gallery = source, source.id, gallery
        self._lock = threading.Lock()
        self._image_note = source.image_note
        self._stamps: list[Stamp] = []
        self._further_revisions = 0

    @property
    def revision(self) -> int:
        """Return a number that rises when the table is another one, or when :meth:`revise` is called."""
        if self.source.nuclei is not None:
            with self._lock:
                self._note(stamp_of(self.source.nuclei))
        return len(self._stamps) + self._further_revisions

    def revise(self) -> None:
        """Let :attr:`revision` rise: what was sent of the nuclei no longer holds."""
        with self._lock:
            self._further_revisions += 1

    def table(self) -> NucleiTable:
        """Return the nuclei, read again if the table was written anew.

        Raises:
            ConfigError: If there are none.
            DataError: If the table is damaged.
        """
        path = self.source.nuclei
        if path is None:
            raise ConfigError(f"{self.source.name!r} has no nuclei; run `cellvit segment` first")
        stamp = stamp_of(path)
        with self._lock:
            self._note(stamp)
        image = self.image()
        size = None if image is None else (image.width, image.height)
        return self._gallery.tables.get(
            (self.id, stamp, size), lambda: NucleiTable(path, size=size, columns=self._gallery.columns)
        )

    def image(self) -> DeepZoom | None:
        """Return the pixels, or None where there are none; :attr:`image_note` then says why."""
        path = self.source.image
        if path is None or self._image_note:
            return None
        try:
            return self._gallery.images.get(self.id, lambda: self._opened(path))
        except (CellViTError, OSError) as error:
            self._image_note = visible(error)
            return None

    @property
    def image_note(self) -> str:
        """Return why there are no pixels; empty if there are, or nobody has asked for them."""
        return self._image_note

    def tile(self, level: int, column: int, row: int) -> bytes | None:
        """Return a tile as JPEG; None where there is none. See :class:`cellvit.view.image.DeepZoom`."""
        image = self.image()
        if image is None or not image.has(level, column, row):
            return None
        key = (self.id, level, column, row)
        return self._gallery.tiles.get(key, lambda: image.jpeg(level, column, row))

    def thumbnail(self) -> bytes | None:
        """Return a small picture as JPEG, or None where there is none."""
        image = self.image()
        return None if image is None else self._gallery.tiles.get((self.id, "small"), image.thumbnail)

    @cached_property
    def mpp(self) -> tuple[float, float] | None:
        """Return the ``(x, y)`` micrometres per pixel: those of the run, of the table, else of the file."""
        stated = (self.source.summary.get("resolution") or {}).get("mpp")
        if stated:
            return float(stated[0]), float(stated[-1])
        if self.source.nuclei is not None and (mpp := self.table().mpp) is not None:
            return mpp, mpp
        image = self.image()
        return None if image is None else image.mpp

    def listed(self) -> dict[str, Any]:
        """Return what a list of slides says of it."""
        summary, source = self.source.summary, self.source
        entry: dict[str, Any] = {
            "id": self.id,
            "name": source.name,
            "kind": source.kind,
            "nuclei": None,
            "area_mm2": (summary.get("tissue") or {}).get("area_mm2"),
            "classes": [],
            "warnings": self.warnings,
            "error": source.error or None,
            "has_image": source.image is not None,
            "thumbnail": source.image is not None,
            "labels": 0,
        }
        if source.nuclei is None or source.error:
            return entry
        if summary:
            return {**entry, "nuclei": summary["nuclei"]["total"], "classes": _classes_of(summary)}
        try:
            table = self.table()
        except CellViTError as error:
            return {**entry, "error": visible(error)}
        return {**entry, "nuclei": len(table), "classes": [_shown(item) for item in table.classes]}

    def about(self) -> dict[str, Any]:
        """Return what the viewer of the slide needs to know.

        Raises:
            DataError: If the table is damaged.
        """
        source, image = self.source, self.image()
        table = self.table() if source.nuclei is not None and not source.error else None
        size = (image.width, image.height) if image else table.size if table else (0, 0)
        return {
            "id": self.id,
            "name": source.name,
            "kind": source.kind,
            "width": size[0],
            "height": size[1],
            "mpp": self.mpp,
            "image": image and {"tile_size": TILE, "max_level": image.max_level, "note": image.note or None},
            "image_note": self.image_note or None,
            "nuclei": table and _nuclei(table),
            "layers": [],
            "warnings": self.warnings,
            "error": source.error or None,
            "labels": {"editable": False, "reason": "labels cannot be set here", "count": 0, "classes": []},
            "classifier": False,
            "suggestions": 0,
            "revision": self.revision if table else 0,
        }

    @property
    def warnings(self) -> Sequence[str]:
        """Return what the run warned of."""
        return [visible(text) for text in self.source.summary.get("warnings") or ()]

    def _note(self, stamp: Stamp) -> None:
        if not self._stamps or self._stamps[-1] != stamp:
            self._stamps.append(stamp)

    def _opened(self, path: Path) -> DeepZoom:
        """Return the pixels of a file.

        Raises:
            ConfigError: If it is another image than the one that was segmented.
        """
        scene = (self.source.summary.get("settings") or {}).get("scene")
        image = DeepZoom(open_slide(path, scene=scene))
        known = self.source.summary.get("slide")
        if known and (image.width, image.height) != (known["width"], known["height"]):
            raise ConfigError(
                f"{str(path)!r} has {image.width} x {image.height} px, and what was segmented had {known['width']} x "
                f"{known['height']} px; say where the slide is with slides=DIR"
            )
        return image


def _nuclei(table: NucleiTable) -> dict[str, Any]:
    """Return what the viewer needs to know of nuclei."""
    return {
        "count": len(table),
        "bounds": list(table.bounds),
        "tile_base": table.tree.base,
        "max_zoom": table.tree.max_zoom,
        "outlines": False,
        "outlines_note": "outlines are not served yet",
        "classes": [_shown(entry, id=entry["id"]) for entry in table.classes],
        "columns": [
            {
                **{name: getattr(column, name) for name in ("name", "label", "unit", "kind")},
                **{name: _finite(getattr(column, name)) for name in ("low", "high", "min", "max")},
                "values": [visible(value) for value in column.values],
            }
            for column in table.columns
        ],
    }


def _shown(entry: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {**more, "name": visible(entry["name"]), "color": entry["color"], "count": entry["count"]}


def _classes_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, colour and count of the types that a summary names."""
    model = summary.get("classification") or summary.get("model") or {}
    names = [str(name) for name in model.get("classes") or ()]
    colors = dict(zip(names, model.get("colors") or standard_colors(names), strict=False))
    counted = summary["nuclei"].get("by_type") or {}
    plain = (128, 128, 128)
    return [
        {
            "name": visible(name),
            "color": "#" + bytes(colors.get(name, plain if name == NO_TYPE else palette_color(i))).hex(),
            "count": count,
        }
        for i, (name, count) in enumerate(counted.items(), start=1)
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
