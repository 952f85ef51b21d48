"""What the data sets of this package share: how a patch is augmented and what an item holds."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellvit.data.targets import make_targets, relabel
from cellvit.data.transforms import seed_augmentation

_MAX_INT16 = 2**15 - 1


def short_labels(instance_map: NDArray[Any]) -> NDArray[np.int16]:
    """Return an instance map ``(H, W)`` as int16, which OpenCV warps, with room for the labels of mirror images.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background; large labels are numbered anew.

    Example:
        >>> short_labels(np.array([[0, 70_000, 3]]))
        array([[0, 2, 1]], dtype=int16)
    """
    large = int(instance_map.max(initial=0)) > _MAX_INT16 // 2
    return (relabel(instance_map) if large else instance_map).astype(np.int16)


def augment(
    augmentation: Any,
    image: NDArray[np.uint8],
    *,
    instance_map: NDArray[np.int16],
    type_map: NDArray[np.int16],
    seed: int,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Return an augmented image with its instance map and type map.

    Args:
        augmentation: What :func:`cellvit.data.transforms.build_augmentation` returned.
        image: ``(H, W, 3)`` RGB.
        instance_map: ``(H, W)``, 0 is background.
        type_map: ``(H, W)``, 0 is background.
        seed: Decides everything that is random.
    """
    seed_augmentation(augmentation, seed)
    done = augmentation(image=image, masks=[instance_map, type_map])
    return done["image"], done["masks"][0], done["masks"][1]


def make_item(
    image: NDArray[np.uint8],
    *,
    instance_map: NDArray[Any],
    type_map: NDArray[Any],
    name: str,
    counted: bool,
    tissue_type: int = -1,
) -> dict[str, Any]:
    """Return the entries of :class:`cellvit.types.Batch` for one image, without the batch axis.

    Args:
        image: ``(H, W, 3)`` RGB.
        instance_map: ``(H, W)`` integers, 0 is background.
        type_map: ``(H, W)`` integers, 0 is background and -1 a nucleus of unknown type.
        name: Name of the image.
        counted: Whether metrics take it into account.
        tissue_type: Class of the tissue; -1 is unknown.
    """
    return {
        "image": image_tensor(image),
        **make_targets(instance_map, type_map, tissue_type=tissue_type),
        "name": name,
        "counted": torch.tensor(counted),
    }


def image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Return an image ``(H, W, 3)`` uint8 as ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
