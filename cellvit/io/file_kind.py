"""What a file of nuclei is, by its first bytes."""

import zipfile
from pathlib import Path

from cellvit.errors import DataError
from cellvit.io.images import DAMAGE

_STARTS = (
    (b"PAR1", "parquet"),
    (b"\x89HDF\r\n\x1a\n", "matlab"),
    (b"MATLAB ", "matlab"),
    (b"\x93NUMPY", "npy"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\x1f\x8b", "json"),
    (b"Iout", "imagej"),
)
_TEXTS = ((b"{", "json"), (b"[", "json"), (b"<", "xml"))
_BY_SUFFIX = {".mat": "matlab", ".npy": "npy", ".npz": "npz", ".png": "png", ".tif": "tiff", ".tiff": "tiff"}


def file_kind(path: Path) -> str | None:
    """Return what a file is by its content, by its suffix where that says nothing, or None.

    Args:
        path: The file.

    Returns:
        ``imagej``, ``json`` (also compressed), ``matlab`` (any version), ``npy``, ``npz``, ``parquet``, ``png``,
        ``tiff`` or ``xml``.

    Raises:
        DataError: If the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or error}); check the file") from error
    for magic, kind in _STARTS:
        if start.startswith(magic):
            return kind
    if start.startswith(b"PK"):
        return _kind_in_zip(path)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    by_text = next((kind for magic, kind in _TEXTS if text.startswith(magic)), None)
    if by_text is not None:
        return by_text
    return _BY_SUFFIX.get(path.suffix.lower(), "json" if path.name.lower().endswith(("json", "json.gz")) else None)


def _kind_in_zip(path: Path) -> str:
    """Return ``imagej`` if an archive holds regions, else ``npz``."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "imagej" if any(name.lower().endswith(".roi") for name in archive.namelist()) else "npz"
    except DAMAGE:
        return "npz"
