"""Pictures of nuclei: outlines in the colours of their types, with a legend beside the tissue, not over it."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellvit.classes import type_color
from cellvit.errors import ConfigError, ImageError
from cellvit.io.atomic import atomic_path
from cellvit.io.text import check_finite
from cellvit.plotting.legend import Picture, draw_legend, legend_entries, stack_rows, text_size
from cellvit.types import Nuclei, NucleiClasses

_SHIFT = 4  # outlines are drawn in steps of 1/16 pixel
_REACH = 1e6  # pixels; OpenCV draws with 32-bit integers
_DOT = 3  # radius in pixels of a nucleus without outline
_READABLE = 768  # pixels of the longer side of a picture in a file, at least
_PANEL = 384  # shorter side in pixels that a panel of a comparison should have


def draw_overlay(
    image: NDArray[np.uint8],
    nuclei: Nuclei,
    *,
    legend: bool = True,
    thickness: int | None = None,
    mpp: float | None = None,
    min_side: int = 1,
) -> Picture:
    """Draw the outlines of nuclei on an image, and a legend below it.

    Args:
        image: ``uint8 (H, W, 3)`` RGB; it is not changed.
        nuclei: In pixels of the image; parts outside are cut off. One without outline becomes a dot.
        legend: Add a panel with the names and counts of the types.
        thickness: Width of the lines in pixels; None chooses by the size of the image and of the nuclei.
        mpp: Microns across a pixel of the image; with it the legend has a scale bar.
        min_side: Pixels that the longer side should have at least; smaller images are enlarged by a whole factor.

    Returns:
        ``uint8 (H, W, 3)`` RGB without legend, ``H`` and ``W`` times the factor; with it, higher, and wider where a
        name needs the room.

    Raises:
        ImageError: If the image is not of this form.
        DataError: If a coordinate is not finite.
    """
    small = canvas_of(image)
    check_finite(nuclei)
    factor = max(1, -(-min_side // max(small.shape[:2])))
    canvas, drawn = _enlarged(small, factor), onto_picture(nuclei, (0, 0), (factor, factor))
    draw_onto(canvas, drawn, thickness or line_width(canvas, drawn) + (factor > 1))
    if not legend:
        return canvas
    pixel_um = None if mpp is None else mpp / factor
    return stack_rows([canvas, draw_legend(legend_entries(nuclei), canvas.shape[1], pixel_um=pixel_um)])


def plot_overlay(image: NDArray[np.uint8], nuclei: Nuclei, *, legend: bool = True) -> Image.Image:
    """Return the picture of :func:`draw_overlay` as one that notebooks show.

    Args:
        image: ``uint8 (H, W, 3)`` RGB.
        nuclei: In pixels of the image.
        legend: Add a panel with the names and counts of the types.

    Raises:
        ImageError: If the image is not of this form.
    """
    return Image.fromarray(draw_overlay(image, nuclei, legend=legend))


def write_overlay(
    image: NDArray[np.uint8], nuclei: Nuclei, path: str | Path, *, legend: bool = True, mpp: float | None = None
) -> None:
    """Write the picture of :func:`draw_overlay` to a file; images below 768 px are enlarged.

    Args:
        image: ``uint8 (H, W, 3)`` RGB.
        nuclei: In pixels of the image.
        path: The file; its suffix (``.png``, ``.jpg``, ``.tif``) says the format.
        legend: Add a panel with the names and counts of the types.
        mpp: Microns across a pixel of the image; with it the legend has a scale bar.

    Raises:
        ConfigError: If the suffix stands for no format.
        OutputError: If the file cannot be written.
        ImageError: If the image is not of the form above.
    """
    check_picture_path(path)
    write_picture(draw_overlay(image, nuclei, legend=legend, mpp=mpp, min_side=_READABLE), path)


def check_picture_path(path: str | Path) -> None:
    """Raise :class:`~cellvit.errors.ConfigError` if the suffix of a path stands for no picture format."""
    suffix = Path(path).suffix.lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ConfigError(f"{str(path)!r} ends in {suffix!r}, which is no picture format; use .png, .jpg or .tif")


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture to a file that appears when complete; its suffix says the format."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def draw_instances(
    image: NDArray[np.uint8],
    instance_map: NDArray[Any],
    *,
    type: NDArray[Any] | None = None,
    classes: NucleiClasses | None = None,
) -> Picture:
    """Draw the border pixels of every instance of a map on an image.

    Args:
        image: ``uint8 (H, W, 3)`` RGB.
        instance_map: ``(H, W)`` integers; 0 is background.
        type: ``(N,)`` class id of the instances 1 to N; None leaves all without a type.
        classes: Names and colours of the types.

    Returns:
        ``uint8 (H, W, 3)`` RGB.

    Raises:
        ImageError: If image and map differ in size, or the map holds labels that have no type.
    """
    canvas = canvas_of(image)
    if instance_map.shape != canvas.shape[:2]:
        message = f"instance map {instance_map.shape} on an image {canvas.shape[:2]}; give both the same size"
        raise ImageError(message)
    highest = int(instance_map.max(initial=0))
    kinds = np.zeros(highest, int) if type is None else np.asarray(type)
    if int(instance_map.min(initial=0)) < 0 or highest > len(kinds):
        message = f"labels {instance_map.min()} to {highest}, but {len(kinds)} types; number instances from 1"
        raise ImageError(message)
    colors = np.zeros((len(kinds) + 1, 3), np.uint8)
    for kind in np.unique(kinds).tolist():
        # without any types the outlines are green, which stands out from the stain
        colors[1:][kinds == kind] = (0, 220, 0) if type is None else type_color(classes, kind)
    padded = np.pad(instance_map, 1)
    inner = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (inner > 0) & np.logical_or.reduce([inner != other for other in around])
    canvas[edge] = colors[inner[edge]]
    return canvas


def draw_comparison(image: NDArray[np.uint8], target: Nuclei, pred: Nuclei, *, with_image: bool = True) -> Picture:
    """Draw an image, its true and its predicted nuclei side by side, each with a title and a legend.

    Args:
        image: ``uint8 (H, W, 3)`` RGB; small ones are enlarged by a whole factor.
        target: True nuclei, in pixels of the image.
        pred: Predicted nuclei, in pixels of the image.
        with_image: Show the image without nuclei, too.

    Returns:
        ``uint8 (h, w, 3)`` RGB: the panels "Image", "Truth" and "Prediction".

    Raises:
        ImageError: If the image is not of this form.
        DataError: If a coordinate is not finite.
    """
    small = canvas_of(image)
    factor = max(1, -(-_PANEL // min(small.shape[:2]))) if min(small.shape[:2]) >= 32 else 8
    big = _enlarged(small, factor)
    size = text_size(big.shape[1])
    panels = []
    for title, nuclei in (("Image", None), ("Truth", target), ("Prediction", pred))[0 if with_image else 1 :]:
        canvas = big.copy()
        entries = []
        if nuclei is not None:
            check_finite(nuclei)
            moved = onto_picture(nuclei, (0, 0), (factor, factor))
            draw_onto(canvas, moved, line_width(canvas, moved) + (factor > 1))
            entries = legend_entries(nuclei)
        rows = [draw_legend([(None, title)], canvas.shape[1], size=size), canvas]
        panels.append(stack_rows([*rows, draw_legend(entries, canvas.shape[1], size=size)] if entries else rows))
    return _side_by_side(panels, gap=max(4, size // 2))


def canvas_of(image: NDArray[np.uint8]) -> Picture:
    """Return a copy to draw on."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        message = f"image is {image.dtype} {image.shape}; give uint8 (H, W, 3) RGB with at least one pixel"
        raise ImageError(message)
    return np.array(image, order="C")


def onto_picture(nuclei: Nuclei, origin: tuple[int, ...], scale: tuple[float, float]) -> Nuclei:
    """Return nuclei in the pixels of a picture.

    Args:
        nuclei: In pixels of an image.
        origin: ``(x, y)`` of the image's pixel at the picture's top left corner.
        scale: Pixels of the picture per pixel of the image, ``(x, y)``.
    """
    return nuclei.transform(scale=scale, shift=(-origin[0] * scale[0], -origin[1] * scale[1]))


def line_width(canvas: Picture, nuclei: Nuclei) -> int:
    """Return a line width in pixels that is visible on a screen and leaves the inside of the nuclei to be seen."""
    if not len(nuclei):
        return 1
    visible = int(max(canvas.shape[:2])) / 700
    thin = float(np.median(nuclei.bbox[:, 2:] - nuclei.bbox[:, :2])) / 12
    return max(1, round(min(visible, thin)))


def draw_onto(canvas: Picture, nuclei: Nuclei, thickness: int) -> None:
    """Draw outlines on a canvas, all of one type in one call; rare types last, so that they stay visible."""
    kinds, counts = np.unique(nuclei.type, return_counts=True)
    for kind in kinds[np.argsort(-counts, kind="stable")].tolist():
        part = nuclei.select(nuclei.type == kind)
        color = type_color(nuclei.classes, kind)
        # OpenCV counts from the centre of the first pixel
        fixed = np.rint(np.clip(part.contour_points - 0.5, -_REACH, _REACH) * 2**_SHIFT).astype(np.int32)
        outlines = [o for o in np.split(fixed, part.contour_offsets[1:-1]) if len(o)]
        if outlines:
            cv2.polylines(canvas, outlines, True, color, thickness, cv2.LINE_AA, _SHIFT)
        for x, y in np.clip(part.centroid[np.diff(part.contour_offsets) == 0], -_REACH, _REACH).tolist():
            cv2.circle(canvas, (math.floor(x), math.floor(y)), _DOT, color, -1, cv2.LINE_AA)


def _enlarged(picture: Picture, factor: int) -> Picture:
    """Return a picture, smoothly enlarged by a whole factor."""
    if factor == 1:
        return picture
    side = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(cv2.resize(picture, side, interpolation=cv2.INTER_CUBIC), np.uint8)


def _side_by_side(panels: list[Picture], *, gap: int) -> Picture:
    """Return panels from left to right on white, all as wide as the widest, aligned at the top."""
    height, width = np.max([p.shape[:2] for p in panels], axis=0).tolist()
    padded = []
    for i, panel in enumerate(panels):
        below, right = height - panel.shape[0], width - panel.shape[1] + (gap if i < len(panels) - 1 else 0)
        padded.append(np.pad(panel, ((0, below), (0, right), (0, 0)), constant_values=255))
    return np.concatenate(padded, axis=1)
