"""What a viewer knows of labels: sessions of its slides, classes they share, training, and what to label next."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cellvit.classes import PALETTE, Rgb, hex_color
from cellvit.errors import CellViTError, ConfigError, DataError
from cellvit.io.format import visible
from cellvit.io.provenance import file_state
from cellvit.labels.match import labels_path
from cellvit.labels.table import read_labels
from cellvit.viewer.gallery import ViewedSlide
from cellvit.viewer.jobs import Job, Jobs
from cellvit.viewer.labels import LabelClasses, LabelConflictError, LabelSession, class_name, color_of
from cellvit.viewer.tasks import Say, run_apart

FOLDER = "viewer"
"""Beside result folders: what was made in the viewer and is of no single slide."""

CLASSES_FILE = "label-classes.json"
"""The classes of labels, in :data:`FOLDER`."""

CLASSIFIER = "my-types"
"""The classifier that was trained in the viewer, in :data:`FOLDER`."""

SUGGESTED = 50
"""Nuclei that are suggested at a time."""


@dataclass(frozen=True)
class Suggested:
    """Nuclei that were suggested.

    Attributes:
        key: What they were chosen from.
        rows: What the page is told of each.
    """

    key: tuple[Any, ...]
    rows: list[dict[str, Any]]


class Labeling:
    """Labels of all slides of a viewer.

    Args:
        slides: The slides.
        moved: Where slides are, if not where they were; for pictures of nuclei.
    """

    def __init__(self, slides: Iterable[ViewedSlide], *, moved: Path | None = None) -> None:
        self._slides = {slide.id: slide for slide in slides if table_of(slide) is not None}
        self._sessions: dict[str, LabelSession] = {}
        self._suggested: dict[str, Suggested] = {}
        self._counted: dict[str, tuple[dict[str, int] | None, int]] = {}
        self._mutex, self._choosing = threading.Lock(), threading.Lock()
        self._moved = moved
        self.jobs = Jobs()
        self.folder = _common_folder(self._slides.values()) / FOLDER
        self.own = LabelClasses(self.folder / CLASSES_FILE)

    @property
    def classifier(self) -> Path | None:
        """The folder of the classifier, if one was trained."""
        found = self.folder / CLASSIFIER
        return found if (found / "config.json").is_file() else None

    def session(self, slide: ViewedSlide) -> LabelSession:
        """Return the labels of a slide, which are locked from then on.

        Raises:
            DataError: If the slide has no table of nuclei.
        """
        table = table_of(slide)
        if table is None or slide.table().path != table:  # of another program it is shown from a copy
            raise DataError(f"{slide.source.name!r} has no table of ours to label; see `cellvit convert-nuclei`")
        with self._mutex:
            if slide.id not in self._sessions:
                self._sessions[slide.id] = LabelSession(table)
            return self._sessions[slide.id]

    def classes(self, slide: ViewedSlide) -> list[dict[str, Any]]:
        """Return name, colour and number of labels of the classes: those of the viewer first, then others in use."""
        counts = self.session(slide).counts()
        colors = self.colors(slide, counts)
        return [{"name": name, "color": hex_color(rgb), "count": counts.get(name, 0)} for name, rgb in colors.items()]

    def colors(self, slide: ViewedSlide, names: Iterable[str]) -> dict[str, Rgb]:
        """Return the colours of the classes of the viewer, and of further names: of types of that name, else others."""
        colors, types = self.own.all(), _types_of(slide)
        for name in names:
            colors.setdefault(name, types.get(name) or _next_color(colors))
        return colors

    def state(self, slide: ViewedSlide) -> dict[str, Any]:
        """Return what the page is told about labels when it opens a slide."""
        try:
            session, classes = self.session(slide), self.classes(slide)
        except CellViTError as error:
            facts = {"editable": False, "reason": visible(error), "note": "", "count": 0}
            return {**facts, "classes": [], "palette": []}
        reason = session.reason
        facts = {"editable": reason is None, "reason": reason, "note": session.note, "count": len(session.current)}
        palette = [hex_color(color) for color in PALETTE]
        return {**facts, "classes": classes, "palette": palette}

    def count(self, slide: ViewedSlide) -> int:
        """Return how many nuclei of a slide have a label; one that was not opened is not locked for it."""
        if slide.id in self._sessions:
            return len(self._sessions[slide.id].current)
        path = None if (table := table_of(slide)) is None else labels_path(table)
        if path is None or not path.is_file():
            return 0
        state = file_state(path)
        if self._counted.get(slide.id, (None, 0))[0] != state:  # a list of many slides is asked for often
            try:
                self._counted[slide.id] = state, len(read_labels(path).current())
            except DataError:  # whoever opens the slide is told
                self._counted[slide.id] = state, 0
        return self._counted[slide.id][1]

    def label_of(self, slide: ViewedSlide, row: int) -> str | None:
        """Return the class that a nucleus was given, or None."""
        return self._sessions[slide.id].label_of(row) if slide.id in self._sessions else None

    def suggested(self, slide: ViewedSlide) -> int:
        """Return how many nuclei can be suggested: those that were and have no label yet, else how many may be."""
        table, known = table_of(slide), self._suggested.get(slide.id)
        if slide.id not in self._sessions or table is None:
            return 0
        rest = 0 if known is None else len(_unlabelled(known.rows, self._sessions[slide.id]))
        return rest or (SUGGESTED if "embedding" in pq.read_schema(table).names else 0)

    def set_class(self, slide: ViewedSlide, name: str, color: Rgb | None = None) -> None:
        """Add a class, or give it another colour.

        Args:
            slide: The slide that is shown: a class that is called as a type of it has its colour.
            name: Of the class.
            color: Its colour; None is that it has, or the next one of the palette.

        Raises:
            ConfigError: If the name is none that can be read.
            OutputError: If the classes cannot be written.
        """
        name, classes = class_name(name), self.own.all()
        chosen = color or self.colors(slide, [*self.session(slide).counts(), name])[name]
        self.own.write({**classes, name: chosen})

    def rename_class(self, name: str, to: str) -> int:
        """Rename a class, also where labels of the slides have it, and return how many labels had it."""
        to, classes = class_name(to), self.own.all()
        changed = self._relabel(name, to)
        if name in classes:
            self.own.write({(to if each == name else each): rgb for each, rgb in classes.items() if each != to})
        return changed

    def remove_class(self, name: str) -> int:
        """Remove a class, take back what labels of the slides have it, and return how many had it."""
        classes = self.own.all()
        changed = self._relabel(name, None)
        if classes.pop(name, None) is not None:
            self.own.write(classes)
        return changed

    def _relabel(self, name: str, to: str | None) -> int:
        sessions = {slide.id: self.session(slide) for slide in self._slides.values() if self.count(slide)}
        having = [key for key, session in sessions.items() if name in session.counts()]
        for key in having:  # before the first one is changed
            if reason := sessions[key].reason:
                raise LabelConflictError(f"{self._slides[key].source.name!r}: {reason}")
        changed = 0
        for key in having:
            current = sessions[key].current
            rows = current.nucleus[current.class_name == name]
            changed += sessions[key].give(rows, to)
        return changed

    def suggestions(self, slide: ViewedSlide) -> list[dict[str, Any]]:
        """Return the nuclei to label next, without those that have a label by now; chosen anew when none is left.

        Raises:
            DataError: If there are no features, or embeddings of another model than the classifier's.
            ConfigError: If the extra ``classify`` is not installed.
        """
        session = self.session(slide)
        with self._choosing:
            key, known = self._key(slide), self._suggested.get(slide.id)
            open_ones = [] if known is None or known.key != key else _unlabelled(known.rows, session)
            if not open_ones:
                settings = {"table": session.table, "classifier": self.classifier, "count": SUGGESTED}
                open_ones = run_apart("suggest", lambda text: None, **settings)
            self._suggested[slide.id] = Suggested(key, open_ones)
            return open_ones

    def train(self) -> Job:
        """Start to train the classifier on the labels of all slides.

        Raises:
            LabelConflictError: If something is under way.
        """

        def work(say: Say) -> str:
            sources = [session.path for session in self._labelled()]
            if not sources:
                raise DataError("there are no labels to learn from; click nuclei of at least two classes")
            settings = {"out": self.folder / CLASSIFIER, "slides": self._moved, "colors": self.own.all()}
            return str(run_apart("train", say, sources=list(map(str, sources)), **settings))

        return self.jobs.start("train", work, report="api/classifier/report.html")

    def apply(self, slides: Sequence[ViewedSlide], *, pictures: bool = True) -> Job:
        """Start to give nuclei the types of the classifier.

        Args:
            slides: Whose nuclei; none for all slides.
            pictures: Draw pictures in result folders anew; without, they are removed.

        Raises:
            ConfigError: If no classifier was trained.
            LabelConflictError: If something is under way.
        """
        classifier, chosen = self.classifier, list(slides) or list(self._slides.values())
        if classifier is None:
            raise ConfigError("there is no classifier yet; train one on your labels first")
        folders = [str(slide.source.folder or self.session(slide).table) for slide in chosen]
        settings = {"classifier": classifier, "folders": folders, "slides": self._moved, "pictures": pictures}
        return self.jobs.start("apply", lambda say: str(run_apart("apply", say, **settings)))

    def saved(self) -> list[str]:
        """Return where labels are, a sentence per slide that has some and was opened."""
        found = [(session.path, len(session.current)) for session in self._sessions.values()]
        return [f"{count:,} labels are in {path}" for path, count in found if count]

    def close(self) -> None:
        """Let other viewers change the labels."""
        for session in self._sessions.values():
            session.close()

    def _labelled(self) -> list[LabelSession]:
        having = [slide for slide in self._slides.values() if self.count(slide)]
        return [self.session(slide) for slide in having]

    def _key(self, slide: ViewedSlide) -> tuple[Any, ...]:
        classifier = self.classifier
        return slide.revision, None if classifier is None else (classifier / "config.json").stat().st_mtime_ns


def table_of(slide: ViewedSlide) -> Path | None:
    """Return the file of nuclei of a slide if its rows can be labelled."""
    path = slide.source.nuclei
    return path if path is not None and path.suffix == ".parquet" and not slide.source.error else None


def _types_of(slide: ViewedSlide) -> dict[str, Rgb]:
    """Return the colours of the types of a slide by name."""
    return {one["name"]: color_of(one["color"]) for one in slide.table().classes}


def _next_color(taken: Mapping[str, Rgb]) -> Rgb:
    """Return the first colour of the palette that no class has."""
    return next((color for color in PALETTE if color not in taken.values()), PALETTE[len(taken) % len(PALETTE)])


def _unlabelled(rows: list[dict[str, Any]], session: LabelSession) -> list[dict[str, Any]]:
    labelled = set(session.current.nucleus.tolist())
    return [one for one in rows if one["row"] not in labelled]


def _common_folder(slides: Iterable[ViewedSlide]) -> Path:
    """Return the folder that holds the result folders, or the lone tables, of a viewer."""
    places = [slide.source.place.resolve().parent for slide in slides]
    if not places:
        return Path.cwd()
    try:
        common = Path(os.path.commonpath(places))
    except ValueError:  # of several disks
        return places[0]
    return common if common != Path(common.anchor) else places[0]
