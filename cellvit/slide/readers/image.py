"""An ordinary image as a slide of one level, held in memory."""

from pathlib import Path

from cellvit.io.images import Rgb8, read_image, read_mpp
from cellvit.slide.readers.base import SlideReader


class ImageSlide(SlideReader):
    """An image file that is read whole: PNG, JPEG, and TIFF with palettes, CMYK, floats or a rotation.

    Args:
        path: The file.

    Raises:
        ImageError: As :func:`cellvit.io.images.read_image` does.
    """

    reader = "pillow"

    def __init__(self, path: Path) -> None:
        self._pixels = read_image(path)
        height, width = self._pixels.shape[:2]
        mpp = read_mpp(path)
        super().__init__(path, level_sizes=((width, height),), stated_mpp=None if mpp is None else (mpp, mpp))

    def close(self) -> None:
        """Forget the pixels; closing twice does nothing more."""
        super().close()
        self._pixels = self._pixels[:0]

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        return self._pixels[y : y + height, x : x + width].copy()
