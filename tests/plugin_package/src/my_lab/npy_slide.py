"""A reader of slides: pixels as a file of NumPy, and what is known about them as JSON beside it."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ImageError
from cellvit.slide.readers.base import OtherReaderError, SlideReader


class NpySlide(SlideReader):
    """A slide in scan.npy, half of it in scan.half.npy, micrometres in scan.json.

    Args:
        path: The file of full resolution.

    Raises:
        OtherReaderError: If it is no array that NumPy can map into memory.
        ImageError: If the array is no picture in RGB, or the smaller one is not half of it.
    """

    reader = "npy"
    suffixes: ClassVar[frozenset[str]] = frozenset({".npy"})  # what is a slide in a folder
    priority = 60  # the reader with the highest number is asked first; OpenSlide has 30

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell by its first bytes whether a file is one of NumPy: suffixes lie."""
        with path.open("rb") as file:
            return file.read(6) == b"\x93NUMPY"

    def __init__(self, path: Path) -> None:
        self._levels = [_mapped(path)]
        half = path.with_suffix(".half.npy")
        if half.exists():
            self._levels.append(_mapped(half))
            if self._levels[1].shape[:2] != tuple(side // 2 for side in self._levels[0].shape[:2]):
                raise ImageError(f"'{half}' is not half of '{path}'; make it again, or remove it")
        about = path.with_suffix(".json")
        stated = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
        super().__init__(
            path,
            level_sizes=tuple((level.shape[1], level.shape[0]) for level in self._levels),
            stated_mpp=(stated["mpp"], stated["mpp"]) if "mpp" in stated else None,  # None: the user is asked
            facts={"kind": "NumPy", "channels": 3, "bits": 8, "compression": "none"},  # for `cellvit info`
            warnings=[] if stated else [f"there is no '{about.name}' that says what it is"],
        )

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return a region, which lies inside, as a new array. Threads may call this at the same time."""
        return np.array(self._levels[level][y : y + height, x : x + width])

    def close(self) -> None:
        """Forget the arrays; closing twice does nothing more."""
        super().close()
        self._levels = []


def _mapped(path: Path) -> NDArray[np.uint8]:
    """Return an array that stays on the disk, however large it is."""
    try:  # a file of others must not run code: no pickles
        pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise OtherReaderError(str(error)) from error  # another reader may know it
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ImageError(f"'{path}' is {pixels.dtype} {pixels.shape}; save (H, W, 3) RGB of uint8")
    return pixels
