"""Samples of pixels: bringing arrays and what a TIFF says about its samples into one form, RGB of 8 bits."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellvit.errors import ImageError

if TYPE_CHECKING:  # the library is loaded when the first file is read
    from tifffile import TiffFile

Rgb8 = NDArray[np.uint8]

_DEPTHS = (8, 10, 12, 14)  # of cameras, in samples of 16 bits
_CLEAR = 0.05
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of the tag ExtraSamples


def to_rgb(image: ArrayLike) -> Rgb8:
    """Return an image as 8-bit RGB.

    Grey is repeated to three channels and alpha is laid on white. 8 bits stay as they are; 16 bits are divided by
    257 and rounded (65,535 becomes 255); floats are read as [0, 1].

    Args:
        image: ``(H, W)``, or ``(H, W, C)`` with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) channels;
            uint8, uint16, or float in [0, 1]. Alpha is not multiplied into the colours ("unassociated").

    Returns:
        ``(H, W, 3)`` uint8; the input itself if it has that form already.

    Raises:
        ImageError: If it is something else, has no pixels, or a float lies outside [0, 1].

    Example:
        >>> to_rgb(np.array([[0, 65535]], dtype=np.uint16)).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    if isinstance(image, str | Path):
        raise ImageError(f"{str(image)!r} is a path, not an array; open it with cellvit.io.images.read_image first")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        hint = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"an array of shape {np.shape(image)} is not an image; give (H, W, 3) RGB or (H, W) grey{hint}"
        )
    if array.size == 0:
        raise ImageError(f"an image of shape {np.shape(image)} has no pixels; give 1 x 1 px or more")
    array = _eight_bits(array)
    if array.shape[2] in (2, 4):
        array = _on_white(array)
    return np.ascontiguousarray(array if array.shape[2] == 3 else array.repeat(3, axis=2))


@dataclass(frozen=True)
class Samples:
    """What the samples of a pixel are.

    Attributes:
        count: Samples of a pixel.
        colours: How many of them, the first, are colours: 1 (grey) or 3 (RGB).
        alpha: Number of the sample that is alpha, or None.
        associated: Whether the colours are multiplied by alpha already ("premultiplied").
        white: Value of white where integers do not use their whole range, else None.
        stated: Whether the file says so; what 16 bits hold is else to be judged.
    """

    count: int
    colours: int
    alpha: int | None = None
    associated: bool = False
    white: int | None = None
    stated: bool = False

    def rgb(self, array: NDArray[Any]) -> Rgb8:
        """Return pixels as 8-bit RGB; alpha is laid on white, samples that are neither are left out.

        Args:
            array: ``(H, W)`` or ``(H, W, C)`` with ``count`` channels.

        Raises:
            ImageError: Where :func:`to_rgb` refuses the values.
        """
        array = array[..., None] if array.ndim == 2 else array
        kept = [*range(self.colours), *([] if self.alpha is None else [self.alpha])]
        if kept != list(range(array.shape[2])):
            array = array[..., kept]
        if self.white is not None:
            array = _scaled(array, self.white)
        if self.alpha is None or not self.associated:
            return to_rgb(array)
        array = _eight_bits(array).astype(np.uint16)
        return to_rgb(np.minimum(array[..., :-1] + 255 - array[..., -1:], 255).astype(np.uint8))

    def judged(self, array: NDArray[Any]) -> tuple["Samples", list[str]]:
        """Return the samples with the white that the values need, and one sentence per guess.

        Args:
            array: Pixels of the file, all or enough of them, ``(H, W)`` or ``(H, W, C)``.
        """
        array = array[..., None] if array.ndim == 2 else array
        remarks = [] if self.alpha is None else clear_remarks(array[..., self.alpha])
        if array.dtype != np.uint16:
            return self, remarks
        largest = int(array[..., : self.colours].max(initial=0))
        white = 65535 if self.white is None else self.white
        if self.stated and largest <= white:
            return self, remarks
        bits = next((depth for depth in _DEPTHS if largest < 2**depth), 16)
        judged = replace(self, white=None if bits == 16 or not largest else 2**bits - 1)
        if self.stated:
            said = f"it states {white.bit_length()} significant bits, and its samples go up to {largest:,}"
            remarks.append(f"{said}; {bits} bits are used (white is {2**bits - 1:,})")
        elif judged.white is not None:
            remarks.append(
                f"its samples of 16 bits go up to {largest:,} only, and the file does not say how many bits count; "
                f"{bits} bits are used (white is {judged.white:,}): state SignificantBits, or save 8 bits per sample"
            )
        return judged, remarks


def clear_remarks(alpha: NDArray[Any]) -> list[str]:
    """Return a sentence if nearly all of an image is transparent, which is read as white.

    Args:
        alpha: ``(H, W)`` integers, or floats in [0, 1].
    """
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    covered = float(alpha.mean()) / opaque if alpha.size else 1.0
    if covered >= _CLEAR:
        return []
    return [
        f"its alpha channel makes {1 - covered:.1%} of the image transparent, which is read as white; if alpha means "
        "something else here, save the image without it"
    ]


def tiff_samples(tiff: "TiffFile", page: Any, channels: int) -> tuple[Samples, list[str]]:
    """Return what the samples of an image of a TIFF are, and a sentence about what is left out.

    Alpha is what the tag ExtraSamples calls so. How many bits count is taken from BitsPerSample, from SignificantBits
    (OME-XML, or the JSON of tifffile) and from MaxSampleValue.

    Args:
        tiff: The file.
        page: The first page of the image, as tifffile knows it.
        channels: Samples of a pixel of the image, its pages put together.

    Raises:
        ImageError: If the channels are neither grey nor RGB.
    """
    bits = _stated_bits(tiff, page)
    white = None if bits is None else 2**bits - 1
    own = int(page.samplesperpixel)
    if own != channels:  # colours that lie in a page each
        return Samples(channels, channels, white=white, stated=bits is not None), []
    colours = 3 if page.photometric in (2, 6) or own in (3, 4) else 1
    if own < colours or (colours == 1 and own > 2):
        raise ImageError(f"its pixels have {own} samples, neither grey nor RGB; save it as RGB")
    extra = [int(kind) for kind in page.extrasamples or ()]
    extra = [0] * (own - colours - len(extra)) + extra[max(0, len(extra) - (own - colours)) :]
    alpha = next((i for i, kind in enumerate(extra) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    dropped = [colours + i + 1 for i in range(len(extra)) if i != alpha]
    found = Samples(
        own,
        colours,
        alpha=None if alpha is None else colours + alpha,
        associated=alpha is not None and extra[alpha] == _ASSOCIATED,
        white=white,
        stated=bits is not None,
    )
    if not dropped:
        return found, []
    which = f"sample {dropped[0]}" if len(dropped) == 1 else f"samples {dropped[0]} to {dropped[-1]}"
    return found, [
        f"{which} of each pixel is left out: the file does not say that it is alpha (ExtraSamples {extra}); the "
        f"first {colours} are read as {'RGB' if colours == 3 else 'grey'}"
    ]


def _stated_bits(tiff: "TiffFile", page: Any) -> int | None:
    """Return how many bits of a sample count, if the file says that it is not all of them."""
    stated = page.bitspersample
    if page.dtype is None or page.dtype.kind not in "ub" or not isinstance(stated, int):
        return None
    size = 8 * page.dtype.itemsize
    if stated < size:
        return stated
    if size != 16:
        return None
    values = [_significant_bits(tiff), *(_bits_of(page.tags.valueof(tag)) for tag in ("MaxSampleValue", 341))]
    return min((bits for bits in values if bits is not None and 1 < bits < 16), default=None)


def _bits_of(largest: Any) -> int | None:
    """Return the bits of the largest value that a sample may have, or None where none is stated."""
    try:
        return int(np.max(largest)).bit_length()
    except (TypeError, ValueError):
        return None


def _significant_bits(tiff: "TiffFile") -> int | None:
    """Return the largest SignificantBits of OME-XML, else that of the JSON of tifffile, or None."""
    found = re.findall(r'\bSignificantBits="(\d+)"', (tiff.ome_metadata or "") if tiff.is_ome else "")
    found += [str((data or {}).get("SignificantBits")) for data in tiff.shaped_metadata or ()]
    return max((int(bits) for bits in found if bits.isdecimal()), default=None)


def _scaled(array: NDArray[Any], white: int) -> Rgb8:
    """Return integers of 0 to ``white`` as 0 to 255."""
    scaled = (np.minimum(array, white).astype(np.uint32) * 255 + white // 2) // white
    return np.asarray(scaled, np.uint8)


def _eight_bits(array: NDArray[Any]) -> Rgb8:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also refuses nan
            raise ImageError(
                f"a float image has values from {low:g} to {high:g}; scale it to [0, 1] or convert to uint8"
            )
        return np.rint(array * 255.0).astype(np.uint8)
    raise ImageError(
        f"an image of {array.dtype} values has no known range; convert it to uint8, uint16 or float in [0, 1]"
    )


def _on_white(array: Rgb8) -> Rgb8:
    alpha = array[..., -1:].astype(np.uint32)
    color = array[..., :-1].astype(np.uint32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
