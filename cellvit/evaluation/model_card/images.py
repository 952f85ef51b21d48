"""One image of a model card: read, given at a resolution, brought to that of the model, and predicted."""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.data.folder import image_tensor
from cellvit.errors import DataError
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.inference.image import ArrayImage
from cellvit.inference.protocol import NucleiModel, postprocessor_of
from cellvit.io.images import read_image
from cellvit.io.labels import ImageRecord, nearest, read_label
from cellvit.model.build import image_arrays
from cellvit.slide.view import MAX_SCALE, SlideView
from cellvit.types import (
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    UNKNOWN_TYPE,
    NucleiClasses,
    NucleiPrediction,
)

SAME = 0.01
"""Images within this share of a resolution are given as they are."""


@dataclass(frozen=True)
class LabelledImage:
    """An image with its truth.

    Attributes:
        record: Its files.
        pixels: ``(H, W, 3)`` uint8 RGB.
        labels: ``(H, W)`` integers, 0 is background.
        types: Type of label ``i`` at ``i``, -1 if unknown; None if all are unknown.
    """

    record: ImageRecord
    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    types: NDArray[np.int64] | None

    def true_types(self) -> NDArray[np.int64]:
        """Return the type of every true nucleus, -1 where it is unknown."""
        present = np.unique(self.labels)
        present = present[present > 0]
        return np.full(len(present), UNKNOWN_TYPE) if self.types is None else self.types[present]

    def truth(self, shape: tuple[int, int], classes: NucleiClasses) -> NucleiPrediction:
        """Return the true nuclei on a grid of another size ``(H, W)``, each pixel from the nearest label."""
        labels = self.labels if self.labels.shape == shape else nearest(self.labels, shape)
        found = nuclei_from_labels(labels, self.types)
        return replace(found, nuclei=replace(found.nuclei, classes=classes))


@dataclass(frozen=True)
class Found:
    """What a model says of an image.

    Attributes:
        nuclei: Map and table.
        foreground: ``(H, W)`` where its map of nuclei is set; None for a model without such a map.
        type_map: ``(C, H, W)`` probabilities of the types; None for a model without such a map.
    """

    nuclei: NucleiPrediction
    foreground: NDArray[np.bool_] | None
    type_map: NDArray[np.float32] | None


def read_labelled(record: ImageRecord) -> LabelledImage:
    """Read an image and its truth.

    Raises:
        ImageError: If the image cannot be read.
        DataError: If the label cannot be read or is of another size.
    """
    pixels, (labels, types) = read_image(record.image), read_label(record.label)
    if pixels.shape[:2] != labels.shape:
        raise DataError(f"image '{record.image}' is {pixels.shape[:2]} but its label is {labels.shape}; correct it")
    known = None if types is None else np.maximum(types.astype(np.int64), UNKNOWN_TYPE)
    return LabelledImage(record, pixels, labels, known)


def resample_via_mpp(
    pixels: NDArray[np.uint8], *, image_mpp: float, given_mpp: float, model_mpp: float
) -> NDArray[np.uint8]:
    """Return what a model sees of an image that it is given at a coarser resolution.

    The image is averaged over areas to the resolution it is given at, and from there brought to the model's as
    :func:`cellvit.inference.image.segment_image` does it. An image that is coarser than that resolution is given as it
    is.

    Args:
        pixels: ``(H, W, 3)`` RGB.
        image_mpp: Resolution of the image in microns per pixel.
        given_mpp: Resolution it is given at.
        model_mpp: Resolution of the model.

    Returns:
        ``(h, w, 3)`` RGB.

    Raises:
        ConfigError: If a resolution is too far from the model's.

    Example:
        >>> image = np.zeros((40, 61, 3), np.uint8)
        >>> resample_via_mpp(image, image_mpp=0.25, given_mpp=0.5, model_mpp=0.25).shape
        (40, 61, 3)
    """
    height, width = pixels.shape[:2]
    if given_mpp > image_mpp * (1 + SAME):
        factor = image_mpp / given_mpp
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    # Sizes are whole numbers, so the resolution differs a little from the one asked for, and between the axes. That
    # alone must not make it too coarse.
    limit = max(image_mpp, given_mpp, MAX_SCALE * model_mpp)
    mpp = (min(image_mpp * width / pixels.shape[1], limit), min(image_mpp * height / pixels.shape[0], limit))
    view = SlideView(ArrayImage(pixels), mpp=mpp, target_mpp=model_mpp)
    return view.read(0, 0, view.width, view.height)


def predict_image(model: NucleiModel, pixels: NDArray[np.uint8]) -> Found:
    """Run a model on a whole image, as validation does.

    Args:
        model: In evaluation mode.
        pixels: ``(H, W, 3)`` RGB at the model's resolution.
    """
    maps = model.predict_maps(image_tensor(pixels)[None].to(model.device))
    nuclei = model.postprocess(image_arrays(maps, postprocessor_of(model))[0])
    binary, types = maps.get(NUCLEI_BINARY_MAP), maps.get(NUCLEI_TYPE_MAP)
    return Found(
        nuclei=nuclei,
        foreground=None if binary is None else binary[0].argmax(0).cpu().numpy().astype(bool),
        type_map=None if types is None else types[0].float().cpu().numpy(),
    )
