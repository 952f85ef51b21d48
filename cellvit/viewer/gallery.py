"""The slides that are looked at: what is opened of each, when it is asked for, and what it says of itself."""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.classes import NO_TYPE, hex_color, palette_color, standard_colors
from cellvit.errors import CellViTError, ConfigError
from cellvit.inference.resources import release_memory
from cellvit.inference.resume import SUMMARY
from cellvit.io.format import visible
from cellvit.slide.open import open_slide
from cellvit.slide.readers.base import small_caches
from cellvit.viewer.cache import BoundedCache
from cellvit.viewer.formats import as_table
from cellvit.viewer.image import TILE, DeepZoom
from cellvit.viewer.layers import layers_of
from cellvit.viewer.outlines import OutlineFile, StoppedError, has_outlines, open_outlines
from cellvit.viewer.sources import Source, find_sources, shown_summary
from cellvit.viewer.table import Column, Floats, NucleiTable, Stamp, count_classes, stamp_of

# what is kept is small beside what the server itself needs, so that all of it stays well below 500 MB
_TABLE_BYTES = 100_000_000
_COLUMN_BYTES = 48_000_000
_TILE_BYTES = 32_000_000
_PIXEL_BYTES = 48_000_000  # decoded, of each open image
_OPEN_IMAGES = 2


_PATIENCE = 1.0  # seconds that a request waits for outlines that are prepared


class UnknownSlideError(ConfigError):
    """No slide has that id."""


class NotReadyError(CellViTError):
    """Something is prepared that takes a few seconds once; ask again."""


class Gallery:
    """All slides of a viewer, and the memory that they share. Threads may use it at the same time.

    Args:
        sources: What there is to look at, or paths for :func:`cellvit.viewer.sources.find_sources`.
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
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="outlines")
        self._closing = threading.Event()
        self.slides = {source.id: ViewedSlide(source, self) for source in found}
        only = next(iter(self.slides.values())).source.name if len(self.slides) == 1 else f"{len(self.slides)} slides"
        self.title = only if title is None else title

    def begin_outlines(self, table: NucleiTable) -> "Future[OutlineFile | None]":
        """Make the file of outlines of a table in a thread, after those that were begun before.

        Args:
            table: The table.

        Raises:
            StoppedError: If the gallery is closed.
        """
        if self._closing.is_set():
            raise StoppedError("the viewer is closed; open it again")
        return self._preparing.submit(open_outlines, table, stop=self._closing)

    def close(self) -> None:
        """Stop what is prepared; nothing half-written stays."""
        self._closing.set()
        self._preparing.shutdown(wait=False)

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
        self._stamp: Stamp | None = None
        self._revision = 0
        self._notes: list[str] = []
        self._known_table: tuple[Stamp, Path] | None = None
        self._classes: tuple[Stamp, list[dict[str, Any]]] | None = None
        self._summary: tuple[Stamp | None, Mapping[str, Any]] = (None, source.summary)
        self._outlines: tuple[Stamp, Future[OutlineFile | None]] | None = None

    @property
    def revision(self) -> int:
        """Return a number that rises when the table is another one."""
        if self.source.nuclei is not None:
            with self._lock:
                self._note(stamp_of(self.source.nuclei))
        return self._revision

    def table(self) -> NucleiTable:
        """Return the nuclei, read again if the table was written anew.

        Raises:
            ConfigError: If there are none.
            DataError: If the table is damaged.
        """
        if self.source.nuclei is None:
            raise ConfigError(f"{self.source.name!r} has no nuclei; run `cellvit segment` first")
        path = self._table_path(self.source.nuclei)
        image = self.image()
        size = None if image is None else (image.width, image.height)
        return self._gallery.tables.get((self.id, stamp_of(path), size), lambda: self._read(path, size))

    def outlines(self, table: NucleiTable, *, wait: float = _PATIENCE) -> OutlineFile | None:
        """Return the outlines of the nuclei; None where there are none.

        Args:
            table: From :meth:`table`.
            wait: Seconds to wait where their file is made for the first time.

        Raises:
            NotReadyError: If it takes longer.
            DataError: If the table is damaged.
            OutputError: If the file can be written nowhere.
        """
        with self._lock:
            if self._outlines is None or self._outlines[0] != table.stamp:
                self._outlines = (table.stamp, self._begin(table))
            begun = self._outlines[1]
        try:
            return begun.result(timeout=wait)
        except TimeoutError:
            raise NotReadyError("the outlines are prepared, which takes a few seconds once; ask again") from None

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
        """Return a tile as JPEG; None where there is none. See :class:`cellvit.viewer.image.DeepZoom`."""
        image = self.image()
        if image is None or not image.has(level, column, row):
            return None
        return image.jpeg(level, column, row)

    def thumbnail(self) -> bytes | None:
        """Return a small picture as JPEG, or None where there is none."""
        image = self.image()
        return None if image is None else image.thumbnail()

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Return the ``(x, y)`` micrometres per pixel: those of the run, of the table, else of the file."""
        stated = (self.summary.get("resolution") or {}).get("mpp")
        if stated:
            return float(stated[0]), float(stated[-1])
        if self.source.nuclei is not None:
            with suppress(CellViTError):  # a damaged table is told of where it is asked for
                if (mpp := self.table().mpp) is not None:
                    return mpp, mpp
        image = self.image()
        return None if image is None else image.mpp

    @property
    def summary(self) -> Mapping[str, Any]:
        """Return what ``summary.json`` of the results holds now, read again where it was written anew."""
        folder = self.source.folder
        if folder is not None and not self.source.error:
            with suppress(CellViTError):
                stamp = stamp_of(folder / SUMMARY)
                if stamp != self._summary[0]:
                    self._summary = (stamp, shown_summary(folder) or self.source.summary)
        return self._summary[1]

    def listed(self) -> dict[str, Any]:
        """Return what a list of slides says of it; nothing is opened for it but a small table."""
        source, summary = self.source, self.summary
        classes, nuclei, error = _classes_of(summary), (summary.get("nuclei") or {}).get("total"), source.error
        if source.nuclei is not None and not summary and source.nuclei.suffix == ".parquet" and not error:
            try:
                classes = self._counted(source.nuclei)
                nuclei = sum(entry["count"] for entry in classes)
            except CellViTError as damage:
                error = visible(damage)
        return {
            "id": self.id,
            "name": source.name,
            "kind": source.kind,
            "nuclei": nuclei,
            "area_mm2": (summary.get("tissue") or {}).get("area_mm2"),
            "classes": [{name: entry[name] for name in ("name", "color", "count")} for entry in classes],
            "warnings": self.warnings,
            "error": error or None,
            "has_image": source.image is not None,
            "thumbnail": source.image is not None,
            "labels": 0,
        }

    def about(self) -> dict[str, Any]:
        """Return what the viewer of the slide needs to know; what cannot be opened is None, with the reason."""
        source, image, table, error = self.source, self.image(), None, self.source.error
        if source.nuclei is not None and not error:
            try:
                table = self.table()
                outlines = self._outline_facts(table)
                columns = table.columns
            except (CellViTError, OSError) as damage:
                table, error = None, visible(damage)
        stated = source.size or (0, 0) if table is None else table.size
        size = stated if image is None else (image.width, image.height)
        if image is None and table is None:
            error = error or self.image_note
        return {
            "id": self.id,
            "name": source.name,
            "kind": source.kind,
            "width": size[0],
            "height": size[1],
            "mpp": self.mpp,
            "image": image and {"tile_size": TILE, "max_level": image.max_level, "note": visible(image.note) or None},
            "image_note": self.image_note or None,
            "nuclei": None if table is None else {**_nuclei(table, columns), **outlines},
            "layers": self._layers[0],
            "warnings": [*self.warnings, *self._notes, *self._layers[1]],
            "error": error or None,
            "labels": {"editable": False, "reason": "labels cannot be set here", "count": 0, "classes": []},
            "classifier": False,
            "suggestions": 0,
            "revision": 0 if table is None else self.revision,
        }

    @cached_property
    def _layers(self) -> tuple[list[dict[str, Any]], list[str]]:
        return layers_of(self.source.folder, self.summary)

    def _outline_facts(self, table: NucleiTable) -> dict[str, Any]:
        """Return whether there are outlines; those that were never read are prepared from now on."""
        note = None
        try:
            self._add_area(table)
            if self.outlines(table, wait=0) is None:
                note = "the table holds no outlines; the nuclei are shown as points"
        except NotReadyError:
            pass  # they will be there
        except (CellViTError, OSError) as error:
            note = f"the outlines cannot be shown: {visible(error)}"
        return {"outlines": note is None, "outlines_note": note}

    @property
    def warnings(self) -> Sequence[str]:
        """Return what the run warned of."""
        return [visible(text) for text in self.summary.get("warnings") or ()]

    def _counted(self, path: Path) -> list[dict[str, Any]]:
        """Return the classes of a table that no summary counts, counted once."""
        stamp = stamp_of(path)
        if self._classes is None or self._classes[0] != stamp:
            self._classes = (stamp, count_classes(path))
        return self._classes[1]

    def _table_path(self, nuclei: Path) -> Path:
        """Return the table that holds the nuclei of a file; of another format it is written first."""
        stamp = stamp_of(nuclei)
        with self._lock:
            self._note(stamp)
            if self._known_table is None or self._known_table[0] != stamp:
                path, self._notes = as_table(nuclei)
                self._known_table = (stamp, path)
            return self._known_table[1]

    def _read(self, path: Path, size: tuple[int, int] | None) -> NucleiTable:
        table = NucleiTable(path, size=size, kept=self._gallery.columns)
        release_memory()  # what was needed to put a million nuclei in order is more than what is kept of them
        return table

    def _add_area(self, table: NucleiTable) -> None:
        """Add the area inside of outlines where nothing was measured and the outlines are there."""
        if any(column.name.startswith("area_") for column in table.columns):
            return
        outlines = self.outlines(table)
        if outlines is not None:
            factor, unit = (1.0, "px") if table.mpp is None else (table.mpp**2, "um")
            table.derive(f"area_{unit}2", lambda: outlines.areas() * np.float32(factor))

    def _begin(self, table: NucleiTable) -> "Future[OutlineFile | None]":
        """Return the outlines of a table that are opened, or made; None where there are none."""
        there = has_outlines(table)
        found = open_outlines(table, make=False) if there else None
        if there and found is None:
            return self._gallery.begin_outlines(table)
        done: Future[OutlineFile | None] = Future()
        done.set_result(found)
        return done

    def _note(self, stamp: Stamp) -> None:
        if self._stamp != stamp:
            self._stamp, self._revision = stamp, self._revision + 1

    def _opened(self, path: Path) -> DeepZoom:
        """Return the pixels of a file.

        Raises:
            ConfigError: If it is another image than the one that was segmented.
        """
        scene = (self.summary.get("settings") or {}).get("scene")
        with small_caches(_PIXEL_BYTES):
            image = DeepZoom(open_slide(path, scene=scene), kept=self._gallery.tiles, name=self.id)
        known = self.source.size
        if known is not None and (image.width, image.height) != known:
            raise ConfigError(
                f"{str(path)!r} has {image.width} x {image.height} px, and what was segmented had {known[0]} x "
                f"{known[1]} px; say where the slide is with slides=DIR"
            )
        return image


def _nuclei(table: NucleiTable, columns: Sequence[Column]) -> dict[str, Any]:
    """Return what the viewer needs to know of nuclei."""
    return {
        "count": len(table),
        "bounds": list(table.bounds),
        "tile_base": table.tree.base,
        "max_zoom": table.tree.max_zoom,
        "classes": table.classes,
        "types_learnt_on": (table.named and visible(table.named.learnt_on)) or None,
        "columns": [
            {
                **{name: getattr(column, name) for name in ("name", "label", "unit", "kind")},
                **{name: _finite(getattr(column, name)) for name in ("low", "high", "min", "max")},
                "values": [visible(value) for value in column.values],
            }
            for column in columns
        ],
    }


def _classes_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name, colour and count of the types that a summary names."""
    model = summary.get("classification") or summary.get("model") or {}
    names = [str(name) for name in model.get("classes") or ()]
    colors = dict(zip(names, model.get("colors") or standard_colors(names), strict=False))
    counted = (summary.get("nuclei") or {}).get("by_type") or {}
    plain = (128, 128, 128)
    return [
        {
            "name": visible(name),
            "color": _hex(colors.get(name, plain if name == NO_TYPE else palette_color(i))),
            "count": count,
        }
        for i, (name, count) in enumerate(counted.items(), start=1)
    ]


def _hex(color: Sequence[int]) -> str:
    red, green, blue = (min(max(part, 0), 255) for part in color)
    return hex_color((red, green, blue))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
