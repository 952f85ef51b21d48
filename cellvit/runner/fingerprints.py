"""Short digests by which a resumed run knows that slide, weights and settings are still the same."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from cellvit.errors import ImageError
from cellvit.slide.slides import Slide

_SAMPLES = 64
_SAMPLE_BYTES = 65_536
_hashes: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()


def quick_hash(slide: Slide) -> str:
    """Return a digest of a slide that does not read all of it.

    It covers the size of the file, 64 evenly spaced blocks of 64 KiB, and the hash OpenSlide makes of formats that
    consist of several files.

    Args:
        slide: An open slide.

    Returns:
        64 hexadecimal digits.
    """
    path, digest = slide.path, hashlib.sha256()
    try:
        size = path.stat().st_size
        digest.update(f"{size} {slide.properties.get('openslide.quickhash-1', '')}".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ImageError(f"slide {str(path)!r} cannot be read ({error.strerror}); check the disk") from error
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(model: Any) -> str:
    """Return a digest of all that a model's nuclei depend on: its weights, its types and its post-processing.

    Args:
        model: A model; one that is no module is known by its class and ``repr`` of its settings only.

    Returns:
        64 hexadecimal digits.
    """
    try:
        if model in _hashes:
            return _hashes[model]
    except TypeError:  # objects that cannot be hashed or weakly referenced
        return _weights_hash(model)
    _hashes[model] = _weights_hash(model)
    return _hashes[model]


def _weights_hash(model: Any) -> str:
    digest = hashlib.sha256(f"{type(model).__qualname__} {model.classes} {model.mpp}".encode())
    postprocessor = getattr(model, "postprocessor", None)
    digest.update(f"{type(postprocessor).__qualname__} {_plain(vars(postprocessor)) if postprocessor else ''}".encode())
    if isinstance(model, nn.Module):
        for name, tensor in sorted(model.state_dict().items()):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(memoryview(data))
    return digest.hexdigest()


def _plain(values: Mapping[str, Any]) -> str:
    known = {name: value for name, value in values.items() if isinstance(value, str | int | float | bool | None)}
    return json.dumps(known, sort_keys=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Return one line per value that differs between two nested mappings, such as ``"tile_size was 1024, is 512"``."""
    found: list[str] = []
    before, now = (json.loads(json.dumps(values)) for values in (before, now))  # tuples become lists, as in files
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, prefix=f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
