"""Opening files of ``torch.save`` that others made. Nothing in a file is run."""

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellvit.errors import WeightsError

_SCALAR = np.float64(0).__reduce__()[0]
_PATHS = ("pathlib", "pathlib._local")

# Files of a training run hold more than tensors: settings, paths, numpy's numbers. All of these are plain data.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdg"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
    (_SCALAR, "numpy._core.multiarray.scalar"),
    # a pure path never touches a disk, and one of another operating system can be made
    *((pathlib.PurePosixPath, f"{module}.{name}") for module in _PATHS for name in ("PosixPath", "PurePosixPath")),
    *(
        (pathlib.PureWindowsPath, f"{module}.{name}")
        for module in _PATHS
        for name in ("WindowsPath", "PureWindowsPath")
    ),
]
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer instead of the file; fetch it with 'git lfs pull'",
    b"<": "is a web page instead of the file; download it again, and confirm where the page asks",
}


def open_safely(path: Path) -> Any:
    """Return the content of a file of ``torch.save``, on the CPU.

    Tensors of a file in torch's ZIP format are mapped from the disk: only those that are used are read.

    Args:
        path: The file; its name does not matter.

    Raises:
        WeightsError: If the file cannot be read, is of another kind, is damaged, or holds more than plain data. The
            message starts with the verb; the caller names the file.
    """
    try:
        mapped = _check_kind(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on foreign pickles; our own error says it better
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"cannot be opened safely ({_reason(error)}); if you trust its origin, open it once with torch.load(..., "
            "weights_only=False) and save its tensors and plain settings again"
        ) from error
    except Exception as error:  # a damaged pickle fails in any way; what it says is of no use then
        raise WeightsError(
            f"is not a checkpoint or is damaged ({_first_line(error)}); fetch it again and compare its size"
        ) from error


def _check_kind(path: Path) -> bool:
    """Return whether a file is in torch's ZIP format; raise where it shows that it is no checkpoint."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise WeightsError(
            f"cannot be read ({error.strerror or error}); correct the path or its permissions"
        ) from error
    for known, message in _STARTS.items():
        if start.lstrip().startswith(known):
            raise WeightsError(message)
    if start[8:10] == b'{"':
        raise WeightsError("is a safetensors file, which has no settings; give the folder of a model")
    if not start.startswith(_ZIP):
        if start.startswith(_PICKLE):
            return False
        raise WeightsError(f"is not a checkpoint or is damaged (it starts with {start[:8]!r}); fetch it again")
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            "is not a checkpoint or is damaged (its end is missing); fetch it again and compare its size"
        )
    with zipfile.ZipFile(path) as archive:
        names, broken = archive.namelist(), archive.testzip()  # torch does not look at the check sums
    if not any(name.endswith("data.pkl") for name in names):
        raise WeightsError(f"is a ZIP archive with {names[:3]}, not a checkpoint; unpack it and give a file from it")
    if broken:
        raise WeightsError(f"is not a checkpoint or is damaged (check sum of {broken}); fetch it again")
    return True


def _reason(error: Exception) -> str:
    name = re.search(r"GLOBAL (\S+)", str(error))
    detail = re.search(r"WeightsUnpickler error: (.*)", str(error))
    return f"it asks for {name[1]}" if name else detail[1] if detail else _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
