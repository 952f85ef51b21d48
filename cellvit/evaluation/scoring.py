"""Scores of predictions against ground truth, per image and over all of them.

:func:`evaluate` does all in one call: :func:`score_pairs` scores each image, :func:`pooled_scores` adds them up.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.image_scores import (
    BINARY_SCORES,
    RADII,
    ImageScores,
    ScoreSettings,
    pooled_scores,
    score_nuclei,
    score_pair,
)
from cellvit.evaluation.pairing import Pair, Pairing, check_complete, find_pairs
from cellvit.evaluation.results import group_rows, image_rows, make_folder, write_results
from cellvit.io.detections import read_nuclei
from cellvit.io.tables import Cell
from cellvit.types import Nuclei

__all__ = [
    "BINARY_SCORES",
    "RADII",
    "Evaluation",
    "ImageScores",
    "ScoreSettings",
    "evaluate",
    "pooled_scores",
    "score_nuclei",
    "score_pair",
    "score_pairs",
    "truth_classes",
]

_SHOWN = 20


Source = str | Path | Nuclei
"""Nuclei of one image, or a file or folder that holds some."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all images."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of predictions against ground truth.

    Attributes:
        scores: Scores over all images by name; nan where the images say nothing.
        images: Scores of each image.
        settings: Names of types and thresholds they were made with.
        pairing: Which images were compared, and what has no other side.
        notes: Sentences a reader must know, such as about nuclei that count nowhere.
    """

    scores: dict[str, float]
    images: tuple[ImageScores, ...]
    settings: ScoreSettings
    pairing: Pairing
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        return self.scores[name]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self.scores[name]:.4f}" for name in BINARY_SCORES if name in self.scores)
        return f"Evaluation({len(self.images)} images: {shown})"

    def table(self) -> list[dict[str, Cell]]:
        """Return one row per image: counts and scores, as ``images.csv`` of ``cellvit evaluate`` holds them."""
        return image_rows(self.images)

    def groups(self) -> list[dict[str, Cell]]:
        """Return one row per type and tissue with its scores over all images."""
        return group_rows(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return scores, rows of the images, settings and notes as plain data."""
        return {
            "scores": dict(self.scores),
            "images": self.table(),
            "settings": asdict(self.settings),
            "notes": list(self.notes),
        }


def evaluate(
    predictions: Source | Sequence[Source],
    truth: Source | Sequence[Source],
    *,
    class_names: Sequence[str] = (),
    class_map: Mapping[str, str] | None = None,
    binary: bool = False,
    magnification: int = 40,
    radius: float | None = None,
    iou_threshold: float = 0.5,
    pixel_corners: bool = False,
    split: str | None = None,
    datasets: Sequence[str] | None = None,
    skip_missing: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Score nuclei that any tool found against ground truth, as ``cellvit evaluate`` does.

    Args:
        predictions: A file, a folder, :class:`~cellvit.types.Nuclei`, or a sequence of files and nuclei, one per image.
        truth: The same kinds, or a data folder with ``images/`` and ``labels/`` or ``manifest.csv``. Folders are paired
            by the stems of their files, sequences by their order.
        class_names: Names of the true types by id, background first; empty takes those that the truth states.
        class_map: Names of predicted classes and what each is called among the class names.
        binary: Score outlines only and leave types out.
        magnification: 40 or 20; centroids may be 12 or 6 pixels apart.
        radius: Largest distance of detected centroids in pixels instead.
        iou_threshold: IoU in [0.5, 1) that a matched pair must exceed.
        pixel_corners: Predicted outlines of files that do not say so count pixels from their corners, as QuPath draws.
        split: ``"train"``, ``"val"`` or ``"test"`` of a data folder; None takes all.
        datasets: Names of data sets of a data folder; None takes all.
        skip_missing: Leave out images without a prediction.
        workers: Processes that share the images; 0 uses none. The scores do not depend on it.
        progress: Called after every image with the number of images done and of all images.
        out: Folder for ``scores.json``, ``images.csv`` and ``scores.md``; None writes nothing.

    Raises:
        ConfigError: If settings cannot work or contradict each other.
        DataError: If something does not exist, lacks its other side, or cannot be scored.
        OutputError: If ``out`` cannot be written.
    """
    if magnification not in RADII:
        raise ConfigError(f"magnification {magnification} has no published radius; pass 40, 20, or a radius in pixels")
    if binary and (class_names or class_map):
        raise ConfigError("binary=True leaves types out; give class_names and class_map, or binary, not both")
    if isinstance(predictions, str | Path) and isinstance(truth, str | Path):
        pairing = find_pairs(Path(predictions), Path(truth), split=split, datasets=datasets)
        if not skip_missing:
            check_complete(pairing, pred=Path(predictions))
        same = Path(predictions).samefile(truth)
    else:
        if split is not None or datasets is not None:
            raise ConfigError("split and datasets choose images of a data folder; give its path as truth, or leave out")
        pairing, same = _paired_in_order(_listed(predictions), _listed(truth)), False
    names, numbered = tuple(class_names), True
    if not names and not binary:
        names, numbered = truth_classes(
            [pair.truth for pair in pairing.pairs], images=[pair.truth_image for pair in pairing.pairs]
        )
    settings = ScoreSettings(
        class_names=names,
        numbered=numbered,
        class_map=dict(class_map or {}),
        tissue_names=tuple(sorted({pair.tissue for pair in pairing.pairs if pair.tissue})),
        radius=RADII[magnification] if radius is None else radius,
        iou_threshold=iou_threshold,
        corners=pixel_corners,
    )
    if out is not None:
        make_folder(Path(out))
    images = tuple(score_pairs(pairing.pairs, settings, workers=workers, progress=progress))
    notes = (*_pairing_notes(pairing, same=same), *_file_notes(images), *_image_notes(images))
    notes += tuple(_untyped_notes(images)) if class_names else ()
    found = Evaluation(pooled_scores(images), images, settings, pairing, notes)
    if out is not None:
        inputs = {
            "pred": _plain_source(predictions),
            "truth": _plain_source(truth),
            "split": split,
            "datasets": datasets,
            "without_prediction": pairing.missing,
            "without_truth": pairing.unused,
            "files": {p.name: {"pred": _plain_source(p.pred), "truth": _plain_source(p.truth)} for p in pairing.pairs},
        }
        write_results(Path(out), images, found.scores, settings=settings, inputs=inputs, notes=notes)
    return found


def _plain_source(source: Source | Sequence[Source]) -> str:
    """Return where nuclei come from, as text."""
    named = ["nuclei in memory" if isinstance(one, Nuclei) else str(one) for one in _listed(source)]
    return named[0] if len(named) == 1 else f"{len(named)} images"


def _listed(given: Source | Sequence[Source]) -> list[Source]:
    return [given] if isinstance(given, str | Path | Nuclei) else list(given)


def _paired_in_order(found: Sequence[Source], true: Sequence[Source]) -> Pairing:
    if len(found) != len(true):
        raise ConfigError(f"{len(found)} predictions for {len(true)} truths; give one of each per image, in order")
    sides = [(_in_memory_or_path(one), _in_memory_or_path(other)) for one, other in zip(found, true, strict=True)]
    folders = [side for pair in sides for side in pair if isinstance(side, Path) and side.is_dir()]
    if folders:
        raise ConfigError(f"'{folders[0]}' is a folder among single images; give two folders, or list the files")
    names = [str(side) if isinstance(side, Path) else f"image {i}" for i, (_, side) in enumerate(sides, start=1)]
    return Pairing(tuple(Pair(name, one, other) for name, (one, other) in zip(names, sides, strict=True)), (), ())


def _in_memory_or_path(source: Source) -> Nuclei | Path:
    return source if isinstance(source, Nuclei) else Path(source)


def _pairing_notes(found: Pairing, *, same: bool) -> list[str]:
    notes = []
    if same:
        notes.append("prediction and truth are the same path: every score compares the truth with itself.")
    if found.missing:
        total = len(found.missing) + len(found.pairs)
        notes.append(f"{len(found.missing)} of {total} images have no prediction and are left out.")
    if found.unused:
        notes.append(f"{len(found.unused)} predictions have no truth, such as {found.unused[0]}.")
    return notes


def _image_notes(images: Sequence[ImageScores]) -> list[str]:
    notes = []
    for what, count in (
        ("predicted", sum(image.occluded for image in images)),
        ("true", sum(image.occluded_true for image in images)),
    ):
        if count:
            notes.append(f"{count} {what} outlines lie outside their image or under later ones and count nowhere.")
    if not any(image.typed for image in images):
        return notes
    untyped = sum(image.untyped for image in images)
    silent = [image for image in images if image.typed is False]
    if untyped:
        notes.append(
            f"{untyped} predicted nuclei have no type (type 0): panoptic quality leaves them out of images whose "
            "true types are known, detection counts them."
        )
    if silent:
        count = sum(image.predicted for image in silent)
        notes.append(
            f"{len(silent)} predictions state no types while others do, such as {silent[0].name}: their {count} "
            "nuclei count as type 0."
        )
    return notes


def _file_notes(images: Sequence[ImageScores]) -> list[str]:
    """Return what was not used of the files, the same of several files in one sentence."""
    found: dict[str, dict[str, int]] = {}
    sentences: list[str] = []
    for path, note in (entry for image in images for entry in image.notes):
        if isinstance(note, str):
            sentences.append(f"'{path}': {note}")
            continue
        files = found.setdefault(note.what, {})
        files[path] = files.get(path, 0) + note.count
    more = [f"... and {len(sentences) - _SHOWN} more notes of files."] if len(sentences) > _SHOWN else []
    counted = [f"{sum(files.values())} {what} ({_such_as(files)})." for what, files in found.items()]
    return [*counted, *sentences[:_SHOWN], *more]


def _such_as(files: Mapping[str, int]) -> str:
    first = next(iter(files))
    return f"'{first}'" if len(files) == 1 else f"{len(files)} files, such as '{first}'"


def _untyped_notes(images: Sequence[ImageScores]) -> list[str]:
    """Return what the names of types cannot be used for."""
    notes = []
    untyped = [image.name for image in images if image.true_typed is False]
    if untyped:
        notes.append(
            f"class names are given, but the truth of {len(untyped)} of {len(images)} images states no types, such as "
            f"{untyped[0]}: scores by type leave them out."
        )
    silent = [image for image in images if image.typed is False]
    if silent and not any(image.typed for image in images):
        notes.append(
            f"class names are given, but no prediction states types, such as that of {silent[0].name}: only outlines "
            "are scored."
        )
    return notes


def score_pairs(
    pairs: Sequence[Pair],
    settings: ScoreSettings,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImageScores]:
    """Score all images.

    Where some predictions state types and others do not, the nuclei of the others are of type 0.

    Args:
        pairs: The images.
        settings: Names of types and thresholds that scores are made with.
        workers: Processes that share the images; 0 uses none. The scores do not depend on it.
        progress: Called after every image with the number of images done and of all images.

    Raises:
        DataError: If any image cannot be scored; one error names them all.
    """
    if not pairs:
        raise DataError("no images to score; check the folders")
    job = partial(score_pair, settings=settings)
    results: list[ImageScores | str] = []
    for result in _each(job, pairs, workers):
        results.append(result)
        if progress is not None:
            progress(len(results), len(pairs))
    scored = [result for result in results if isinstance(result, ImageScores)]
    problems = [result for result in results if isinstance(result, str)]
    untyped = [i for i, image in enumerate(scored) if image.typed is False]
    if untyped and not problems and any(image.typed for image in scored):
        again = list(_each(partial(job, others_typed=True), [pairs[i] for i in untyped], workers))
        problems = [result for result in again if isinstance(result, str)]
        for i, result in zip(untyped, again, strict=True):
            scored[i] = result if isinstance(result, ImageScores) else scored[i]
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = "\n  ".join([*problems[:_SHOWN], *more])
        raise DataError(f"{len(problems)} of {len(pairs)} images cannot be scored, nothing was written:\n  {lines}")
    return scored


def truth_classes(
    sources: Iterable[Path | Nuclei], *, images: Iterable[str | None] = repeat(None)
) -> tuple[tuple[str, ...], bool]:
    """Find the classes of a ground truth for which no names are given.

    Args:
        sources: Files, of which one that cannot be read is left to the scoring to report, or nuclei.
        images: Which image of each file, where files hold several.

    Returns:
        Names by id, background first, empty if no file states types; and whether numbers stand for them. Names in the
        files come in the order of their appearance; types that are numbers only are called ``Type k``.
    """
    names: dict[str, str] = {}
    highest = 0
    for source, image in zip(sources, images, strict=False):
        try:
            stated = read_nuclei(source, image=image)
        except (ConfigError, DataError):
            continue
        if stated.types is None or stated.types.max() < 1:
            continue
        if stated.names is None:
            highest = max(highest, int(stated.types.max()))
        for name in (stated.names or ())[1:]:
            names.setdefault(name.casefold(), name)
    if names:
        return ("Background", *names.values()), False
    return (("Background", *(f"Type {i}" for i in range(1, highest + 1))) if highest else ()), True


def _each(job: Callable[[Pair], ImageScores | str], pairs: Sequence[Pair], workers: int) -> Iterator[ImageScores | str]:
    if workers < 1:
        yield from map(job, pairs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, pairs)
