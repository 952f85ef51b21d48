"""From PanNuke's folds as distributed to the compact form: checked, written fold by fold, continued when stopped."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cellvit.data.pannuke.convert import ACCEPTABLE, SHARED_IMAGES, FoldConverter, FoldSummary, ImageOwners, blocks
from cellvit.data.pannuke.source import FoldFiles, SourceFold, SourceNames, find_folds, open_folds, read_names
from cellvit.data.pannuke.storage import (
    PREPARED,
    PatchDataset,
    earlier_fold,
    finish_fold,
    finished_fold,
    finished_numbers,
    fold_stream,
    write_dataset,
)
from cellvit.errors import ConfigError, OutputError
from cellvit.io.labels import raise_problems
from cellvit.io.provenance import file_state

Report = Callable[[str, int, int], None]
"""Takes what was done last, and how many patches of how many are done."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Prepared:
    """Result of a preparation.

    Attributes:
        out: The prepared folder.
        dataset: What it says of itself.
        folds: What each fold holds.
        kept: Numbers of the folds that an earlier run had finished.
    """

    out: Path
    dataset: PatchDataset
    folds: tuple[FoldSummary, ...]
    kept: tuple[int, ...]


@dataclass
class _Job:
    """What all folds of one preparation share."""

    out: Path
    names: SourceNames
    dataset: PatchDataset
    accept: frozenset[str]
    report: Report
    total: int = 0
    done: int = 0
    owners: ImageOwners = field(default_factory=ImageOwners)

    def advance(self, what: str, patches: int) -> None:
        self.done += patches
        self.report(what, self.done, self.total)


_MOST_ENLARGED, _MOST_REDUCED = 4, 8  # beyond, nuclei have no shape left to learn


class _FaultyError(Exception):
    """Ends the writing of a fold that has faults, so that its files are removed."""


def prepared_name(mpp: float, *, source_mpp: float) -> str:
    """Return the name of the folder that a data set is prepared into.

    Example:
        >>> prepared_name(0.5, source_mpp=0.25), prepared_name(0.25, source_mpp=0.25)
        ('prepared-mpp0.5', 'prepared')
    """
    return PREPARED if mpp == source_mpp else f"{PREPARED}-mpp{mpp:g}"


def prepare_pannuke(
    root: Path,
    out: Path | None = None,
    *,
    mpp: float | None = None,
    folds: Sequence[int] | None = None,
    accept: Sequence[str] = (),
    report: Report = silent,
) -> Prepared:
    """Check folds in PanNuke's layout and write their compact form.

    Everything is read once and in blocks, so memory does not grow with the data. A fold without faults is kept even
    if another one has some; a run that was stopped is continued by the same call and ends with the same bytes. Folds
    that an earlier call finished in ``out`` stay part of the data set, and their images are held against the new ones.
    Their source may be gone; where it is still there, it must be unchanged.

    Args:
        root: Folder of the folds, as found by :func:`cellvit.data.pannuke.source.find_folds`.
        out: Folder to write; None is ``prepared`` within ``root``, or ``prepared-mpp<mpp>`` for another resolution.
        mpp: Microns per pixel of the result; None keeps that of the source.
        folds: Numbers of the folds to prepare, beside those that ``out`` holds already; None takes all, at least 1,
            2 and 3.
        accept: Names of :data:`cellvit.data.pannuke.convert.ACCEPTABLE` faults that are no errors.
        report: Called after each block.

    Raises:
        DataError: If something is wrong with the data; one error lists everything in all folds.
        ConfigError: If a setting cannot work.
        OutputError: If the folder cannot be written, or holds a fold made otherwise, wanted this time or not.
    """
    names = read_names(root)
    mpp = names.mpp if mpp is None else mpp
    if not names.mpp / _MOST_ENLARGED <= mpp <= names.mpp * _MOST_REDUCED:
        raise ConfigError(
            f"mpp is {mpp}; the data have {names.mpp} microns per pixel, give a value from "
            f"{names.mpp / _MOST_ENLARGED:g} to {names.mpp * _MOST_REDUCED:g}"
        )
    unknown = sorted(set(accept) - set(ACCEPTABLE))
    if unknown:
        raise ConfigError(f"{unknown} cannot be accepted; choose from {', '.join(ACCEPTABLE)}")
    out = root / prepared_name(mpp, source_mpp=names.mpp) if out is None else out
    files, problems = _find(root, out, folds)
    _check_out(out, root, files)
    opened, faults = open_folds(files, root=root, names=names)
    problems += faults
    if not opened:
        raise_problems(problems, where=root)
    without_source = sorted(set(finished_numbers(out)) - {one.number for one in files})
    dataset = _describe(opened, names, mpp, without_source)
    job = _Job(out, names, dataset, frozenset(accept), report)
    stored = {fold.number: known for fold in opened if (known := _finished(fold, job)) is not None}
    for number in without_source:
        stored[number] = earlier_fold(out, number, made_with=_settings(job), dataset=dataset)
    pending = [fold for fold in opened if fold.number not in stored]
    job.total = sum(known["summary"]["patches"] for known in stored.values()) + sum(map(len, pending))
    results = {number: _take_over(stored[number], job) for number in sorted(stored)}
    results |= {fold.number: _prepare_fold(fold, job) for fold in pending}
    for number in dataset.folds:
        problems += results[number][1]
    raise_problems(problems, where=root)
    summaries = tuple(results[number][0] for number in dataset.folds)
    accepted = sorted({name for summary in summaries for name in summary.accepted})
    dataset = replace(dataset, about={**dataset.about, "accepted": accepted})
    write_dataset(out, dataset)
    return Prepared(out, dataset, summaries, tuple(sorted(stored)))


def _find(root: Path, out: Path, folds: Sequence[int] | None) -> tuple[list[FoldFiles], list[str]]:
    """Return the folds to prepare and those prepared before whose source is still there, and what is wrong."""
    files, problems = find_folds(root, numbers=folds)
    if folds is None:
        return files, problems
    before = [number for number in finished_numbers(out) if number not in folds]
    return sorted(files + find_folds(root, numbers=before)[0], key=lambda one: one.number), problems


def _check_out(out: Path, root: Path, files: Sequence[FoldFiles]) -> None:
    """Refuse a folder in which prepared folds would replace or mix with the source."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"the folder to write, '{out}', is a file; choose another out=FOLDER")
    target = out.resolve()
    sources = [path.resolve().parent for one in files for path in one.paths.values()]
    if target == root.resolve() or any(source == target or source.is_relative_to(target) for source in sources):
        raise ConfigError(f"the folder to write, '{out}', holds the source; choose another, as '{root / PREPARED}'")
    if any(target.is_relative_to(source) for source in sources):
        raise ConfigError(f"the folder to write, '{out}', lies within a fold of the source; choose another")


def _describe(opened: Sequence[SourceFold], names: SourceNames, mpp: float, more: Sequence[int]) -> PatchDataset:
    before = opened[0].size
    size = max(1, round(before * names.mpp / mpp))
    return PatchDataset(
        name=names.name,
        mpp=names.mpp * before / size,
        class_names=names.class_names,
        tissue_names=names.tissue_names,
        folds=tuple(sorted({*more, *(fold.number for fold in opened)})),
        patch_size=size,
        about={**names.about, "source_mpp": names.mpp, "source_patch_size": before},
    )


def _settings(job: _Job) -> dict[str, Any]:
    return {"mpp": job.dataset.mpp, "class_names": list(job.names.class_names)}


def _made_with(fold: SourceFold, job: _Job) -> dict[str, Any]:
    """Return what decides the bytes of a prepared fold."""
    made_with = _settings(job)
    for kind, path in fold.files.paths.items():
        made_with[kind] = {"file": fold.label(kind), **file_state(path)}
    cut_from = hashlib.blake2b("\n".join(fold.sources).encode(), digest_size=16).hexdigest()
    return {**made_with, "sources": cut_from}


def _finished(fold: SourceFold, job: _Job) -> dict[str, Any] | None:
    return finished_fold(job.out, fold.number, made_with=_made_with(fold, job), dataset=job.dataset)


def _take_over(known: dict[str, Any], job: _Job) -> tuple[FoldSummary, list[str]]:
    """Return the summary of a finished fold, and what is wrong with it unless it is accepted this time too."""
    summary = FoldSummary(**known["summary"])
    job.advance(f"fold {summary.number} is finished", summary.patches)
    images, masks = (known["made_with"][kind]["file"] for kind in ("images", "masks"))
    problems = [
        f"{masks}: accepted before, {count} patch(es): {ACCEPTABLE[name]} (accept=[{name!r}] allows it)"
        for name, count in summary.accepted.items()
        if name not in job.accept
    ]
    return summary, problems + _share(images, known["digests"], summary, job)


def _prepare_fold(fold: SourceFold, job: _Job) -> tuple[FoldSummary, list[str]]:
    """Write one fold; return its summary and what is wrong with it. With faults nothing is left behind."""
    size = job.dataset.patch_size
    converter = FoldConverter(fold, names=job.names, size=size)
    problems: list[str] = []
    stream = fold_stream(job.out, fold.number, shape=(len(fold), size), class_names=job.names.class_names)
    with suppress(_FaultyError), stream as append:
        for block in blocks(fold):
            done = converter.convert(block)
            append(done.images, done.instance_maps, done.type_maps, done.rows)
            job.advance(f"fold {fold.number}", len(done.rows))
        problems = converter.problems(job.accept)
        stored = asdict(converter.summary)
        problems += _share(fold.label("images"), converter.digests, converter.summary, job)
        if problems:
            raise _FaultyError
    if not problems:
        made_from = {"made_with": _made_with(fold, job), "summary": stored, "digests": converter.digests}
        finish_fold(job.out, fold.number, made_from)
    return converter.summary, problems


def _share(label: str, digests: Sequence[str], summary: FoldSummary, job: _Job) -> list[str]:
    """Return a line for each image that another fold has too, or note their number where that is accepted."""
    shared = job.owners.add(digests, summary.number)
    if shared and SHARED_IMAGES in job.accept:
        summary.accepted = {**summary.accepted, SHARED_IMAGES: len(shared)}
        return []
    return [
        f"{label}: patch {index} has the same image as {other} (accept=[{SHARED_IMAGES!r}] allows it)"
        for index, other in shared
    ]
