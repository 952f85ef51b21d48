"""What is known of a slide before the network runs: resolution, tissue, tiles, fingerprints."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError, ImageError, SourceLostError
from cellvit.geometry.regions import Region
from cellvit.inference.fingerprints import quick_hash
from cellvit.inference.image import tile_grid
from cellvit.inference.resume import TILES_PER_CHUNK
from cellvit.inference.settings import THUMBNAIL, SlideSettings
from cellvit.io.images import Rgb8
from cellvit.io.regions import read_region
from cellvit.io.remote import remote_remarks
from cellvit.measurement.measure import TileMeasurement, stains_at
from cellvit.slide.appearance import appearance_remarks
from cellvit.slide.open import Slide
from cellvit.slide.resolution import Resolution, slide_resolution
from cellvit.slide.tiling import CroppedGrid, cropped_grid
from cellvit.slide.tissue import TissueMask, find_tissue
from cellvit.slide.view import SlideView

TISSUE_MPP = 8.0
"""Microns per pixel at which tissue is looked for; fat needs as much. Slides of more than 33 mm get less."""

_TISSUE_SIDE = 4096

NO_TISSUE = "no tissue was found; look at tissue.png, or search everything with tissue_filter=False"


@dataclass(frozen=True)
class PreparedSlide:
    """A slide that is ready to be segmented.

    Attributes:
        slide: The open slide.
        resolution: Microns per level-0 pixel, and who says so.
        warnings: What the user should know about the file, its resolution, the region, its pixels and the tissue.
        view: The slide at the model's resolution.
        grid: The tiles, cut down to what they hold of the tissue or the region.
        tiles: ``(T,)`` numbers of the tiles to do, ascending: those whose cores hold tissue or part of the region.
        tissue: What decides on the tiles.
        tissue_source: ``"found"``, ``"region"``, ``"found within the region"`` or ``"whole slide"``.
        region: The region of interest, or None.
        thumbnail: ``(h, w, 3)`` uint8 picture of the scanned part.
    """

    slide: Slide
    resolution: Resolution
    warnings: tuple[str, ...]
    view: SlideView
    grid: CroppedGrid
    tiles: NDArray[np.int64]
    tissue: TissueMask
    tissue_source: str
    region: Region | None
    thumbnail: Rgb8

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the view."""
        return self.view.width, self.view.height

    @property
    def only_on(self) -> TissueMask | None:
        """Return the tissue on which nuclei must lie to be kept, or None where all are: without the tissue filter."""
        return self.tissue if self.tissue_source.startswith("found") else None

    @property
    def tissue_mm2(self) -> float:
        """Return the area of what is searched for nuclei, in square millimetres."""
        x, y = (mpp / scale for mpp, scale in zip(self.resolution.mpp, self.view.scale, strict=True))
        return self.tissue.area_mm2(self.size, (x, y))

    def whole_tiles(self, tiles: NDArray[np.int64]) -> float:
        """Return how many whole tiles have as many pixels as some tiles, which may be cut down.

        Args:
            tiles: Their numbers.
        """
        boxes = self.grid.boxes_of(tiles)
        pixels = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).sum()
        return float(pixels / (self.grid.columns.size * self.grid.rows.size))

    @property
    def parts(self) -> int:
        """Return the number of parts the tiles are done in."""
        return -(-len(self.tiles) // TILES_PER_CHUNK)

    def part(self, number: int) -> NDArray[np.int64]:
        """Return the tiles of a part."""
        return self.tiles[number * TILES_PER_CHUNK : (number + 1) * TILES_PER_CHUNK]

    def batches(self, number: int, size: int) -> list[list[int]]:
        """Return the tiles of a part in batches; those of a batch are of one size, as tiles may be cut down.

        Args:
            number: Of the part.
            size: Tiles of a batch, at most.

        Returns:
            Numbers of tiles, the large ones first: what lacks memory says so at once.
        """

        def sides(index: int) -> tuple[int, int]:
            tile = self.grid.tile(index)
            return -tile.height, -tile.width

        groups = [list(same) for _, same in groupby(sorted(self.part(number).tolist(), key=sides), sides)]
        return [group[first : first + size] for group in groups for first in range(0, len(group), size)]

    def read_tile(self, index: int) -> tuple[Rgb8, bool]:
        """Return the pixels of a tile and whether they could be read; if not, they are white.

        One damaged place must not cost the rest of the slide.

        Args:
            index: Number of the tile.
        """
        tile = self.grid.tile(index)
        try:
            return self.view.read(tile.x, tile.y, tile.width, tile.height), True
        except SourceLostError:  # it ends the run, which goes on with what is finished when the slide is back
            raise
        except ImageError:
            return np.full((tile.height, tile.width, 3), 255, np.uint8), False

    @cached_property
    def measurement(self) -> TileMeasurement:
        """What measures the nuclei of tiles; the stains are estimated from the tissue when it is first asked for."""
        rows, columns = np.nonzero(self.tissue.mask)
        height, width = self.tissue.mask.shape
        places = (np.stack([columns, rows], axis=1) + 0.5) * (self.view.width / width, self.view.height / height)
        across, down = (mpp / scale for mpp, scale in zip(self.resolution.mpp, self.view.scale, strict=True))
        return TileMeasurement(self.grid, (across, down), stains_at(self.view, places))

    @property
    def mpp(self) -> float:
        """Return the microns per level-0 pixel, the mean of both axes."""
        return sum(self.resolution.mpp) / 2

    def fingerprints(self, settings: SlideSettings, *, weights: str, version: str) -> dict[str, Any]:
        """Return all that the nuclei depend on.

        Args:
            settings: Settings of this run.
            weights: Digest of the model, 64 hexadecimal digits.
            version: Version of this package.
        """
        facts: Mapping[str, Any] = {
            **settings.affects_result,
            "mpp": list(self.resolution.mpp),
            "region": None if self.region is None else self.region.digest,
            "tiles": hashlib.sha256(self.tiles.tobytes() + self.grid.boxes_of(self.tiles).tobytes()).hexdigest(),
            "cellvit_version": version,
        }
        slide = {"quick_hash": quick_hash(self.slide), "reader": self.slide.reader}
        stated = (text for name, text in self.slide.properties.items() if name.endswith(".scene"))
        scene = next(stated, settings.scene)
        if scene is not None:  # results of files with one image stay valid
            slide["scene"] = str(scene)
        return {"slide": slide, "model": {"weights": weights}, "settings": dict(facts)}


def prepare_slide(slide: Slide, settings: SlideSettings, *, model_mpp: float) -> PreparedSlide:
    """Return everything that is decided before the network runs.

    Args:
        slide: An open slide.
        settings: Settings of this run.
        model_mpp: Microns per pixel the model is made for.

    Raises:
        ImageError: If no resolution is stated or given, or the slide cannot be read.
        ConfigError: If the resolution is too far from the model's, or tiles do not work.
        DataError: If the region of interest cannot be read.
    """
    resolution, warnings = slide_resolution(slide, mpp=settings.mpp, magnification=settings.magnification)
    view = SlideView(slide, mpp=resolution.mpp, target_mpp=model_mpp)
    grid = tile_grid(view.width, view.height, tile_size=settings.tile_size, overlap=settings.overlap)
    # readers of other packages may not know of warnings
    warnings = [*remote_remarks(slide.path), *getattr(slide, "warnings", ()), *warnings]
    region = None
    if settings.roi is not None:
        region, notes = read_region(settings.roi)
        warnings = [*warnings, *notes]
        if settings.origin == "bounds":  # drawn on the scanned part, as everything then counts
            region = region.moved(*slide.bounds[:2])
    thumbnail, damage = view.thumbnail_with_remarks(THUMBNAIL)
    tissue, source, finer = _tissue(view, thumbnail, region, settings, mpp=resolution.mpp)
    warnings = [*warnings, *(finer or damage), *appearance_remarks(thumbnail)]
    if not tissue.mask.any():
        warnings = [*warnings, NO_TISSUE]
    cropped, tiles = cropped_grid(grid, lambda boxes: tissue.coverage(boxes, (view.width, view.height)))
    return PreparedSlide(
        slide=slide,
        resolution=resolution,
        warnings=tuple(warnings),
        view=view,
        grid=cropped,
        tiles=tiles,
        tissue=tissue,
        tissue_source=source,
        region=region,
        thumbnail=thumbnail,
    )


def _tissue(
    view: SlideView, thumbnail: Rgb8, region: Region | None, settings: SlideSettings, *, mpp: tuple[float, float]
) -> tuple[TissueMask, str, list[str]]:
    """Return what is to be searched (tissue, the region, or the tissue in the region), its name, and what is damaged.

    Damage is told of the finer picture only, where one is made.
    """
    width, height = view.slide.bounds[2:]
    side = min(_TISSUE_SIDE, max(THUMBNAIL, round(max(width, height) * mpp[0] / TISSUE_MPP)))
    damage: list[str] = []
    if side > THUMBNAIL:  # only large slides need a finer picture for tissue than for the eye
        thumbnail, damage = view.thumbnail_with_remarks(side)
    shape = thumbnail.shape[:2]
    allowed = None if region is None else region.mask(shape, view.slide.bounds)
    if allowed is not None and not allowed.any():
        raise DataError(
            f"region {str(settings.roi)!r} does not touch the slide, whose scanned part is x, y, width, height = "
            f"{view.slide.bounds}; give polygons in level-0 pixels of this slide"
        )
    if not settings.tissue_filter:
        everything = np.ones(shape, dtype=bool)
        searched = TissueMask(everything if allowed is None else allowed)
        return searched, "whole slide" if region is None else "region", damage
    tissue = find_tissue(thumbnail, mpp=mpp[0] * view.slide.bounds[2] / shape[1])
    if allowed is None:
        return tissue, "found", damage
    allowed = cv2.resize(allowed.astype(np.uint8), tissue.mask.shape[::-1], interpolation=cv2.INTER_AREA) > 0
    return TissueMask(tissue.mask & allowed), "found within the region", damage
