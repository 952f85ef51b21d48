"""Types of a classifier in the results of slides: table, other files, pictures, summary; and back again."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from cellvit.classes import NO_TYPE, NucleiClasses
from cellvit.classification.classifier import TypeClassifier, as_classifier
from cellvit.classification.storage import fingerprint
from cellvit.classification.table import (
    TypedTable,
    counts_of,
    score_table,
    unsure_of,
    write_former,
    write_types,
)
from cellvit.errors import DataError, ImageError, OutputError
from cellvit.inference.assemble import TABLE, TISSUE, PatchLayout
from cellvit.inference.cohort.report import write_report
from cellvit.inference.cohort.sheet import REPORT_NAME, SUMMARY_NAME
from cellvit.inference.cohort.summary import read_summary as read_cohort
from cellvit.inference.cohort.summary import write_summary
from cellvit.inference.outputs import OutputContext, write_formats
from cellvit.inference.resume import SUMMARY, ResumeFolder, read_summary
from cellvit.inference.settings import FORMATS, PICTURES, THUMBNAIL
from cellvit.inference.statistics import slide_statistics
from cellvit.inference.verify import DAMAGED, check_sizes, contents, result_folders, slide_path, types_differ
from cellvit.io.formats.base import FORMATS as NUCLEI_FORMATS
from cellvit.io.parquet import ParquetStream
from cellvit.io.provenance import mpp_of, size_of, write_record
from cellvit.io.remote import as_path
from cellvit.slide.open import Slide, open_slide
from cellvit.slide.tiling import CroppedGrid
from cellvit.slide.tissue import TissueMask
from cellvit.slide.view import SlideView

Progress = Callable[[int, int], None]

_WITH_PICTURE = {*PICTURES, "spatialdata", "ome-zarr"}


@dataclass(frozen=True)
class AppliedTypes:
    """What came of a folder.

    Attributes:
        folder: The result folder, or the table.
        counts: Nuclei by name of the type.
        unsure: Nuclei of which the classifier is not sure.
        changed: Whether anything was written.
        notes: What the user should know.
    """

    folder: Path
    counts: Mapping[str, int]
    unsure: int = 0
    changed: bool = True
    notes: tuple[str, ...] = ()


def apply_types(
    classifier: TypeClassifier | str | Path,
    folder: str | Path,
    *,
    slides: str | Path | None = None,
    pictures: bool = True,
    trust: Sequence[str] = (),
    progress: Progress | None = None,
) -> AppliedTypes:
    """Give the nuclei of a slide the types of a classifier, in all files of its result folder.

    The slide is not segmented again; it is read for pictures only. The table is written first and the summary last, and
    every file is complete or as it was: a call that was stopped is finished by the next one. The types that the model
    gave stay in the table, for :func:`undo_types`.

    Args:
        classifier: Fitted, or the folder of a saved one.
        folder: Results of a slide, or a single table of nuclei (``.parquet``), beside which nothing is written.
        slides: Where the slide lies now, if it is not where it was: the file, or a folder that holds it.
        pictures: Draw pictures that the folder has with the new types; without, they are removed.
        trust: Packages whose classes the classifier's file may name.
        progress: Called with the number of nuclei that are done and of all, twice from the beginning.

    Returns:
        The number of nuclei of each type, and what the user should know.

    Raises:
        DataError: If embeddings are of another model, missing, or the table is damaged.
        ImageError: If pictures are to be drawn and the slide is not there.
        OutputError: If a file cannot be written.
    """
    chosen = as_classifier(classifier, trust=trust)
    about = _about(chosen, classifier)

    def retype(table: TypedTable, mpp: tuple[float, float] | None) -> tuple[str, ...]:
        scores = score_table(table, chosen, progress=progress)
        write_types(table, scores, chosen, about=about, mpp=mpp, progress=progress)
        return scores.notes

    return _Change(about, retype, slides, pictures=pictures).do(Path(folder))


def undo_types(
    folder: str | Path,
    *,
    slides: str | Path | None = None,
    pictures: bool = True,
    progress: Progress | None = None,
) -> AppliedTypes:
    """Bring back the types that the model gave, in all files of the result folder of a slide.

    Args:
        folder: Results, or a single table.
        slides: As for :func:`apply_types`.
        pictures: As for :func:`apply_types`.
        progress: Called with the number of nuclei that are done and of all.

    Raises:
        ImageError: If pictures are to be drawn and the slide is not there.
        OutputError: If a file cannot be written.
    """

    def former(table: TypedTable, mpp: tuple[float, float] | None) -> tuple[str, ...]:
        write_former(table, progress=progress)
        return ()

    return _Change(None, former, slides, pictures=pictures).do(Path(folder))


def update_cohorts(folders: Sequence[str | Path]) -> list[Path]:
    """Write ``summary.csv`` and ``report.html`` anew for cohorts that slides belong to, and return the reports.

    Args:
        folders: Results of slides, or of cohorts.
    """
    roots = dict.fromkeys(root for folder in folders for root in (Path(folder), Path(folder).parent))
    reports = []
    for root in roots:
        outcomes = read_cohort(root / SUMMARY_NAME) if (root / SUMMARY_NAME).is_file() else []
        if not outcomes:
            continue
        write_summary(outcomes, root / SUMMARY_NAME)
        title = f"Nuclei of {len(outcomes)} slide{'s' * (len(outcomes) != 1)}"
        write_report(outcomes, root / REPORT_NAME, title=title)
        reports.append(root / REPORT_NAME)
    return reports


def tables_of(path: str | Path) -> list[Path]:
    """Return what a path stands for: result folders of slides, or a single table.

    Args:
        path: A result folder, one of a cohort, or a ``.parquet`` file.

    Raises:
        DataError: If there is no table of nuclei.
    """
    given = Path(path)
    if given.is_file():
        return [given]
    found = [folder for folder in result_folders(given) if (folder / TABLE).is_file()]
    if not found:
        raise DataError(f"{str(path)!r} holds no {TABLE}; give result folders of `cellvit segment`, or tables")
    return found


def table_path(folder: Path) -> Path:
    """Return the table of a result folder, or the one that is given as such."""
    return folder / TABLE if folder.is_dir() else folder


def _about(classifier: TypeClassifier, given: TypeClassifier | str | Path) -> dict[str, Any]:
    """Return what is noted of a classifier in results."""
    facts = {"unsure_below": classifier.unsure_below, "types": [str(name) for name in classifier.classes_]}
    if isinstance(given, TypeClassifier):
        import hashlib

        import joblib

        digest = hashlib.sha256(joblib.hash(classifier).encode()).hexdigest()[:16]
        return {"name": type(classifier).__name__, "fingerprint": digest, **facts}
    return {"name": Path(given).resolve().name, "fingerprint": fingerprint(given), **facts}


@dataclass(frozen=True)
class _Change:
    """A change of types: to those of a classifier, or back.

    Attributes:
        about: What is noted of the classifier; None for the types of the model.
        write: Writes the table anew.
        slides: Where slides are, if not where they were.
        pictures: Whether pictures are drawn.
    """

    about: Mapping[str, Any] | None
    write: Callable[[TypedTable, tuple[float, float] | None], tuple[str, ...]]
    slides: str | Path | None
    pictures: bool

    def do(self, folder: Path) -> AppliedTypes:
        """Change the types in a folder, or of a single table."""
        if folder.is_file():
            return self._do_table(folder)
        summary = read_summary(folder)
        if summary is None:
            raise DataError(f"{str(folder)!r} is not finished, or holds no results; run `cellvit segment` to the end")
        with ResumeFolder(folder):
            return self._do_folder(folder, summary)

    def _do_table(self, path: Path) -> AppliedTypes:
        table = TypedTable(path)
        notes: tuple[str, ...] = ()
        if changed := table.classifier != self.about:
            mpp = mpp_of(table.facts["metadata"])
            notes = self.write(table, None if mpp is None else (mpp, mpp))
            beside = sorted(file.name for file in path.parent.glob(f"{path.stem}.*") if file.suffix != ".parquet")
            for name in beside:
                notes = (*notes, f"{name!r} keeps other types; write it anew with `cellvit convert-nuclei {path.name}`")
        counts, unsure = _counts(path)
        return AppliedTypes(path, counts, unsure, changed, notes)

    def _do_folder(self, folder: Path, summary: Mapping[str, Any]) -> AppliedTypes:
        table = TypedTable(folder / TABLE)
        noted = (summary.get("classification") or {}).get("classifier")
        is_same = table.classifier == self.about
        if is_same and noted == self.about:
            return AppliedTypes(folder, *_counts(folder / TABLE), changed=False)
        if not types_differ(folder, summary):  # else a call was stopped, and sizes do not fit yet
            _refuse_damage(folder, summary)
        formats = [name for name in FORMATS if name in summary["files"]]
        for name in formats:
            if name not in PICTURES:
                NUCLEI_FORMATS.get(name)().check_packages()
        across, down = summary["resolution"]["mpp"]
        with self._slide(summary, formats) as slide:
            notes = () if is_same else self.write(table, (across, down))
            context = _context(folder, summary, slide)
            dropped = [name for name in formats if name in PICTURES and not self.pictures]
            write_formats(folder, tuple(name for name in formats if name not in dropped), context)
            for name in dropped:
                (folder / FORMATS[name]).unlink(missing_ok=True)
            if dropped:
                notes = (*notes, f"{str(folder)!r}: {', '.join(dropped)} showed other types and were removed")
            record = _record(folder, summary, context, self.about, dropped)
        write_record(folder / SUMMARY, record)
        return AppliedTypes(folder, *_counts(folder / TABLE), notes=notes)

    def _slide(self, summary: Mapping[str, Any], formats: Sequence[str]) -> AbstractContextManager[Slide]:
        """Return the slide; where its pixels are not needed, and it is not there, what the summary says of it."""
        needed = sorted(_WITH_PICTURE & set(formats) - (set() if self.pictures else set(PICTURES)))
        if not needed:
            return nullcontext(_recorded(summary))
        path, known = slide_path(summary, self.slides), summary["slide"]
        if path is None or size_of(path) != known["size_bytes"]:
            raise ImageError(
                f"the slide {known['path']!r} is {'not there' if path is None else 'another file now'}, and "
                f"{', '.join(needed)} are drawn on it; say where it is with slides=DIR, or pass pictures=False to "
                "remove pictures with other types"
            )
        return open_slide(path, scene=summary["settings"].get("scene"))


def _recorded(summary: Mapping[str, Any]) -> Slide:
    """Return what a summary says of a slide, in place of the slide."""
    facts = summary["slide"]
    levels = tuple((int(width), int(height)) for width, height in facts["levels"])
    bounds = tuple(int(side) for side in facts["bounds"])
    return cast(Slide, SimpleNamespace(path=as_path(facts["path"]), level_sizes=levels, bounds=bounds))


def _context(folder: Path, summary: Mapping[str, Any], slide: Slide) -> OutputContext:
    """Return what the writers of formats share, from what the summary says."""
    settings, (across, down) = summary["settings"], summary["resolution"]["mpp"]
    view = SlideView(slide, mpp=(across, down), target_mpp=summary["model"]["mpp"])
    grid = CroppedGrid(view.width, view.height, settings["tile_size"], settings["overlap"])
    origin = settings["origin"]
    has_pixels = hasattr(slide, "read_region")
    thumbnail = view.thumbnail_with_remarks(THUMBNAIL)[0] if has_pixels else np.zeros((1, 1, 3), np.uint8)
    return OutputContext(
        slide=slide,
        thumbnail=thumbnail,
        mpp=(across + down) / 2,
        metadata=ParquetStream(folder / TABLE, embedding=False).metadata,
        patches=PatchLayout(grid, view.scale, (0, 0) if origin == "bounds" else slide.bounds[:2]),
        origin=origin,
        tissue=_tissue(folder),
        simplify=settings["simplify"],
    )


def _tissue(folder: Path) -> Any:
    try:
        with Image.open(folder / TISSUE) as picture:
            return np.asarray(picture) > 127
    except (OSError, ValueError, SyntaxError) as error:
        raise OutputError(
            f"{str(folder / TISSUE)!r} is missing or damaged ({error}); run `cellvit segment` again"
        ) from error


def _record(
    folder: Path,
    summary: Mapping[str, Any],
    context: OutputContext,
    about: Mapping[str, Any] | None,
    dropped: Sequence[str],
) -> dict[str, Any]:
    """Return the summary with the types that the table has now."""
    stream = ParquetStream(folder / TABLE, embedding=False)
    counts, unsure = _counts(folder / TABLE)
    files = {name: file for name, file in summary["files"].items() if name not in dropped}
    statistics = slide_statistics(
        stream, bounds=context.bounds, mpp=tuple(summary["resolution"]["mpp"]), tissue=TissueMask(context.tissue)
    )
    record = {**summary, "nuclei": {**summary["nuclei"], "by_type": dict(counts)}, "files": files}
    record |= {"statistics": statistics, "digests": contents(folder, files.values())}
    record.pop("classification", None)
    if about is None:
        return record
    classes = stream.classes or NucleiClasses((), ())
    record["classification"] = {
        "classifier": dict(about),
        "classes": list(classes.names),
        "colors": [list(color) for color in classes.colors],
        "unsure": unsure,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record


def _counts(path: Path) -> tuple[dict[str, int], int]:
    """Return the number of nuclei of each type in a table, as summaries have them, and of those that are unsure."""
    classes = ParquetStream(path, embedding=False).classes
    if classes is None:
        raise DataError(f"{str(path)!r} does not name its types; write it again with classes")
    with pq.ParquetFile(path) as file:
        kind = file.read(columns=["type"])["type"].to_numpy()
    counts = counts_of(kind, classes).tolist()
    shown = {name if i else NO_TYPE: n for i, (name, n) in enumerate(zip(classes.names, counts, strict=True)) if i or n}
    return shown, unsure_of(kind, classes)


def _refuse_damage(folder: Path, summary: Mapping[str, Any]) -> None:
    damaged = [check for check in check_sizes(folder, summary) if check.status == DAMAGED]
    if damaged:
        raise OutputError(
            f"{str(folder / damaged[0].name)!r} is damaged or was changed ({damaged[0].text}); see `cellvit verify`, "
            "and put a copy back"
        )
