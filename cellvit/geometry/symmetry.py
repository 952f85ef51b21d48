"""The symmetries of the square: an image seen mirrored, upside down or transposed, and its maps turned back."""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from cellvit.errors import ConfigError

if TYPE_CHECKING:  # the command line asks for the numbers of views long before it needs torch
    from torch import Tensor

VIEWS = (1, 2, 4, 8)
"""How many symmetries can be asked for, see :func:`symmetries`."""


@dataclass(frozen=True)
class Symmetry:
    """One of the eight ways to lay a square onto itself: mirrored first, transposed afterwards.

    What is done to an image is its view. Methods with ``undo`` bring what was found in the view back to the image.

    Attributes:
        transpose: Whether rows become columns.
        flip_x: Whether left and right change places.
        flip_y: Whether top and bottom change places.

    Example:
        >>> import torch
        >>> view = Symmetry(transpose=True, flip_x=True)
        >>> view.apply(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist()
        [[3, 6], [2, 5], [1, 4]]
        >>> view.undo(view.apply(torch.tensor([[1, 2, 3], [4, 5, 6]]))).tolist()
        [[1, 2, 3], [4, 5, 6]]
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: "Tensor") -> "Tensor":
        """Return the view of images ``(..., H, W)``; ``(..., W, H)`` if it is transposed."""
        flipped = self._flip(image)
        return flipped.mT if self.transpose else flipped

    def undo(self, view: "Tensor") -> "Tensor":
        """Return maps of the image from maps of its view, on the last two axes."""
        return self._flip(view.mT if self.transpose else view)

    def undo_vectors(self, view: "Tensor") -> "Tensor":
        """Return a vector per pixel of the image, ``(..., 2, H, W)``, x before y, from those of its view.

        Example:
            >>> import torch
        >>> pointing_right = torch.tensor([1.0, 0.0]).view(2, 1, 1)
            >>> Symmetry(flip_x=True).undo_vectors(pointing_right).flatten().tolist()
            [-1.0, 0.0]
        """
        import torch

        x, y = self.undo(view).unbind(-3)
        if self.transpose:
            x, y = y, x
        return torch.stack([-x if self.flip_x else x, -y if self.flip_y else y], dim=-3)

    def directions(self, count: int) -> "Tensor":
        """Return the direction in the view that each direction of the image becomes.

        Args:
            count: Number of directions, ``K``; direction ``k`` has the angle ``2πk/K``, counted from x towards y.

        Returns:
            ``(K,)`` int64, a permutation of 0..K-1.

        Raises:
            ConfigError: If a direction becomes one that is not among them.

        Example:
            >>> Symmetry(flip_x=True).directions(4).tolist()  # right, down, left, up
            [2, 1, 0, 3]
        """
        divisor = 4 if self.transpose else 2 if self.flip_x else 1
        if count % divisor:
            turned = "transposed" if self.transpose else "mirrored"
            raise ConfigError(
                f"{count} rays do not fall onto each other in a {turned} view; use a head with a multiple of 4, such "
                f"as 32, or average fewer views: tta {2 if count % 4 == 2 else 1}"
            )
        import torch

        index = torch.arange(count)
        if self.flip_x:
            index = count // 2 - index
        if self.flip_y:
            index = -index
        if self.transpose:
            index = count // 4 - index
        return index % count

    def _flip(self, tensor: "Tensor") -> "Tensor":
        axes = [axis for axis, flipped in ((-1, self.flip_x), (-2, self.flip_y)) if flipped]
        return tensor.flip(axes) if axes else tensor


def symmetries(count: int) -> tuple[Symmetry, ...]:
    """Return the first of the eight symmetries of the square.

    Args:
        count: 1: the image as it is; 2: also left and right exchanged; 4: also upside down, and both; 8: also these
            four transposed.

    Raises:
        ConfigError: If it is another number.

    Example:
        >>> symmetries(2)
        (Symmetry(transpose=False, flip_x=False, flip_y=False), Symmetry(transpose=False, flip_x=True, flip_y=False))
    """
    if type(count) is not int or count not in VIEWS:
        raise ConfigError(f"tta {count!r} is no number of views that can be averaged; use 1 (off), 2, 4 or 8")
    turns = (Symmetry(transpose, x, y) for transpose, y, x in product((False, True), repeat=3))
    return tuple(turns)[:count]
