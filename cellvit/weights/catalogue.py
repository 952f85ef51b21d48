"""Published models and encoder weights as data: size, cost, classes, resolution, licence."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from cellvit.errors import UnknownPluginError
from cellvit.weights.licences import Licence, announce, find_licence, model_licence

MODEL = "model"
ENCODER_WEIGHTS = "encoder weights"
BUNDLED = Path(__file__).parent
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Entry:
    """A published model, or published weights of an encoder.

    Attributes:
        name: What it is asked for by; of encoder weights, the registered name of the encoder they are for.
        kind: :data:`MODEL`, ready to find nuclei, or :data:`ENCODER_WEIGHTS`, to start a training with.
        title: What it is.
        encoder: Registered name of its encoder.
        parameters: Of the model, or of the encoder.
        gflop: Floating-point operations, in 10^9, of one 1024 px tile, a multiply-add counted as two: the whole
            network, for encoder weights with the published decoder and heads of 6 nucleus and 19 tissue types. None
            where nobody counted.
        classes: Names of the nucleus types, background first; empty for encoder weights.
        mpp: Microns per pixel it was trained at; None where several, none, or none stated.
        licence: Its licence.
        terms: What else is stated about its use.
        files: Names of its file; of a hub repository any one of them is enough.
        hub: Identifier of its hub repository, or None.
        source: Where it is published.
        citation: Its publication.
        folder: Folder that holds it, for a model folder; None for a file of others.
    """

    name: str
    kind: str
    title: str
    encoder: str
    parameters: int
    gflop: float | None
    classes: tuple[str, ...]
    mpp: float | None
    licence: Licence
    terms: str
    files: tuple[str, ...]
    hub: str | None
    source: str
    citation: str
    folder: Path | None = None


def entries() -> tuple[Entry, ...]:
    """Return everything there is: bundled models, released models, encoder weights."""
    return (*_bundled(), *_published())


def by_name(name: str) -> Entry:
    """Return an entry.

    Args:
        name: Its name, its file's name or its hub repository in any case, or the path of a model folder.

    Raises:
        UnknownPluginError: If there is none; the message lists close matches and all names.
    """
    known = entries()
    for entry in known:
        if name.casefold() in {label.casefold() for label in _labels(entry)}:
            return entry
    if (Path(name) / "config.json").is_file():
        return _of_folder(Path(name))
    spellings = {label.casefold(): entry.name for entry in known for label in _labels(entry)}
    close = dict.fromkeys(spellings[match] for match in get_close_matches(name.casefold(), spellings, n=3))
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise UnknownPluginError(
        f"no model and no weights {name!r}, and no model folder; {hint}known: {', '.join(e.name for e in known)}"
    )


def by_file(path: str | Path) -> Entry | None:
    """Return the published entry that a file is named after, or None.

    Its content is not looked at: hashing gigabytes at every start would cost more than the notice is worth. It counts
    a published file name, the entry's name with a usual suffix, and for the general names of hub files the folder:
    a hub cache (``models--MahmoodLab--UNI``) or one that has the name of the entry or of its repository.

    Args:
        path: It need not exist.

    Example:
        >>> by_file("/data/weights/sam_vit_h_4b8939.pth").name
        'sam-h'
        >>> by_file("/data/weights/UNI/pytorch_model.bin").name
        'uni'
    """
    path = Path(path)
    name = path.name.casefold()
    folders = [part.casefold() for part in path.parts[:-1]]
    for entry in _published():
        files = {file.casefold() for file in entry.files}
        own = {f"{entry.name}{suffix}".casefold() for suffix in SUFFIXES}
        repository = entry.hub or ""
        cached = f"models--{repository.replace('/', '--')}".casefold()
        parents = {entry.name.casefold(), repository.rpartition("/")[2].casefold()}
        if name in own or (name in files and (not entry.hub or cached in folders or parents & set(folders[-1:]))):
            return entry
    return None


def by_hub(repository: str) -> Entry | None:
    """Return the entry of a hub repository, or None.

    Args:
        repository: Such as ``MahmoodLab/UNI``; a prefix ``hf-hub:`` or ``hf_hub:`` is left out.
    """
    wanted = repository.rpartition(":")[2].casefold()
    return next((entry for entry in _published() if entry.hub and entry.hub.casefold() == wanted), None)


def announce_file(path: str | Path) -> None:
    """Announce the licence of the entry that a file is named after; see :func:`cellvit.weights.licences.announce`.

    Args:
        path: See :func:`by_file`; a file of another name is silent.
    """
    entry = by_file(path)
    if entry is not None:
        announce(entry.name, entry.licence)


def announce_hub(repository: str) -> None:
    """Announce the licence of a hub repository's weights; see :func:`cellvit.weights.licences.announce`.

    Args:
        repository: See :func:`by_hub`; one that is not listed is silent.
    """
    entry = by_hub(repository)
    if entry is not None:
        announce(entry.name, entry.licence)


def _labels(entry: Entry) -> list[str]:
    files = [] if entry.hub or entry.folder else [*entry.files, *(Path(file).stem for file in entry.files)]
    return [entry.name, *files, *([entry.hub] if entry.hub else [])]


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return document


@lru_cache(maxsize=1)
def _published() -> tuple[Entry, ...]:
    rows = []
    for row in _document()["entries"]:
        classes = tuple(_document()["classes"].get(row["classes"], ()))
        changed = {"classes": classes, "licence": find_licence(row["licence"]), "files": tuple(row["files"])}
        rows.append(Entry(**(row | changed)))
    return tuple(rows)


def _bundled() -> Iterator[Entry]:
    return (_of_folder(path.parent) for path in sorted(BUNDLED.glob("*/config.json")))


def _of_folder(folder: Path) -> Entry:
    """Return the entry of a model folder, from its configuration and the head of its weight file."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings, file = config["model"], str(config["weights"]["file"])
        about = dict(settings.get("about") or {})
        encoder = settings["encoder"]
        return Entry(
            name=folder.name,
            kind=MODEL,
            title=str(about.get("origin") or "a model folder"),
            encoder=str(encoder["class_path"] if isinstance(encoder, Mapping) else encoder),
            parameters=_count_parameters(folder / file),
            gflop=_document()["gflop_of_bundled"].get(folder.name) if folder.parent == BUNDLED else None,
            classes=tuple(settings["class_names"]),
            mpp=settings["mpp"],
            licence=model_licence(about) or Licence("", "not stated", commercial=False),
            terms="",
            files=(file,),
            hub=None,
            source="comes with the package" if folder.parent == BUNDLED else str(folder),
            citation=str(about.get("cite") or ""),
            folder=folder,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UnknownPluginError(f"{str(folder)!r} is no cellvit model folder ({error!r}); export it again") from error


def _count_parameters(path: Path) -> int:
    """Return how many numbers the tensors of a safetensors file hold, statistics of batch norms left out."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        head = json.loads(file.read(length))
    return sum(math.prod(t["shape"]) for name, t in head.items() if "shape" in t and not name.endswith(BUFFERS))
