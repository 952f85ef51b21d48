"""The elastic and affine warp of albumentations before version 2, in one interpolation."""

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.data.targets import separate_mirrored

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A

_NEGLIGIBLE = 0.02  # pixels; a third of what linear interpolation resolves in 8 bits at a step of full contrast


class ElasticAffine(A.DualTransform):  # type: ignore[misc]  # albumentations is not typed
    """Warp by a random affine map and a smooth random displacement, in one interpolation.

    The elastic transform of albumentations before version 2 moved three points of the patch by up to
    ``alpha_affine`` pixels each, warped by the affine map they define, and then displaced every pixel by uniform
    noise smoothed with ``sigma`` and multiplied by ``alpha``. Version 2 dropped the affine part. Both are here, with
    reflection at the border for image and labels. With the published values the displacement is below 0.02 px: the
    affine part is the augmentation.

    Mirror images that lie apart from their nucleus get labels of their own in the first mask, which is taken to be
    the instance map.

    Args:
        alpha: Strength of the displacement.
        sigma: Standard deviation in pixels of the smoothing of the displacement.
        alpha_affine: Largest movement in pixels of the three points, per axis.
        zoom: Range of a factor around the centre, drawn evenly on the logarithmic scale.
        p: Probability.
    """

    def __init__(
        self,
        *,
        alpha: float,
        sigma: float,
        alpha_affine: float,
        zoom: tuple[float, float] = (1.0, 1.0),
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        if alpha < 0 or sigma <= 0 or alpha_affine < 0 or not 0 < zoom[0] <= zoom[1]:
            message = f"alpha={alpha}, sigma={sigma}, alpha_affine={alpha_affine}, zoom={zoom}: one is out of range"
            raise ValueError(message)
        self.alpha, self.sigma, self.alpha_affine, self.zoom = alpha, sigma, alpha_affine, tuple(zoom)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw where each output pixel comes from: ``map_x`` and ``map_y``, ``(H, W)`` float32."""
        height, width = params["shape"][:2]
        matrix = cv2.invertAffineTransform(self._affine(height, width))
        cols, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        map_x = matrix[0, 0] * cols + matrix[0, 1] * rows + matrix[0, 2]
        map_y = matrix[1, 0] * cols + matrix[1, 1] * rows + matrix[1, 2]
        # Smoothing white noise of variance 1/3 with sigma leaves a standard deviation of 1 / sqrt(12 pi) / sigma.
        if 5 * self.alpha / (6.14 * self.sigma) > _NEGLIGIBLE:
            map_x = map_x + self._displacement(height, width)
            map_y = map_y + self._displacement(height, width)
        return {"map_x": map_x.astype(np.float32), "map_y": map_y.astype(np.float32)}

    def _affine(self, height: int, width: int) -> NDArray[np.float64]:
        """Return the forward map ``(2, 3)`` in (x, y)."""
        centre = np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
        third = min(height, width) // 3
        points = centre + third * np.array([[1, 1], [1, -1], [-1, -1]], np.float32)
        moved = points + self.random_generator.uniform(-self.alpha_affine, self.alpha_affine, (3, 2))
        factor = np.exp(self.random_generator.uniform(*np.log(self.zoom)))
        moved = centre + factor * (moved - centre)
        return np.asarray(cv2.getAffineTransform(points, moved.astype(np.float32)), np.float64)

    def _displacement(self, height: int, width: int) -> NDArray[np.float32]:
        noise = self.random_generator.uniform(-1, 1, (height, width)).astype(np.float32)
        smooth: NDArray[np.float32] = cv2.GaussianBlur(noise, (0, 0), self.sigma) * np.float32(self.alpha)
        return smooth

    def apply(self, img: NDArray[Any], map_x: NDArray[Any], map_y: NDArray[Any], **params: Any) -> NDArray[Any]:
        """Return the warped image."""
        warped: NDArray[Any] = cv2.remap(img, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return warped

    def apply_to_mask(
        self, mask: NDArray[Any], map_x: NDArray[Any], map_y: NDArray[Any], **params: Any
    ) -> NDArray[Any]:
        """Return the warped labels, nearest neighbour."""
        warped: NDArray[Any] = cv2.remap(mask, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
        return warped

    def apply_to_masks(self, masks: Any, *args: Any, **params: Any) -> list[NDArray[Any]]:
        """Return the warped masks; the first one is an instance map."""
        warped = [self.apply_to_mask(mask, **params) for mask in masks]
        map_x, map_y = params["map_x"], params["map_y"]
        height, width = warped[0].shape[:2]
        real = (map_x > -0.5) & (map_x < width - 0.5) & (map_y > -0.5) & (map_y < height - 0.5)
        return [separate_mirrored(warped[0], real), *warped[1:]]
