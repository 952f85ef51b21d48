"""Finding the nuclei of one image of any size: resample, tile, predict, post-process, join at the seams."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cellvit.errors import ConfigError
from cellvit.inference.instanseg import fitted
from cellvit.inference.postprocessing import with_postprocessor
from cellvit.inference.precision import choose_precision
from cellvit.inference.protocol import (
    NucleiModel,
    Progress,
    autocast_context,
    evaluation_mode,
    load_model,
    postprocessor_of,
)
from cellvit.inference.resources import memory_advice
from cellvit.inference.tta import unwrap_tta, with_tta
from cellvit.io.images import to_rgb
from cellvit.measurement.measure import TileMeasurement, measure_missing
from cellvit.measurement.neighbors import with_neighbors
from cellvit.measurement.stains import Stains, image_stains
from cellvit.model.build import image_arrays
from cellvit.slide.stitching import merge_tiles
from cellvit.slide.tiling import TileGrid
from cellvit.slide.view import SlideView
from cellvit.types import Nuclei

MIN_OVERLAP = 8
"""Pixels; with less, two tiles have too little in common to tell that they cut the same nucleus."""


def segment_image(
    image: ArrayLike,
    *,
    model: str | Path | NucleiModel = "nano",
    mpp: float | tuple[float, float] = 0.25,
    tile_size: int = 1024,
    overlap: int = 64,
    batch_size: int = 1,
    device: str = "auto",
    precision: str = "auto",
    tta: int = 1,
    postprocessor: Mapping[str, Any] | None = None,
    measurements: bool = True,
    stains: Stains | None = None,
    progress: Progress | None = None,
    trust: Sequence[str] = (),
) -> Nuclei:
    """Find the nuclei of an image of any size.

    An image whose resolution differs from the model's by more than 5 % is resampled; one larger than a tile is
    cut into overlapping tiles, and each nucleus is kept once. Beyond the image, memory is bounded by one batch of
    tiles.

    Args:
        image: ``(H, W, 3)`` RGB, ``(H, W)`` grey, or with alpha; uint8, uint16, or float in [0, 1].
        model: Name of a model, path of its folder or checkpoint, or the model itself.
        mpp: Resolution of the image in microns per pixel; ``(x, y)`` where pixels are not square.
        tile_size: Side of a tile in pixels at the model's resolution.
        overlap: Pixels that neighbouring tiles share at least, at the model's resolution. A nucleus longer than
            that is joined from two pieces if a seam crosses it.
        batch_size: Tiles that go through the network together; the last digits of floats depend on it.
        device: ``"auto"`` (CUDA, else MPS, else CPU; a model that is passed in stays where it is), ``"cpu"``,
            ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        precision: ``"auto"`` (bfloat16 where the device is faster with it, see :mod:`cellvit.inference.precision`),
            ``"32-true"``, ``"bf16-mixed"`` or, on a GPU, ``"16-mixed"``.
        tta: Average the maps over 2, 4 or 8 mirrored and turned views, which takes as many times as long; 1 is off. See
            :class:`cellvit.inference.tta.TestTimeAugmentation`.
        postprocessor: Other arguments for the model's post-processor, such as ``{"min_prob": 0.5}``; those left out
            stay as they are. See :func:`cellvit.inference.postprocessing.with_postprocessor`.
        measurements: Measure every nucleus: shape, stain, texture, neighbours; see :mod:`cellvit.measurement`.
        stains: How the stains absorb; None estimates it from the image. Where that fails and there are nuclei, a
            warning (:class:`UserWarning`) says so.
        progress: Called after every batch with the number of tiles done and of all tiles.
        trust: Packages whose classes the model's file may name, see :func:`cellvit.model.checkpoint.load`.

    Returns:
        The nuclei in pixels of the given image; pixel ``i`` covers ``[i, i + 1)``. No nuclei give zero rows with all
        columns present. ``label`` is 1..N.

    Raises:
        ImageError: If the image is not of the forms above.
        ConfigError: If a setting cannot work, or a batch of tiles does not fit into memory.
        UnknownPluginError: If there is no model of that name.
        WeightsError: If the weights cannot be used.
    """
    pixels = to_rgb(image)
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} must be 1 or more")
    axes = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    if len(axes) != 2 or not all(np.isfinite(axis) and axis > 0 for axis in axes):
        raise ConfigError(f"mpp {mpp} is not a resolution; give microns per pixel, such as 0.25")
    network, views = unwrap_tta(load_model(model, device=device, trust=trust), tta)
    network = with_postprocessor(fitted(network, pixels), postprocessor)
    predictor = with_tta(network, views)
    chosen = choose_precision(precision, network)
    for note in chosen.notes:
        warnings.warn(note, stacklevel=2)
    autocast = autocast_context(chosen.name, network.device)
    view = SlideView(ArrayImage(pixels), mpp=axes, target_mpp=network.mpp)
    grid = tile_grid(view.width, view.height, tile_size=tile_size, overlap=overlap)
    measure = None
    if measurements:
        across, down = (axis / scale for axis, scale in zip(axes, view.scale, strict=True))
        measure = TileMeasurement(grid, (across, down), image_stains(pixels) if stains is None else stains)
    found: list[tuple[int, Nuclei]] = []
    with evaluation_mode(network), memory_advice(tile_size=tile_size, batch_size=batch_size):
        for first in range(0, len(grid), batch_size):
            indices = range(first, min(first + batch_size, len(grid)))
            tiles = np.stack([view.read(t.x, t.y, t.width, t.height) for t in map(grid.tile, indices)])
            with autocast:
                maps = _predict(predictor, tiles)
            for index, tile, item in zip(indices, tiles, maps, strict=True):
                whole = network.postprocess(item)
                found.append((index, whole.nuclei if measure is None else measure(index, tile, whole)))
            if progress is not None:
                progress(len(found), len(grid))
    nuclei = replace(merge_tiles(grid, found), classes=network.classes)
    if measure is None:
        return replace(view.to_level0(nuclei), mpp=float(np.mean(axes)))
    if measure.stains.doubt and stains is None and len(nuclei):
        warnings.warn(measure.stains.doubt, stacklevel=2)
    nuclei = measure_missing(view, nuclei, mpp=measure.mpp, stains=measure.stains)
    return replace(with_neighbors(view.to_level0(nuclei), mpp=axes), mpp=float(np.mean(axes)))


@dataclass(frozen=True)
class ArrayImage:
    """An image in memory as :class:`SlideView` reads a slide.

    Attributes:
        image: ``(H, W, 3)`` RGB.
    """

    image: NDArray[np.uint8]

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of the one level."""
        return ((self.image.shape[1], self.image.shape[0]),)

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """The whole image."""
        return (0, 0, *self.level_sizes[0])

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Return a part that lies inside, a view of the image."""
        return self.image[y : y + height, x : x + width]


def tile_grid(width: int, height: int, *, tile_size: int, overlap: int) -> TileGrid:
    """Return the tiles of an image whose nuclei can be joined at the seams.

    Raises:
        ConfigError: If tiles of that size and overlap do not work.
    """
    if overlap < MIN_OVERLAP:
        raise ConfigError(f"overlap {overlap} is too small to join nuclei at the seams; use {MIN_OVERLAP} px or more")
    return TileGrid(width=width, height=height, tile_size=tile_size, overlap=overlap)


def _predict(model: NucleiModel, tiles: NDArray[np.uint8]) -> list[dict[str, NDArray[Any]]]:
    """Return the activated maps of tiles ``(B, H, W, 3)``, one dictionary without batch axis per tile."""
    batch = torch.from_numpy(tiles).to(model.device).permute(0, 3, 1, 2).float() / 255
    return image_arrays(model.predict_maps(batch), postprocessor_of(model))
