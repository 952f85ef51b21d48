"""Where a slide holds tissue, found on its thumbnail; sizes are microns, so that the thumbnail's scale hardly matters.

Both stains of H&E absorb green most and leave red, blue or both: the *stain* of a pixel is ``max(R, B) - G`` in grey
levels. It is zero for white, for every grey (backgrounds, shadows, dust, frames, black pen), and negative for green.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.io.images import Rgb8

_Mask = NDArray[np.bool_]
_Floats = NDArray[np.float32]

_WORK_MPP = 4.0  # finer thumbnails are reduced to this: nuclei and the gaps between cells are not what is looked for
_BLUR_UM = 3.0  # standard deviation: less than a nucleus, more than the noise
_FAINT, _FAINT_MOST = 5.0, 12.0  # grey levels of stain where tissue begins: four times the noise of the glass, but...
_WALL = 4.0  # grey levels by which the wall of a fat cell is darker than the gaps beside it
_WALL_STAIN = 2.0  # grey levels of stain that such a wall has at least, as a scratch in the glass has not
_WALL_UM = 100.0  # width of the window in which a wall has a gap beside it
_BORDER_SHARE = 0.35
_CERTAIN = 16.0  # grey levels of stain that a piece of tissue must reach somewhere; tinted glass does not
_MOST_TINT = 10.0  # grey levels of stain that glass may have, such as that of a yellowed slide
_CLOSE_UM = 30.0  # radius: joins loose cells, and the walls of fat cells
_OPEN_UM = 7.0  # radius: removes lines of colour along sharp edges
_HOLE_UM2 = 20_000.0  # gaps up to this belong to the tissue: glands, vessels, fat cells
_PIECE_UM2 = 5_000.0  # pieces below are specks
_PIECE_SHARE = 0.02  # but in a picture of a few cells a piece may be as small as this share of it
_PEN_UM = 60.0  # radius: half the width of the thinnest pen stroke; ink of thinner lines is left in the tissue
_HALO_UM = 150.0  # how far pale ink reaches around a stroke
_PEN_MARGIN_UM = 24.0  # how far the blurred border of a stroke reaches
_BLACK = 48.0  # grey levels: too dark to see anything in, and JPEG spreads some colour of the tissue there
_RIM_RUN = 3.5  # half widths along the border: a stroke that leaves the picture has 2 to 3, a corner 4, a frame more


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a raster that covers a whole view.

    Attributes:
        mask: ``(h, w)``, True is tissue; pixels are blocks of the view, all of one size.
    """

    mask: _Mask

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != bool or 0 in self.mask.shape:
            message = f"tissue mask is {self.mask.dtype} {self.mask.shape}; give bool (h, w) with at least one pixel"
            raise DataError(message)

    def coverage(self, boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Compute which share of each box is tissue; pixels of the mask that a box cuts count by their cut part.

        Args:
            boxes: ``(N, 4)`` ``(xmin, ymin, xmax, ymax)``, half-open, in pixels of the view. What lies outside the
                view is no tissue.
            size: ``(width, height)`` of the view that the mask covers.

        Returns:
            ``(N,)`` in [0, 1]; 0 for boxes without area.

        Example:
            >>> tissue = TissueMask(np.array([[True, False]]))
            >>> tissue.coverage(np.array([[0.0, 0, 10, 10], [0, 0, 4, 4], [4, 0, 8, 10]]), (10, 10))
            array([0.5 , 1.  , 0.25])
        """
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        height, width = self.mask.shape
        integral = self._integral
        x, y = corners[:, 0::2] * (width / size[0]), corners[:, 1::2] * (height / size[1])
        area = (x[:, 1] - x[:, 0]).clip(0) * (y[:, 1] - y[:, 0]).clip(0)
        x, y = x.clip(0, width), y.clip(0, height)
        inside = (
            _bilinear(integral, x[:, 1], y[:, 1])
            - _bilinear(integral, x[:, 0], y[:, 1])
            - _bilinear(integral, x[:, 1], y[:, 0])
            + _bilinear(integral, x[:, 0], y[:, 0])
        )
        share = np.divide(inside, area, out=np.zeros(len(corners)), where=area > 0)
        return np.asarray(share.clip(0.0, 1.0))  # sums of large integrals end a rounding error outside

    @cached_property
    def _integral(self) -> NDArray[np.int32]:
        """Count the tissue above and left of every corner of a pixel, ``(h + 1, w + 1)``."""
        return np.asarray(cv2.integral(self.mask.view(np.uint8), sdepth=cv2.CV_32S), np.int32)

    def contains(self, points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Tell which points lie on tissue.

        Args:
            points: ``(N, 2)`` ``(x, y)`` in pixels of the view.
            size: ``(width, height)`` of the view that the mask covers.

        Returns:
            ``(N,)``; False outside of the view.

        Example:
            >>> tissue = TissueMask(np.array([[True, False]]))
            >>> tissue.contains(np.array([[0.5, 0.5], [4.9, 9.5], [5, 9.5], [-0.5, 0.5]]), (10, 10))
            array([ True,  True, False, False])
        """
        height, width = self.mask.shape
        xy = np.asarray(points, np.float64).reshape(-1, 2)
        column, row = np.floor(xy * (width / size[0], height / size[1])).astype(np.int64).T
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        return np.asarray(inside & self.mask[row.clip(0, height - 1), column.clip(0, width - 1)])

    def area_mm2(self, size: tuple[int, int], mpp: float | tuple[float, float]) -> float:
        """Return the area of the tissue in mm².

        Args:
            size: ``(width, height)`` of the view that the mask covers.
            mpp: Microns per pixel of that view, one number or ``(x, y)``.
        """
        across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        return float(self.mask.mean() * size[0] * across * size[1] * down / 1e6)

    def to_png(self) -> NDArray[np.uint8]:
        """Return the mask as a grey picture ``(h, w)``: 255 is tissue, 0 is not."""
        return np.where(self.mask, np.uint8(255), np.uint8(0))


def find_tissue(thumbnail: Rgb8, *, mpp: float) -> TissueMask:
    """Find the stained tissue on a thumbnail.

    Glass of any grey, dust, frames and strokes of a blue, green, red or black pen are no tissue. Around a stroke some
    tissue is left out with it; right up to a dark rim of the picture tissue is kept. Pale tissue is tissue, and
    so are gaps in tissue up to 0.02 mm², as between the walls of fat cells; pure fat is found on thumbnails of up to
    8 microns per pixel only, as its walls fade on coarser ones. Grey pictures hold no stain and therefore no tissue.
    Violet ink cannot be told from haematoxylin.

    Args:
        thumbnail: ``uint8 (h, w, 3)`` RGB.
        mpp: Microns per pixel of the thumbnail.

    Returns:
        The mask, as large as the thumbnail; nothing is drawn by chance.

    Raises:
        ImageError: If the thumbnail is not of this form.
        ConfigError: If ``mpp`` is not a positive number.
    """
    if thumbnail.dtype != np.uint8 or thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or 0 in thumbnail.shape:
        raise ImageError(f"thumbnail is {thumbnail.dtype} {thumbnail.shape}; give uint8 (h, w, 3) RGB")
    if not (np.isfinite(mpp) and mpp > 0):
        raise ConfigError(f"mpp={mpp} is no resolution; give microns per pixel of the thumbnail")
    small, mpp_small = _reduced(thumbnail, mpp)
    sigma = max(0.6, _BLUR_UM / mpp_small)  # some blur everywhere: noise of single pixels is no stain
    blurred = cv2.GaussianBlur(small.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    smooth = np.asarray(blurred, np.float32)
    tinted = np.maximum(smooth[..., 0], smooth[..., 2]) - smooth[..., 1]
    tint, noise = _glass(smooth, tinted)
    stain = tinted - np.float32(tint)
    dark = (smooth.max(axis=2) < 0.35 * 255) & (np.ptp(smooth, axis=2) < 30)
    rim = _rim(dark, stain, mpp_small)
    pen = _pen(smooth, dark & ~rim, mpp_small)
    faint = (stain > np.clip(4 * noise, _FAINT, _FAINT_MOST)) | _walls(smooth, stain, mpp_small)
    # a pixel at a border is tissue by its share of the neighbour's stain, however large pixels are
    faint &= (stain > _BORDER_SHARE * cv2.dilate(stain, np.ones((3, 3), np.uint8))) & ~pen
    certain = (stain > _CERTAIN) & ~pen
    rim &= (stain < _FAINT) | (smooth.max(axis=2) < _BLACK)  # dark tissue may touch a rim
    tissue = _pieces(faint, certain, mpp_small) & ~pen & ~rim
    height, width = thumbnail.shape[:2]
    full = cv2.resize(tissue.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return TissueMask(np.asarray(full > 0.5))


def _bilinear(integral: NDArray[np.int32], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an integral image between its corners; exact, as it is bilinear inside every pixel."""
    left = np.minimum(np.floor(x).astype(np.intp), integral.shape[1] - 2)
    top = np.minimum(np.floor(y).astype(np.intp), integral.shape[0] - 2)
    right, below = x - left, y - top
    upper = integral[top, left] * (1 - right) + integral[top, left + 1] * right
    lower = integral[top + 1, left] * (1 - right) + integral[top + 1, left + 1] * right
    return np.asarray(upper * (1 - below) + lower * below)


def _reduced(thumbnail: Rgb8, mpp: float) -> tuple[Rgb8, float]:
    """Return the thumbnail at the working resolution, or as it is where it is coarser."""
    if mpp >= _WORK_MPP:
        return thumbnail, mpp
    height, width = thumbnail.shape[:2]
    size = (max(1, round(width * mpp / _WORK_MPP)), max(1, round(height * mpp / _WORK_MPP)))
    return np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), np.uint8), _WORK_MPP


def _glass(smooth: _Floats, stain: _Floats) -> tuple[float, float]:
    """Return the stain of the empty glass and its noise, from the brightest pixels that are nearly grey."""
    green = smooth[..., 1]
    # pure white fills the parts that were not scanned and says nothing about the glass
    nearly_grey = (np.ptp(smooth, axis=2) < 40) & (green > 120) & (green < 253)
    if nearly_grey.mean() < 0.02:
        return 0.0, 0.0
    bright = stain[nearly_grey & (green > np.percentile(green[nearly_grey], 99) - 15)]
    tint = float(np.median(bright))
    return float(np.clip(tint, 0.0, _MOST_TINT)), 1.48 * float(np.median(np.abs(bright - tint)))


def _walls(smooth: _Floats, stain: _Floats, mpp: float) -> _Mask:
    """Return thin dark lines with a trace of stain: walls of fat cells, whose colour is too weak for the threshold."""
    side = 2 * round(_WALL_UM / mpp / 2) + 1
    window = np.ones((max(3, side), max(3, side)), np.uint8)
    darker = cv2.morphologyEx(smooth[..., 1], cv2.MORPH_BLACKHAT, window, borderType=cv2.BORDER_REFLECT)
    return np.asarray((darker > _WALL) & (stain > _WALL_STAIN))


def _rim(dark: _Mask, stain: _Floats, mpp: float) -> _Mask:
    """Return grey parts that lie along the border of the picture: edges of the scan, what was not scanned, frames.

    They are told from black strokes that leave the picture by how long they lie at the border for their width.
    """
    labels, count = _labels(_opened(dark, _OPEN_UM / mpp))
    if not count:
        return np.zeros_like(dark)
    around = np.concatenate([labels[0], labels[1:, -1], labels[-1, -2::-1], labels[-2:0:-1, 0]])
    starts = np.flatnonzero(around != np.roll(around, 1))
    around = np.roll(around, -starts[0]) if len(starts) else around  # no run goes on from the end to the beginning
    starts = np.flatnonzero(np.diff(around, prepend=-1))
    run, half = np.zeros(count + 1), np.zeros(count + 1)
    np.maximum.at(run, around[starts], np.diff(starts, append=len(around)))
    inside = np.pad((labels > 0).astype(np.uint8), 1)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    np.maximum.at(half, labels.ravel(), distance.ravel())
    tinted = np.bincount(labels.ravel(), weights=(stain >= _FAINT).ravel()) / np.bincount(labels.ravel()).clip(1)
    rims = (run > _RIM_RUN * half) & (tinted < 0.5)
    rims[0] = False
    return np.asarray(rims[labels])


def _pen(smooth: _Floats, dark: _Mask, mpp: float) -> _Mask:
    """Return strokes of a pen, and whatever else is broad and has a colour that tissue never has."""
    hsv = cv2.cvtColor(smooth / 255, cv2.COLOR_RGB2HSV)
    hue, saturation = hsv[..., 0], hsv[..., 1]
    colourful = np.ptp(smooth, axis=2) > 35
    cold, red = (hue > 75) & (hue < 250), (hue > 347) | (hue < 12)
    cores = [cold & (saturation > 0.35) & colourful, red & (saturation > 0.6) & colourful]
    halos = [cold & (saturation > 0.05), red & (saturation > 0.05)]
    found = np.zeros(hue.shape, bool)
    for core, halo in zip(cores, halos, strict=True):
        stroke = _rebuild(_opened(core, _PEN_UM / mpp), core)
        found |= stroke | (halo & _grown(stroke, _HALO_UM / mpp))
    found |= _rebuild(_opened(dark, _PEN_UM / mpp), dark)
    return _grown(found, max(1.0, _PEN_MARGIN_UM / mpp)) if found.any() else found


def _pieces(faint: _Mask, certain: _Mask, mpp: float) -> _Mask:
    """Return the pieces of tissue without specks and small holes; each holds some stain that is certain."""
    closed = _closed(faint, _CLOSE_UM / mpp)
    filled = closed | _small(~closed, _HOLE_UM2 / mpp**2)
    opened = _opened(filled, _OPEN_UM / mpp)
    smallest = min(_PIECE_UM2 / mpp**2, _PIECE_SHARE * faint.size)
    return _rebuild(opened & certain, opened & ~_small(opened, smallest))


def _small(mask: _Mask, area: float) -> _Mask:
    """Return the connected parts of a mask that have less than an area in pixels."""
    labels, _ = _labels(mask)
    sizes = np.bincount(labels.ravel())
    small = sizes < area
    small[0] = False
    return np.asarray(small[labels])


def _rebuild(seed: _Mask, mask: _Mask) -> _Mask:
    """Return the connected parts of a mask that hold a seed."""
    labels, count = _labels(mask)
    kept = np.zeros(count + 1, bool)
    kept[labels[seed]] = True
    kept[0] = False
    return np.asarray(kept[labels])


def _labels(mask: _Mask) -> tuple[NDArray[Any], int]:
    """Return connected parts, numbered from 1, and their number; pixels that share a corner are connected."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.asarray(labels), count - 1


def _grown(mask: _Mask, radius: float) -> _Mask:
    """Return a mask and all pixels within a radius of it; exact distances, as radii are fractions of a pixel."""
    if radius < 1 or not mask.any() or mask.all():
        return mask
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius)


def _shrunk(mask: _Mask, radius: float) -> _Mask:
    """Return the pixels of a mask that are farther than a radius from every other pixel of the picture."""
    return ~_grown(~mask, radius)


def _closed(mask: _Mask, radius: float) -> _Mask:
    """Return a mask with gaps narrower than twice the radius closed."""
    return _shrunk(_grown(mask, radius), radius)


def _opened(mask: _Mask, radius: float) -> _Mask:
    """Return a mask without parts narrower than twice the radius."""
    return _grown(_shrunk(mask, radius), radius)
