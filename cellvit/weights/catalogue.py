"""Published models and encoder weights as data: size, cost, classes, resolution, licence."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from cellvit.errors import UnknownPluginError, WeightsError, did_you_mean
from cellvit.io.schema import checked
from cellvit.weights.licences import Licence, announce, find_licence, model_licence

MODEL = "model"
ENCODER_WEIGHTS = "encoder weights"
BUNDLED = Path(__file__).parent
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weight file in a hub repository, the preferred one first."""

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
MAX_HEAD = 100_000_000
"""Bytes of the head of a safetensors file, as the format itself limits them."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

CATALOGUE = "catalogue.json of cellvit"
REINSTALL = "reinstall cellvit-lightning"
EXPORT = "export it again"

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class FoundationModel:
    """A published network of a hub repository, and how timm builds it.

    Attributes:
        title: Its name in print.
        architecture: Architecture of timm.
        repo: Repository on the Hugging Face hub.
        parameters: Number of parameters in millions.
        licence: Licence of the weights, as the model card states it.
        gated: Whether the hub asks to log in and to accept terms.
        statistics: Mean and standard deviation of R, G, B in [0, 1].
        arguments: Arguments of the architecture.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    title: str
    architecture: str
    repo: str
    parameters: int
    licence: str
    gated: bool = True
    statistics: tuple[Triple, Triple] = IMAGENET
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A published model, or published weights of an encoder.

    Attributes:
        name: What it is asked for by; of encoder weights, the registered name of the encoder they are for.
        kind: :data:`MODEL`, ready to find nuclei, or :data:`ENCODER_WEIGHTS`, to start a training with.
        title: What it is.
        encoder: Registered name of its encoder.
        parameters: Number of parameters of the model, or of the encoder.
        gflop: Floating-point operations, in 10^9, of one 1024 px tile, a multiply-add counted as two: the whole
            network, for encoder weights with the published decoder and heads of 6 nucleus and 19 tissue types. None
            where nobody counted.
        mpp: Microns per pixel it was trained at; None where several, none, or none stated.
        licence: Its licence.
        source: Where it is published.
        citation: Its publication.
        terms: What else is stated about its use.
        classes: Names of the nucleus types, background first; empty for encoder weights.
        files: Names of its file; of a hub repository any one of them is enough.
        hub: Identifier of its hub repository, or None.
        folder: Folder that holds it, for a model folder; None for a file of others.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    name: str
    kind: str
    title: str
    encoder: str
    parameters: int
    gflop: float | None
    mpp: float | None
    licence: Licence
    source: str
    citation: str
    terms: str = ""
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = HUB_FILES
    hub: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What the catalogue shows of a model's settings; an encoder is a name, or has its name as ``class_path``."""

    encoder: str | Mapping[str, Any]
    class_names: tuple[str, ...]
    mpp: float | None
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """``config.json`` of a model folder; of the weights it states ``file`` and ``sha256``."""

    model: ModelFacts
    weights: Mapping[str, str]


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
    hint = did_you_mean(name, {label: entry.name for entry in known for label in _labels(entry)})
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
        path: The file, which need not exist; one of a name that :func:`by_file` does not know is silent.
    """
    _announce(by_file(path))


def announce_hub(repository: str) -> None:
    """Announce the licence of a hub repository's weights; see :func:`cellvit.weights.licences.announce`.

    Args:
        repository: ``owner/name`` with or without prefix; one that is not listed is silent.
    """
    _announce(by_hub(repository))


def foundation_models() -> dict[str, FoundationModel]:
    """Return the published networks that timm builds, by the name of their encoder."""
    stated = {}
    for row in (row for row in _document()["entries"] if "network" in row):
        facts = {"repo": row["hub"], "parameters": round(row["parameters"] / 1e6), "licence": row["licence"]}
        stated[row["name"]] = row["network"] | facts
    return checked(stated, dict[str, FoundationModel], what=CATALOGUE, advice=REINSTALL)


def published_files() -> str:
    """Return in words which published file fits which encoder, for errors; files of hub repositories left out.

    Example:
        >>> published_files().split("; ")[0]
        'vit256_small_dino.pth of HIPT fits vit-256'
    """
    alone = [entry for entry in _published() if entry.kind == ENCODER_WEIGHTS and not entry.hub]
    return "; ".join(f"{e.files[0]} of {_project(e)} fits {e.encoder}" for e in alone)


def _announce(entry: Entry | None) -> None:
    if entry is not None:
        announce(entry.name, entry.licence)


def _project(entry: Entry) -> str:
    """Return the name of the repository that the source states first: ``repository owner/NAME, ...``."""
    return entry.source.partition(",")[0].rpartition("/")[2]


def _labels(entry: Entry) -> list[str]:
    files = [] if entry.hub or entry.folder else [*entry.files, *(Path(file).stem for file in entry.files)]
    return [entry.name, *files, *([entry.hub] if entry.hub else [])]


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return document


@lru_cache(maxsize=1)
def _published() -> tuple[Entry, ...]:
    document = _document()
    rows = []
    for row in document["entries"]:
        stated = {name: value for name, value in row.items() if name != "network"}
        classes = document["classes"][row["classes"]] if "classes" in row else ()
        rows.append(stated | {"classes": classes, "licence": find_licence(row["licence"])})
    return checked(rows, tuple[Entry, ...], what=CATALOGUE, advice=REINSTALL)


def _bundled() -> Iterator[Entry]:
    return (_of_folder(path.parent) for path in sorted(BUNDLED.glob("*/config.json")))


def _of_folder(folder: Path) -> Entry:
    """Return the entry of a model folder, from its configuration and the head of its weight file."""
    what, is_bundled = f"{str(folder)!r} is no cellvit model folder", folder.parent == BUNDLED
    try:
        text = (folder / "config.json").read_bytes()
        config = checked(text, ModelConfig, what=f"{what}, config.json", advice=EXPORT, error=UnknownPluginError)
        model, file = config.model, config.weights["file"]
        encoder = model.encoder if isinstance(model.encoder, str) else str(model.encoder["class_path"])
        parameters = _count_parameters(file_inside(folder, file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UnknownPluginError(f"{what} ({error!r}); {EXPORT}") from error
    about = model.about or {}
    return Entry(
        name=folder.name,
        kind=MODEL,
        title=str(about.get("origin") or "a model folder"),
        encoder=encoder,
        parameters=parameters,
        gflop=_document()["gflop_of_bundled"].get(folder.name) if is_bundled else None,
        mpp=model.mpp,
        licence=model_licence(about) or Licence("", "not stated", commercial=False),
        source="comes with the package" if is_bundled else str(folder),
        citation=str(about.get("cite") or ""),
        classes=model.class_names,
        files=(file,),
        folder=folder,
    )


def _count_parameters(path: Path) -> int:
    """Return how many numbers the tensors of a safetensors file hold, statistics of batch norms left out."""
    with path.open("rb") as file:  # the format's own package would import numpy, and the list of models is quick
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEAD:
            raise ValueError(f"{path.name} states a head of {length:,} bytes")
        head = checked(file.read(length), dict[str, Any], what=path.name, advice=EXPORT)
    return sum(math.prod(t["shape"]) for name, t in head.items() if "shape" in t and not name.endswith(BUFFERS))


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a model folder names.

    Args:
        folder: The folder. One in the hub's cache holds links to files of the same repository.
        name: What its configuration says.

    Raises:
        WeightsError: If it is no ordinary file, or lies elsewhere; a link counts as where it leads to.
    """
    path, home = folder / name, folder.resolve()
    try:
        place = path.resolve()
        ordinary = place.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a character that no name has
        raise WeightsError(f"weights {name!r} of {str(folder)!r} cannot be read ({error}); export it again") from error
    kept = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(place.is_relative_to(allowed) for allowed in kept):
        raise WeightsError(f"weights {name!r} lie outside of model folder {str(folder)!r}; put them into it")
    if not ordinary:
        raise WeightsError(f"weights {str(path)!r} cannot be read (no such file); fetch or export them again")
    return path
