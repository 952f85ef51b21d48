"""Taking labels in: annotations become rows of the table beside the nuclei of a slide."""

import getpass
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import NucleiClasses, type_name
from cellvit.errors import ConfigError
from cellvit.io.annotations.base import Unit, spelling_notes
from cellvit.io.nuclei import stream_nuclei
from cellvit.io.provenance import mpp_of
from cellvit.io.stream import NucleiStream
from cellvit.io.tables import write_csv
from cellvit.labels.diagnosis import check_frame
from cellvit.labels.match import RADIUS_PX, RADIUS_UM, Matches, labels_path, match, places_of, with_present_nuclei
from cellvit.labels.reading import GivenLabels, LabelSettings, Objects, read_given
from cellvit.labels.table import LABELS_FILE, UNMATCHED, Labels, nuclei_digest, read_labels, write_labels

LEFT_OUT_FILE = "labels-left-out.csv"
"""Beside the table of labels: what the last import left out, and why."""

NO_NUCLEUS, OFF_SLIDE, CONTRADICTED = "no nucleus there", "off the slide", "the nucleus is called two things"
_MANY, _SAME = 20, 0.9  # detections, and the share of them, that make an echo


@dataclass(frozen=True)
class LeftOut:
    """A label that was not taken in.

    Attributes:
        source: Name of the file.
        x: Where it stands, level-0 pixels.
        y: As ``x``.
        class_name: Its class.
        reason: Why.
        nucleus: Row of the nucleus, -1 for none.
    """

    source: str
    x: float
    y: float
    class_name: str
    reason: str
    nucleus: int = UNMATCHED


@dataclass(frozen=True)
class ImportedLabels:
    """What an import did.

    Attributes:
        path: The table of labels.
        labels: All that it holds now.
        added: How many were added.
        known: How many nuclei had the same label of the same person before.
        changed: How many nuclei had another class before.
        outranked: How many nuclei have a label of their own that differs from that of the area around them, and keep
            it.
        left_out: What was not taken in; it is listed in :data:`LEFT_OUT_FILE` beside the table.
        radius: Pixels from an outline within which a label beside it meant a nucleus.
        failed: Files that could not be used, and why.
        notes: What the user should know; sentences.
    """

    path: Path
    labels: Labels
    added: int
    known: int
    changed: int
    outranked: int
    left_out: tuple[LeftOut, ...]
    radius: float
    failed: Mapping[str, str]
    notes: tuple[str, ...]

    def reasons(self) -> dict[str, int]:
        """Return how many labels were left out, by reason."""
        return dict(Counter(one.reason for one in self.left_out).most_common())


def import_labels(
    files: Sequence[str | Path],
    nuclei: str | Path,
    *,
    radius: float | None = None,
    radius_px: float | None = None,
    who: str | None = None,
    class_map: Mapping[str, str] | None = None,
    class_name: str = "",
    objects: Objects = "auto",
    unit: Unit | None = None,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    mpp: float | None = None,
) -> ImportedLabels:
    """Match annotations to the nuclei of a slide, and keep them as labels beside these.

    A point means the nucleus it lies in, else the nearest within the radius; so does a detection, by its middle. An
    area means all nuclei whose centroid lies inside. What names one nucleus outranks an area around many. A nucleus
    that files call two things is left out and listed, as is a label without a nucleus or off the slide.

    Args:
        files: See :func:`cellvit.io.annotations.base.read_annotations`. One that cannot be used is told, the others
            are taken in.
        nuclei: Folder of a slide's results, or a file of nuclei.
        radius: Micrometres from an outline within which a label beside it means it; None is 2, where the resolution is
            known.
        radius_px: The same in pixels; None is 4 where the resolution is not known.
        who: Who gave the labels; None is the name of the user.
        class_map: Names in the files and what each is to be called; the empty name withdraws labels.
        class_name: Class of what states none.
        objects: Which objects of QuPath count: ``"drawn"`` by people, ``"found"`` by programs, ``"all"``; ``"auto"``
            are those drawn, where some have a class, else those found.
        unit: Of the coordinates; None: as the files say, else pixels. Stating a frame, also by ``scale`` or ``shift``,
            takes labels in that would lie on more nuclei in another.
        scale: Coordinates are multiplied by it, as for files that were made on a smaller level of the slide.
        shift: ``(x, y)`` level-0 pixels, added after that.
        mpp: Micrometres per pixel, where the nuclei do not state them.

    Raises:
        ConfigError: If a setting cannot work.
        DataError: If no file holds a label, no label meets a nucleus, most would in another frame and none is stated,
            or the nuclei cannot be read.
        OutputError: If a file cannot be written.
    """
    path, stream = labels_path(Path(nuclei)), stream_nuclei(nuclei, embedding=False)
    facts: Mapping[str, Any] = getattr(stream, "metadata", {})
    mpp = mpp if mpp is not None else mpp_of(facts)
    reach = _radius(radius, radius_px, mpp)
    image = Path(str(facts.get("image", ""))).stem
    settings = LabelSettings(class_map or {}, class_name, objects, unit, scale, shift, image, mpp)
    given = read_given(map(Path, files), settings)
    found = match(given.geometry, stream, radius=reach, single=given.single)
    left_out = _missed(given, found, facts)
    stated = unit is not None or scale != 1 or any(shift)
    notes = [*given.notes, *check_frame(given.geometry, found, mpp=mpp, facts=facts, stated=stated)]
    notes += _echo(given, found, stream.classes)
    new, conflicts, outranked = _decided(given, found)
    before, rematched = _labels_before(path, stream, new.matched_to)
    stamp = np.datetime64(datetime.now(UTC).replace(tzinfo=None, microsecond=0), "s")
    name = user_name() if who is None else who
    new = replace(new, who=np.full(len(new), name, object), when=np.full(len(new), stamp))
    kept, changed = _news(new, before)
    labels = replace(Labels.concatenate([before, new[kept]]), matched_to=new.matched_to)
    _list(path.with_name(path.name.replace(LABELS_FILE, LEFT_OUT_FILE)), [*left_out, *conflicts])
    write_labels(path, labels)
    classes = () if stream.classes is None else stream.classes.names
    return ImportedLabels(
        path=path,
        labels=labels,
        added=int(kept.sum()),
        known=int((~kept).sum()),
        changed=changed,
        outranked=outranked,
        left_out=(*left_out, *conflicts),
        radius=reach,
        failed=given.failed,
        notes=(*notes, *rematched, *spelling_notes([*classes, *labels.current().class_name.tolist()])),
    )


def _radius(radius: float | None, radius_px: float | None, mpp: float | None) -> float:
    """Return the radius in pixels."""
    for name, value in (("radius", radius), ("radius_px", radius_px)):
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"{name}={value} is no distance; give 0 or more")
    if radius_px is not None:
        return radius_px
    if mpp is None and radius is not None:
        raise ConfigError(f"radius={radius} is in micrometres, and the nuclei state no resolution; pass radius_px=4")
    return RADIUS_PX if mpp is None else (RADIUS_UM if radius is None else radius) / mpp


def user_name() -> str:
    """Return the name of the user, empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # as in a container that knows no names
        return ""


def _missed(given: GivenLabels, found: Matches, facts: Mapping[str, Any]) -> list[LeftOut]:
    """Return the labels that meet no nucleus."""
    rows = np.setdiff1d(np.arange(len(given.geometry)), found.geometry)
    places = places_of(given.geometry[rows])
    size = (facts.get("width") or np.inf, facts.get("height") or np.inf)
    off = np.any((places < 0) | (places > size), axis=1)
    columns = zip(given.source[rows], places.tolist(), given.class_name[rows], off.tolist(), strict=True)
    return [LeftOut(source, x, y, kind, OFF_SLIDE if out else NO_NUCLEUS) for source, (x, y), kind, out in columns]


def _echo(given: GivenLabels, found: Matches, classes: NucleiClasses | None) -> list[str]:
    """Return what to say of detections that repeat the types of the nuclei, from which a model would learn itself."""
    rows = np.flatnonzero(given.single[found.geometry])
    names = np.array([type_name(classes, kind) or "" for kind in range(int(found.type.max(initial=0)) + 1)], object)
    same = names[found.type[found.nucleus[rows]]] == given.class_name[found.geometry[rows]]
    if len(rows) < _MANY or same.mean() < _SAME:
        return []
    return [
        f"{int(same.sum()):,} of {len(rows):,} detections have the type that the nuclei have already: are they labels "
        "of people, or what the model said?"
    ]


def _labels_before(path: Path, stream: NucleiStream, digest: str) -> tuple[Labels, tuple[str, ...]]:
    """Return the labels that there are, matched to the present nuclei, and what to say of it."""
    if not path.exists():
        return Labels.empty(), ()
    labels, note = with_present_nuclei(read_labels(path), stream, digest=digest)
    return labels, (note,) if note else ()


def _decided(given: GivenLabels, found: Matches) -> tuple[Labels, list[LeftOut], int]:
    """Return one label per nucleus, those that contradict each other, and how many areas were outranked."""
    names = given.class_name[found.geometry]
    _, code = np.unique(names.astype(str), return_inverse=True)
    own = np.flatnonzero(~found.around)
    has_own = np.isin(found.nucleus, found.nucleus[own])
    pairs = found.nucleus * (int(code.max(initial=0)) + 1) + code
    kept = np.flatnonzero(~found.around | ~has_own)
    differs = found.around & has_own & ~np.isin(pairs, pairs[own])
    _, first = np.unique(pairs[kept], return_index=True)  # a class that is said twice counts once
    rows = kept[first]
    nuclei, times = np.unique(found.nucleus[rows], return_counts=True)
    contradicted = np.isin(found.nucleus[rows], nuclei[times > 1])
    conflicts = [
        LeftOut(
            source=given.source[found.geometry[row]],
            x=float(found.place[row, 0]),
            y=float(found.place[row, 1]),
            class_name=str(names[row]),
            reason=CONTRADICTED,
            nucleus=int(found.nucleus[row]),
        )
        for row in rows[contradicted].tolist()
    ]
    rows = np.sort(rows[~contradicted])
    labels = Labels.of(
        nucleus=found.nucleus[rows],
        x=found.place[rows, 0],
        y=found.place[rows, 1],
        class_name=names[rows],
        matched_to=nuclei_digest(found.centroid),
    )
    outranked = len(np.unique(found.nucleus[differs]))
    return replace(labels, source=given.source[found.geometry[rows]]), conflicts, outranked


def _news(new: Labels, before: Labels) -> tuple[NDArray[np.bool_], int]:
    """Return which labels say something new ``(N,)``, and how many nuclei had another class before."""
    current = before.current()
    at = np.searchsorted(current.nucleus, new.nucleus).clip(0, max(len(current) - 1, 0))
    if not len(current):
        return new.class_name != "", 0
    had = current.nucleus[at] == new.nucleus
    same = had & (current.class_name[at] == new.class_name)
    useless = (same & (current.who[at] == new.who)) | (~had & (new.class_name == ""))
    return ~useless, int((had & ~same).sum())


def _list(path: Path, left_out: Sequence[LeftOut]) -> None:
    """Write what was left out; without any, the list of an earlier import goes."""
    if left_out:
        write_csv(path, [asdict(one) for one in left_out])
    else:
        path.unlink(missing_ok=True)
