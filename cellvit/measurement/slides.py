"""Measuring the nuclei of a table on its slide or image, whoever found them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.errors import DataError
from cellvit.measurement.measure import Progress, measure_missing, stains_at
from cellvit.measurement.neighbors import with_neighbors
from cellvit.measurement.stains import Stains
from cellvit.slide.open import Slide, open_slide
from cellvit.slide.resolution import given_resolution, slide_resolution
from cellvit.slide.view import SlideView
from cellvit.types import Nuclei

TARGET_MPP = 0.25
"""Microns per pixel at which nuclei are measured by default."""

_OUTSIDE = 0.01  # of the nuclei may lie outside of their slide, such as at its edges


@dataclass(frozen=True)
class MeasuredNuclei:
    """Nuclei that were measured on a slide.

    Attributes:
        nuclei: The table as it was given, with all measurements.
        mpp: ``(x, y)`` microns per pixel of full resolution; None where not known: lengths are pixels then.
        stains: How the stains absorb.
        notes: What the user should know; each is a sentence.
    """

    nuclei: Nuclei
    mpp: tuple[float, float] | None
    stains: Stains
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return what goes into the head of a file beside the nuclei, as plain data."""
        return {**self.stains.facts(), "mpp": None if self.mpp is None else list(self.mpp)}


def measure_nuclei(
    path: str | Path,
    nuclei: Nuclei,
    *,
    mpp: float | None = None,
    magnification: float | None = None,
    scene: int | str | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> MeasuredNuclei:
    """Measure nuclei on the slide or image that they were found in.

    Pixels are resampled to 0.25 microns, or to the resolution that the nuclei were found at; where the resolution is
    not known they are measured as they are. Outlines, centres and measurements of all nuclei are held in memory: about
    1 kB per nucleus.

    Args:
        path: The slide or image.
        nuclei: In pixels of its full resolution. What was measured before is measured anew.
        mpp: Resolution of the slide in microns per pixel, if it states none or a wrong one.
        magnification: The same as objective power: 40 is 0.25 µm per pixel.
        scene: Number or name of the image of a TIFF that holds several.
        facts: Metadata of the file of the nuclei, where there are any: ``base_mpp`` and ``target_patch_mpp``, used
            where nobody says otherwise, ``origin``, ``stains``, and ``width`` and ``height``, which must be those of
            the slide.
        progress: Called with the number of nuclei that are done and of all.

    Returns:
        The nuclei, and what was assumed.

    Raises:
        ImageError: If the slide cannot be read.
        ConfigError: If a resolution is none of a microscope.
        DataError: If the nuclei are those of another slide.
    """
    facts = facts or {}
    with open_slide(path, scene=scene) as slide:
        _check_size(slide, facts)
        resolution, notes = _resolution(slide, mpp, magnification, facts.get("base_mpp") or nuclei.mpp)
        target = float(facts.get("target_patch_mpp") or TARGET_MPP)
        view = SlideView(slide, mpp=resolution or (1.0, 1.0), target_mpp=target if resolution else 1.0)
        from_bounds = facts.get("origin") == "bounds"
        corner = (0, 0) if from_bounds else slide.bounds[:2]
        notes += _check_place(nuclei, slide, slide.bounds[2:] if from_bounds else slide.level_sizes[0])
        plain = replace(nuclei, measurements={})
        scale = view.scale
        placed = plain.transform(scale=scale, shift=(-corner[0] * scale[0], -corner[1] * scale[1]))
        stains = _stated_stains(facts) or stains_at(view, placed.centroid[np.isfinite(placed.centroid).all(axis=1)])
        spacing = None if resolution is None else (resolution[0] / scale[0], resolution[1] / scale[1])
        measured = measure_missing(view, placed, mpp=spacing, stains=stains, progress=progress)
    notes += [stains.doubt] if stains.doubt and len(nuclei) else []
    area = measured.measurements["area_px2" if resolution is None else "area_um2"]
    if missing := int(np.isnan(area).sum()):
        notes.append(
            f"{missing:,} of {len(nuclei):,} nuclei have no measurements but those of neighbours: they have no outline "
            "or no pixel, are too large, lie outside of the image, or where it cannot be read"
        )
    known = None if resolution is None else sum(resolution) / 2
    found = with_neighbors(replace(plain, measurements=measured.measurements, mpp=known), mpp=resolution)
    return MeasuredNuclei(found, resolution, stains, tuple(notes))


def _resolution(
    slide: Slide, mpp: float | None, magnification: float | None, known: float | None
) -> tuple[tuple[float, float] | None, list[str]]:
    """Return the microns per pixel to use, None where nobody knows, and what is to be said about it."""
    if given_resolution(mpp, magnification) is None and slide.stated_mpp is None:
        if known is None:
            note = "the image states no resolution: lengths and areas are in pixels; pass mpp=0.25 for microns"
            return None, [note]
        mpp = known
    found, notes = slide_resolution(slide, mpp=mpp, magnification=magnification)
    return found.mpp, notes


def _check_size(slide: Slide, facts: Mapping[str, Any]) -> None:
    """Refuse a table that says it is of a slide of another size."""
    size = (facts.get("width"), facts.get("height"))
    if None not in size and size != slide.level_sizes[0]:
        (width, height), of = slide.level_sizes[0], facts.get("image")
        raise DataError(
            f"the nuclei are of {of!r}, {size[0]} x {size[1]} px, and slide {slide.path.name!r} is {width} x {height}; "
            "give the slide that they were found in"
        )


def _check_place(nuclei: Nuclei, slide: Slide, size: tuple[int, int]) -> list[str]:
    """Refuse nuclei that do not lie on the slide; return what is to be said of a few that do not."""
    known = np.isfinite(nuclei.centroid).all(axis=1)
    notes = [f"{(~known).sum():,} of {len(nuclei):,} nuclei have no place"] if not known.all() else []
    away = nuclei.centroid[known]
    outside = int(((away < 0) | (away > size)).any(axis=1).sum())
    if outside > _OUTSIDE * len(away):
        low, high = away.min(axis=0).round().tolist(), away.max(axis=0).round().tolist()
        raise DataError(
            f"{outside:,} of {len(away):,} nuclei lie outside of slide {slide.path.name!r}, which is {size[0]} x "
            f"{size[1]} px: they span x, y from {low} to {high}; give the slide that they were found in, and "
            "coordinates in pixels of its full resolution"
        )
    return notes + ([f"{outside:,} of {len(away):,} nuclei lie outside of the slide"] if outside else [])


def _stated_stains(facts: Mapping[str, Any]) -> Stains | None:
    """Return the stains that the file of the nuclei states, or None."""
    stated = facts.get("stains")
    if not isinstance(stated, Mapping):
        return None
    try:
        vectors = [tuple(float(part) for part in stated[name]) for name in ("hematoxylin", "eosin")]
        (a, b, c), (d, e, f) = vectors
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"stains {dict(stated)} in the file of the nuclei are damaged ({error}); write it again"
        ) from error
    return Stains((a, b, c), (d, e, f), str(stated.get("source", "the file of the nuclei")))
