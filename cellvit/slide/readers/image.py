"""An ordinary image as a slide of one level, held in memory."""

from pathlib import Path

from cellvit.errors import ImageError
from cellvit.io.images import Rgb8, image_with_remarks, open_pillow, read_resolution
from cellvit.io.scenes import SceneName
from cellvit.slide.readers.base import LARGE, READERS, OtherReaderError, SlideReader


@READERS.register("image")
class ImageSlide(SlideReader):
    """An image file that is read whole: PNG, JPEG, and TIFF with palettes, CMYK, floats or a rotation.

    Args:
        path: The file.
        scene: Number, from 0, or name of the image to read, where a TIFF holds several.

    Raises:
        OtherReaderError: Where :func:`cellvit.io.images.read_image` raises ImageError.
    """

    reader = "pillow"
    priority = 10
    scenes = True
    addresses = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Return True: what no other reader takes is tried."""
        return True

    @classmethod
    def is_slide(cls, path: Path) -> bool:
        """Tell whether an image is large.

        Args:
            path: The file.
        """
        with open_pillow(path) as image:
            return image.width * image.height > LARGE

    def __init__(self, path: Path, *, scene: SceneName | None = None) -> None:
        try:
            self._pixels, remarks = image_with_remarks(path, scene=scene)
        except ImageError as error:
            raise OtherReaderError(str(error)) from error.__cause__
        height, width = self._pixels.shape[:2]
        super().__init__(
            path,
            level_sizes=((width, height),),
            resolution=read_resolution(path, scene=scene),
            warnings=remarks,
        )

    def close(self) -> None:
        """Forget the pixels; closing twice does nothing more."""
        super().close()
        self._pixels = self._pixels[:0]

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        return self._pixels[y : y + height, x : x + width].copy()
