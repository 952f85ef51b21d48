"""Heat maps of nuclei per mm² over grey tissue, as panels with a title and a bar of numbers each."""

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cellvit.classes import NO_TYPE, type_name
from cellvit.errors import ConfigError
from cellvit.io.stream import NucleiStream
from cellvit.io.text import check_finite
from cellvit.plotting.charts import new_axes, to_picture
from cellvit.plotting.legend import Entries, Picture, arrange, draw_legend, stack_rows, text_size
from cellvit.types import Nuclei, NucleiClasses

Counts = NDArray[np.int32]
"""Nuclei per pixel, ``(h, w)``."""

Bounds = tuple[int, int, int, int]
"""A rectangle of a slide, ``(x, y, width, height)`` in full-resolution pixels."""


def nuclei_chunks(stream: NucleiStream) -> Iterator[Nuclei]:
    """Yield the chunks that hold nuclei, checked."""
    for chunk in stream:
        if len(chunk):
            check_finite(chunk)
            yield chunk


def scale_of(shape: tuple[int, ...], bounds: Bounds) -> tuple[float, float]:
    """Return raster pixels per slide pixel, ``(x, y)``."""
    if bounds[2] <= 0 or bounds[3] <= 0:
        raise ConfigError(f"bounds {bounds} have no area; give (x, y, width, height) of what the thumbnail shows")
    return shape[1] / bounds[2], shape[0] / bounds[3]


def both_mpp(mpp: float | tuple[float, float]) -> tuple[float, float]:
    """Return microns per pixel along x and y."""
    across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    if not (np.isfinite((across, down)).all() and min(across, down) > 0):
        raise ConfigError(f"mpp={mpp} is no resolution; give microns per pixel of the full resolution")
    return across, down


def count_into(
    counts: dict[int, Counts], nuclei: Nuclei, bounds: Bounds, scale: tuple[float, float], shape: tuple[int, ...]
) -> None:
    """Add nuclei to the rasters of their types; those outside are left out."""
    height, width = shape[:2]
    pixel = np.floor((nuclei.centroid - bounds[:2]) * scale)
    inside = ((pixel >= 0) & (pixel < (width, height))).all(axis=1)
    col, row = pixel[inside].astype(np.int64).T
    kinds = nuclei.type[inside]
    for kind in np.unique(kinds).tolist():
        # in place: a raster may be much larger than a chunk
        raster = counts.setdefault(kind, np.zeros((height, width), np.int32))
        np.add.at(raster, (row[kinds == kind], col[kinds == kind]), 1)


_SIDE = 720  # pixels of the longer side of the tissue in a panel, at most
_SMALLEST = 360  # and at least: a smaller one has no room for the text
_SIGMAS = (50, 100, 200, 500, 1000, 2000, 5000)  # microns
_MIN_SIGMA = 1.5  # pixels; a narrower Gaussian shows the raster and not the tissue
_STRENGTH = 0.8  # of the colour over the tissue
_FEWEST = 50  # nuclei; a map of fewer looks like hot spots
_UNCERTAIN = 0.5  # standard error as a share of the density from which colours fade
_FADE_IN = 0.12  # share of the scale over which the colour appears, so that the tissue is seen where nuclei are rare
_BAR_WIDTH = 260  # pixels that the numbers below a bar of colours need


def panel_shape(thumbnail: Picture) -> tuple[int, int]:
    """Return ``(height, width)`` in pixels of the tissue in a panel: the thumbnail's form, a size that suits text."""
    height, width = thumbnail.shape[:2]
    factor = np.clip(1, _SMALLEST / max(height, width), _SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def choose_sigma(pixel_um: tuple[float, float]) -> int:
    """Return the standard deviation in microns of the Gaussian for pixels of a size, ``(x, y)`` microns.

    Example:
        >>> choose_sigma((4.0, 4.0)), choose_sigma((60.0, 60.0))
        (50, 100)
    """
    return next((s for s in _SIGMAS if s >= _MIN_SIGMA * max(pixel_um)), _SIGMAS[-1])


def smooth_density(counts: Counts, pixel_um: tuple[float, float], sigma_um: float) -> NDArray[np.float64]:
    """Return nuclei per mm².

    Args:
        counts: ``(h, w)`` nuclei per pixel.
        pixel_um: Size of a pixel in microns, ``(x, y)``.
        sigma_um: Standard deviation of the Gaussian in microns; at least one and a half pixels are used. At the
            border what it would spread beyond is reflected, so that the sum over all pixels stays the number of nuclei.

    Returns:
        ``(h, w)``.
    """
    sigmas = _sigmas(pixel_um, sigma_um)
    return np.asarray(_spread(counts, sigmas) / (pixel_um[0] * pixel_um[1] / 1e6))


def _sigmas(pixel_um: tuple[float, float], sigma_um: float) -> tuple[float, float]:
    """Return the standard deviations of the Gaussian in pixels, ``(x, y)``."""
    across, down = (max(sigma_um / pixel, _MIN_SIGMA) for pixel in pixel_um)
    return across, down


def _spread(counts: Counts, sigmas: tuple[float, float]) -> NDArray[np.float64]:
    """Return nuclei per pixel, spread by Gaussians of widths ``(x, y)`` in pixels and reflected at the border."""
    # the cosine transform holds the reflected picture; there a Gaussian is a product, however wide it is
    spectrum = scipy.fft.dctn(counts.astype(np.float64), type=2)
    for axis, sigma in enumerate(reversed(sigmas)):
        angle = np.pi * np.arange(counts.shape[axis]) / counts.shape[axis]
        spectrum *= np.expand_dims(np.exp(-((sigma * angle) ** 2) / 2), 1 - axis)
    return np.asarray(scipy.fft.idctn(spectrum, type=2).clip(0))


def relative_error(counts: Counts, pixel_um: tuple[float, float], sigma_um: float) -> NDArray[np.float64]:
    """Return the standard error of :func:`smooth_density` as a share of it, if nuclei lie independently (Poisson).

    The density is a sum of Gaussians, one per nucleus, so its variance is the sum of their squares, which are Gaussians
    of a width smaller by the square root of two. A nucleus alone has an error of its whole density, 1.

    Args:
        counts: ``(h, w)`` nuclei per pixel.
        pixel_um: Size of a pixel in microns, ``(x, y)``.
        sigma_um: Standard deviation of the Gaussian in microns.

    Returns:
        ``(h, w)``; infinite where there is no nucleus within reach.
    """
    across, down = _sigmas(pixel_um, sigma_um)
    density = _spread(counts, (across, down))
    variance = _spread(counts, (across / np.sqrt(2), down / np.sqrt(2))) / (4 * np.pi * across * down)
    seen = density > density.max() * 1e-9  # below is the rounding of the transform
    return np.asarray(np.divide(np.sqrt(variance), density, out=np.full(counts.shape, np.inf), where=seen))


def draw_density(
    counts: Mapping[int, Counts],
    thumbnail: Picture,
    *,
    classes: NucleiClasses | None,
    pixel_um: tuple[float, float],
    sigma_um: float,
    tissue: NDArray[np.bool_] | None = None,
) -> Picture:
    """Draw the density of all nuclei, its relative standard error, and the density of each type.

    Args:
        counts: Type id to nuclei per pixel, ``(h, w)`` of :func:`panel_shape`.
        thumbnail: ``uint8 (H, W, 3)`` RGB of the same place.
        classes: Names of the types.
        pixel_um: Size of a pixel of the counts in microns, ``(x, y)``.
        sigma_um: Standard deviation of the Gaussian in microns.
        tissue: ``(m, n)`` of the same place, True where colours may be; None colours anywhere.

    Returns:
        ``uint8 (H, W, 3)`` RGB: a grid of panels, and a line that says what they show.
    """
    height, width = panel_shape(thumbnail)
    resized = cv2.resize(thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    grey = np.repeat(255 - (255 - cv2.cvtColor(resized, cv2.COLOR_RGB2GRAY)[..., None]) * 0.55, 3, axis=2)
    glass = np.zeros((height, width), bool)
    if tissue is not None:
        glass = cv2.resize(tissue.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) == 0
    total = sum(counts.values(), np.zeros((height, width), np.int32))
    shown = {"All nuclei": total}
    typed = {kind: c for kind, c in sorted(counts.items()) if kind > 0}
    if typed:
        shown |= {str(type_name(classes, kind)): c for kind, c in typed.items()}
        untyped = sum((c for kind, c in counts.items() if kind <= 0), np.zeros((height, width), np.int32))
        shown |= {NO_TYPE: untyped} if untyped.any() else {}
    size = round(1.3 * text_size(max(width, 512)))  # the page is wider than a panel, and is looked at as a whole
    panels = []
    for title, number in shown.items():
        if number.sum() < _FEWEST:
            panels.append(_empty_panel(title, number, grey, size))
            continue
        error = np.where(glass, np.inf, relative_error(number, pixel_um, sigma_um))
        density = smooth_density(number, pixel_um, sigma_um)
        panels.append(_panel(f"{title}: {number.sum():,}", grey, density, error, size))
        if number is total:
            panels.append(_error_panel(grey, error, size))
    page = arrange(panels, _columns(len(panels), panels[0].shape), gap=2 * size)
    notes: Entries = [(None, f"Smoothed with a Gaussian of {sigma_um:g} µm standard deviation.")]
    notes += [(None, "Every panel has its own scale.")] if len(panels) > 1 else []
    notes += [(None, "Faded: the standard error is above half of the density.")]
    legend = draw_legend(notes, page.shape[1], size=size, pixel_um=pixel_um[0])
    return stack_rows([page, legend])


def _panel(
    title: str, grey: NDArray[Any], density: NDArray[np.float64], error: NDArray[np.float64], size: int
) -> Picture:
    """Return one heat map over the tissue, with its title above and its scale below."""
    most = _nice_top(float(density.max(where=np.isfinite(error), initial=0)))
    certain = np.clip(2 - error / _UNCERTAIN, 0, 1)
    heat = _blend(grey, density / most, certain)
    bar = _scale(most, heat.shape[1], size, "nuclei per mm²")
    return stack_rows([draw_legend([(None, title)], heat.shape[1], size=size), heat, bar])


def _error_panel(grey: NDArray[Any], error: NDArray[np.float64], size: int) -> Picture:
    """Return the map of the relative standard error of all nuclei."""
    near = np.isfinite(error) & (error <= 1)
    heat = _blend(grey, np.where(near, error, 0), near.astype(float))
    bar = _scale(1, heat.shape[1], size, "standard error / density")
    return stack_rows([draw_legend([(None, "Uncertainty of all nuclei")], heat.shape[1], size=size), heat, bar])


def _empty_panel(title: str, counts: Counts, grey: NDArray[Any], size: int) -> Picture:
    """Return the tissue alone, for nuclei so few that a map of them would show spots where there are none."""
    few: Entries = [(None, f"{title}: {counts.sum():,}"), (None, f"fewer than {_FEWEST}: no map")]
    tissue = np.asarray(np.rint(grey), np.uint8)
    return stack_rows([draw_legend(few, tissue.shape[1], size=size), tissue])


def _blend(under: NDArray[Any], share: NDArray[np.float64], certain: NDArray[np.float64] | None = None) -> Picture:
    """Return colours of values in [0, 1] over a picture; ``certain`` in [0, 1] fades them."""
    levels = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    # reversed, so that dark means many on white paper; viridis is even in lightness and safe for the colour-blind
    colors = cv2.cvtColor(cv2.applyColorMap(255 - levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    opacity = np.clip(share / _FADE_IN, 0, 1) * _STRENGTH * (1.0 if certain is None else certain)
    return np.asarray(np.rint(under * (1 - opacity[..., None]) + colors * opacity[..., None]), np.uint8)


def _scale(most: float, width: int, size: int, unit: str) -> Picture:
    """Return a bar of the colours from 0 to a value, with numbers and their unit below."""
    width = max(width, _BAR_WIDTH)
    figure, axes = new_axes(width - 5 * size, size, text=size)
    ramp = np.tile(np.linspace(0, 1, 256), (2, 1))
    axes.imshow(_blend(np.full((*ramp.shape, 3), 235.0), ramp), aspect="auto", extent=(0, most, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, most / 2, most], [f"{value:,.10g}" for value in (0, most / 2, most)])
    axes.set_xlabel(unit)
    bar = to_picture(figure, margin=size // 2)
    return np.pad(bar, ((0, 0), (max(0, (width - bar.shape[1]) // 2), 0), (0, 0)), constant_values=255)


def _nice_top(value: float) -> float:
    """Return the smallest of 1, 2, 3, 4, 6, 8 times a power of ten that is not below a value; 1 for none."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 3, 4, 6, 8, 10, 20) if step * power >= value))


def _columns(count: int, shape: tuple[int, ...]) -> int:
    """Return the number of columns that makes a grid of panels about as wide as a screen."""
    columns = np.arange(1, count + 1)
    rows = -(-count // columns)
    ratio = np.log(columns * shape[1] / (rows * shape[0]) / 1.4)
    return int(np.argmin(np.abs(ratio) + (columns * rows - count) / count)) + 1  # empty cells look like an error
