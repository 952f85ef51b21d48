"""Short digests by which a resumed run knows that slide, weights and settings are still the same."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellvit.errors import ImageError, SourceLostError
from cellvit.inference.postprocessing import unchanged
from cellvit.inference.tta import TestTimeAugmentation
from cellvit.io.atomic import atomic_text
from cellvit.io.provenance import digest_of, files_in
from cellvit.io.remote import RemotePath, identity_of
from cellvit.slide.open import Slide

_SAMPLES = 64
_SAMPLE_BYTES = 65_536
_BLOCK = 2**23
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_CELLVIT = "cellvit.model.CellViT"
_CELLVIT_CLASSES = ("cellvit.model.cellvit.CellViT", "cellvit.model.network.CellViTNetwork")
"""Classes of the same network, under the name that the folders of version 0.1.0 know it by."""


def quick_hash(slide: Slide) -> str:
    """Return a digest of a slide that does not read all of it.

    It covers the size of the file, 64 evenly spaced blocks of 64 KiB, and the hash that the reader makes of
    formats that consist of several files. Of a folder it covers the names and sizes of all files and the beginning of
    64 of them; of a slide at an address what :func:`cellvit.io.remote.identity_of` says.

    Args:
        slide: An open slide.

    Returns:
        64 hexadecimal digits.
    """
    path, digest = slide.path, hashlib.sha256()
    if isinstance(path, RemotePath):
        return _remote_digest(path)
    if path.is_dir():
        return _quick_hash_of_folder(path)
    try:
        size, stated = path.stat().st_size, slide.properties
        several_files = stated.get("openslide.quickhash-1") or stated.get("dicom.quickhash", "")
        digest.update(f"{size} {several_files}".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _quick_hash_of_folder(folder: Path) -> str:
    files, digest = files_in(folder), hashlib.sha256()
    try:
        for file in files:
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
        for number in sorted({i * (len(files) - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)} if files else ()):
            with files[number].open("rb") as opened:
                digest.update(opened.read(_SAMPLE_BYTES))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return digest.hexdigest()


def _remote_digest(path: RemotePath) -> str:
    return hashlib.sha256(json.dumps(identity_of(path), sort_keys=True).encode()).hexdigest()


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"slide {str(path)!r} cannot be read ({error.strerror or error}); check the disk")


class BackgroundDigest:
    """The SHA-256 of a slide's file, computed by a thread beside the work. Use it as a context: leaving stops it.

    A run that was stopped has left the digest it saw; if the file has another one now, parts of two slides would mix.
    A slide at an address is not read as a whole: what it is known by is compared, at the beginning and at the end.

    Args:
        path: The file.
        kept: Where the digest is kept for a later run.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        self._path, self._kept = path, kept
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")

    def __enter__(self) -> "BackgroundDigest":
        self._digest = self._pool.submit(self._compute)
        return self

    def __exit__(self, *stop: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)

    def result(self) -> str | None:
        """Wait for the digest.

        Returns:
            64 hexadecimal digits; None of a slide at an address.

        Raises:
            ImageError: If the file cannot be read, or is no longer the one that an earlier run has begun.
        """
        found = self._digest.result()
        if not isinstance(self._path, RemotePath):
            return found
        if _remote_digest(self._path) != found:
            raise self._changed()
        return None

    def _compute(self) -> str:
        try:
            found = self._whole()
        except SourceLostError:
            raise
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if self._stop.is_set():
            return found
        before = self._kept.read_bytes() if self._kept.exists() else b""
        if (
            _DIGEST.fullmatch(before) and before != found.encode()
        ):  # what is no digest, as after power was lost, is none
            raise self._changed()
        with atomic_text(self._kept) as file:
            file.write(found)
        return found

    def _whole(self) -> str:
        """Return the digest of all bytes; of a folder, that of :func:`cellvit.io.provenance.content_of`."""
        if isinstance(self._path, RemotePath):
            return _remote_digest(self._path)
        return digest_of(self._path, self._digest_of)

    def _digest_of(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while not self._stop.is_set() and (block := file.read(_BLOCK)):
                digest.update(block)
        return digest.hexdigest()

    def _changed(self) -> ImageError:
        return ImageError(
            f"slide {str(self._path)!r} was changed since its results were begun; pass overwrite=True to start anew"
        )


def weights_hash(model: Any) -> str:
    """Return a digest of all that a model's nuclei depend on: its weights, its types and its post-processing.

    Other settings for the post-processing, which a run states by themselves, leave it as it is.

    Args:
        model: A model; one that is no module is known by its class and its post-processing.

    Returns:
        64 hexadecimal digits.
    """
    if isinstance(model, TestTimeAugmentation):
        return hashlib.sha256(f"{weights_hash(model.model)} {model.views}".encode()).hexdigest()
    model = unchanged(model)
    postprocessor = getattr(model, "postprocessor", None)
    kind = _CELLVIT if _qualified(model) in _CELLVIT_CLASSES else _qualified(model)
    facts = [kind, repr(model.classes), model.mpp, _settings_of(model), _plain(postprocessor)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    if isinstance(model, nn.Module):
        # buffers that are not saved count too: the statistics that pixels are normalised with
        for name, tensor in sorted({**dict(model.named_buffers()), **model.state_dict()}.items()):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(memoryview(data))
    return digest.hexdigest()


_CHANGES_NOTHING = ("bfloat16", "hub")
"""Free facts of a model on which no nucleus depends: how it may run, and where it was fetched."""


def _settings_of(model: Any) -> Any:
    """Return the settings of a model without what it states of itself that changes no nucleus; None without any."""
    settings = getattr(model, "settings", None)
    if not isinstance(settings, Mapping):
        return settings
    about = settings.get("about") or {}
    if not any(name in about for name in _CHANGES_NOTHING):
        return settings
    return {**settings, "about": {name: fact for name, fact in about.items() if name not in _CHANGES_NOTHING}}


def _qualified(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(value: Any) -> Any:
    """Return a value, and what it is made of, as plain data that differs where the value does."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, Tensor):
        return [str(value.dtype), value.detach().cpu().tolist()]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return [_qualified(value), _plain(getattr(value, "__dict__", {})) or repr(value)]
