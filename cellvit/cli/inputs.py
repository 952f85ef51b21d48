"""What the inputs and settings of ``cellvit segment`` and ``cellvit plan`` stand for, checked before anything heavy."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cellvit.errors import CellViTError, ImageError
from cellvit.inference.cohort.sheet import CohortRow, read_cohort
from cellvit.inference.settings import SlideSettings
from cellvit.plugins.trust import trusted_packages
from cellvit.slide.naming import SLIDE_SUFFIXES, expand_inputs


@dataclass
class Inputs:
    """What the command line names.

    Attributes:
        slides: Slides, with what a list says about each; some may not exist.
        images: Ordinary images.
        missing: Inputs that stand for nothing, and the reason; of slides only those that no list names.
    """

    slides: list[CohortRow] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def not_there(path: Path) -> str | None:
    """Return why a file cannot be read that does not exist; None for one that does."""
    try:
        return None if path.exists() else f"{str(path)!r} does not exist; check the spelling"
    except ImageError as error:  # of a place that does not answer
        return str(error)


def sort_inputs(options: argparse.Namespace) -> Inputs:
    """Return slides and images apart.

    Args:
        options: Of the command line: ``inputs``, files, folders, patterns, and lists of slides, whose names end in
            ``.csv``; ``kind``, what they are.

    Raises:
        DataError: If a list has faults.
    """
    lists = [text for text in options.inputs if text.lower().endswith(".csv")]
    files, missing = expand_inputs([text for text in options.inputs if text not in lists])
    inputs = Inputs([row for text in lists for row in read_cohort(text)], missing=missing)
    listed = {row.path.resolve() for row in inputs.slides}
    for path in files:
        reason = not_there(path)
        if options.kind == "slide" or (options.kind == "auto" and _looks_like_slide(path)):
            inputs.slides += [] if path.resolve() in listed else [CohortRow(path)]
        elif reason:
            inputs.missing.append((str(path), reason))
        else:
            inputs.images.append(path)
    return inputs


def _looks_like_slide(path: Path) -> bool:
    if not_there(path):
        return path.suffix.lower() in SLIDE_SUFFIXES
    from cellvit.slide.open import is_slide

    return is_slide(path)


def slide_settings(options: argparse.Namespace, formats: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of :func:`cellvit.inference.slide.slide_task` that a command line means.

    Args:
        options: Of the command line.
        formats: Those that are written for slides.

    Raises:
        CellViTError: If a value cannot work.
    """
    named = {field.name for field in fields(SlideSettings)}
    values = {name: value for name, value in vars(options).items() if name in named}
    values |= {"tissue_filter": not options.no_tissue_filter, "embeddings": not options.no_embeddings}
    values |= {"measurements": not options.no_measurements, "formats": formats}
    values["postprocessor"] = dict(options.postprocessor) or None
    SlideSettings(**values)
    if options.mpp and options.magnification:
        from cellvit.slide.resolution import given_resolution

        given_resolution(options.mpp, options.magnification)  # one rule for slides and images
    if options.roi is not None:
        from cellvit.io.regions import read_region

        read_region(options.roi)  # a fault in it is told once, before anything is started
    return {**values, "model": options.model, "trust": trusted_packages(options.trust)}


def check_network(options: argparse.Namespace, device: str) -> None:
    """Refuse once, before a model is loaded, what would fail with every input.

    Args:
        options: Of the command line.
        device: The first of those that are used.

    Raises:
        ConfigError: If the precision does not fit the device, or tiles of this size and overlap cannot be joined.
    """
    from cellvit.inference.image import tile_grid
    from cellvit.inference.protocol import check_precision, choose_device

    check_precision(options.precision, choose_device(device))
    tile_grid(1, 1, tile_size=options.tile_size, overlap=options.overlap)


def failure_text(path: Path, error: Exception) -> str:
    """Return in one text that names the file why nothing came of it.

    Args:
        path: The image or slide.
        error: One of ours speaks for itself; another is a fault of ours, and is named.
    """
    if not isinstance(error, CellViTError):
        return f"{str(path)!r}: {type(error).__name__}: {error} (--debug shows where)"
    return str(error) if path.name in str(error) else f"{str(path)!r}: {error}"
