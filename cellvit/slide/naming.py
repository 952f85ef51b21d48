"""Which files a list of inputs means, and a name for the results of each that no other input shares."""

import glob
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from cellvit.errors import ImageError
from cellvit.io.remote import RemotePath, as_path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".ppm", ".pgm"})
"""What counts as an image in a folder; a file that is named is tried whatever its suffix."""

SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".qptiff", ".btf", ".tf8"}
)
"""What counts as a slide in a folder, beside images; DICOM is known by its content, a series of files is one slide."""

SCANNER_SUFFIXES = SLIDE_SUFFIXES - {".btf", ".tf8"}
"""Those of scanners alone, which are slides whatever is in the file."""


def known_suffixes() -> frozenset[str]:
    """Return what counts as an image or a slide in a folder, formats of other packages' readers included."""
    from cellvit.slide.readers.base import READERS  # not before a folder is given: plug-ins are imported for it

    readers = [entry.cls for entry in READERS.entries() if entry.cls is not None]
    return IMAGE_SUFFIXES.union(SLIDE_SUFFIXES, *(reader.suffixes for reader in readers))


def expand_inputs(texts: Iterable[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Return the files that inputs stand for.

    Args:
        texts: Files, folders (images and slides in them, not in folders within, by name), patterns with ``* ? [``, or
            addresses of files and of OME-Zarr, in which nothing is a pattern.

    Returns:
        The files in the order given, each once, of several files of one slide in DICOM one that names it; and for
        every input that stands for nothing the input and the reason.
    """
    files: dict[Path, Path] = {}
    missing: list[tuple[str, str]] = []
    found: list[Path]
    for text in texts:
        path = as_path(text)
        if isinstance(path, RemotePath):  # whether something is there, whoever opens it finds out
            found, reason = [path], ""
        elif path.is_dir():
            found = _in_folder(path)
            reason = f"folder {text!r} holds no images or slides; name the files if their suffix is unusual{_unseen()}"
        elif not path.exists() and glob.has_magic(text):
            matches = glob.glob(text, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
            found = sorted(p for p in map(Path, matches) if p.is_file() or _is_store(p))
            found = found or [p for folder in sorted(map(Path, matches)) if folder.is_dir() for p in _in_folder(folder)]
            reason = f"nothing matches {text!r}; check the pattern"
        else:
            found, reason = [path], ""
        missing += [] if found else [(text, reason)]
        for file in found:
            files.setdefault(file.resolve(), file)
    return _each_slide_once(list(files.values())), missing


def _in_folder(folder: Path) -> list[Path]:
    """Return the images and slides that a folder holds, by name, or the folder itself where it is a slide."""
    from cellvit.slide.readers.base import is_slide_folder

    if is_slide_folder(folder):
        return [folder]
    known = known_suffixes()
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    stores = [p for p in entries if _is_store(p)]
    files = sorted(p for p in entries if p.is_file())
    found = [p for p in files if p.name.lower().endswith(tuple(known))] + stores
    known_files = set(found)
    slides, damaged, _ = _dicom([p for p in files if p not in known_files])
    return sorted([*found, *(slides or damaged)])


def _is_store(path: Path) -> bool:
    """Tell whether a folder is a slide in itself, and not one of several files."""
    if not path.is_dir():
        return False
    from cellvit.io.ngff import is_zarr  # not before there is a folder: it brings numpy

    return is_zarr(path)


def _each_slide_once(files: Sequence[Path]) -> list[Path]:
    """Return files in their order, but of those that are one slide in DICOM, as a pattern names them, only one."""
    slides, _, all_of_slides = _dicom(files) if len(files) > 1 else ([], [], [])
    left_out = set(all_of_slides).difference(slides)
    return [path for path in files if path not in left_out]


def _dicom(files: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Return of the files in DICOM one for each slide, those that cannot be read, and all that belong to slides."""
    if _unseen():
        return [], [], []
    from cellvit.io.dicom import instance_of, is_dicom, one_per_slide

    instances, damaged = [], []
    for path in filter(is_dicom, (path for path in files if not isinstance(path, RemotePath))):
        try:
            instance = instance_of(path)
        except ImageError:
            damaged.append(path)
        else:
            instances += [] if instance is None else [instance]
    return [one.path for one in one_per_slide(instances)], damaged, [one.path for one in instances]


def _unseen() -> str:
    """Return how to find slides in DICOM where that is not possible, else nothing."""
    if find_spec("pydicom") is not None:
        return ""
    return " (slides in DICOM are found with the extra 'formats'; from a checkout: pip install '.[formats]')"


def output_names(inputs: Sequence[Path], out: Path, *, suffixes: Sequence[str]) -> dict[Path, str]:
    """Choose a name for the results of each input.

    The name is the stem. Inputs of one stem (capitals do not count: not every disk tells them apart) are told apart by
    their suffix and then by their folders; results that would replace an input are called ``<stem>_nuclei``.

    Args:
        inputs: Files, each once.
        out: Folder of the results.
        suffixes: Suffixes of the results, with the dot.

    Returns:
        A name without suffix per input, all different, independent of the order of the inputs.

    Example:
        >>> names = output_names([Path("a/x.png"), Path("b/x.png"), Path("y.tif")], Path("out"), suffixes=[".json"])
        >>> list(names.values())
        ['a_x', 'b_x', 'y']
    """
    places = {path: path.resolve() for path in inputs}
    names = {path: _plain_name(path.stem) for path in inputs}
    sources = {str(place).casefold() for place in places.values()}

    folder = out.resolve()

    def clashing() -> list[Path]:
        taken = Counter(name.casefold() for name in names.values())
        return [path for path in inputs if taken[names[path].casefold()] > 1]

    def replacing_inputs() -> list[Path]:
        results = {path: [str(folder / f"{names[path]}{suffix}").casefold() for suffix in suffixes] for path in inputs}
        return [path for path in inputs if not sources.isdisjoint(results[path])]

    rules = [(clashing, _with_folder), (clashing, _with_suffix), (clashing, _with_digest)]
    rules += [(replacing_inputs, _with_nuclei), (clashing, _with_digest), (replacing_inputs, _with_digest)]
    for affected, rename in rules:
        names.update({path: rename(places[path], names[path]) for path in affected()})
    return names


def _plain_name(stem: str) -> str:
    """Return a name that any program can open: no bytes that are no text, and not dots only, a folder above."""
    readable = "".join("_" if "\ud800" <= mark <= "\udfff" else mark for mark in stem)
    return readable if readable.strip(".") else f"slide{readable}"


def _with_folder(place: Path, name: str) -> str:
    return f"{place.parent.name}_{name}"


def _with_suffix(place: Path, name: str) -> str:
    return f"{name}_{place.suffix[1:]}" if place.suffix else name


def _with_digest(place: Path, name: str) -> str:
    known = getattr(place, "address", str(place))  # of a remote place also what follows "?", which is not shown
    return f"{name}_{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def _with_nuclei(place: Path, name: str) -> str:
    return f"{name}_nuclei"
