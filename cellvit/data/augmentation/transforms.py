"""Augmentation as plain data, on albumentations 2.

A configuration maps names to parameters, ``{"blur": {"p": 0.3}}``: what is listed is switched on, what is left out
of the parameters keeps the published value (or ours, for those that are not published). Normalisation is not
here, it is part of the model.
"""

import inspect
import os
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from cellvit.errors import ConfigError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A

from cellvit.data.augmentation.appearance import GaussianNoise, HedJitter, LowerResolution, Superpixels
from cellvit.data.augmentation.elastic import ElasticAffine
from cellvit.data.augmentation.stains import Jpeg, StainMix

AugmentationConfig = Mapping[str, Mapping[str, Any]]


def build_augmentation(config: AugmentationConfig | None = None, *, size: int = 256) -> Any:
    """Build the augmentation of training patches.

    Call the result with ``image=(H, W, 3) uint8`` and ``masks=[instance_map, type_map]``, both ``(H, W)`` int16;
    geometric transforms act on all three, labels by nearest neighbour. Seed it with :func:`seed_augmentation`.

    Args:
        config: Parameters by name; None is :data:`PUBLISHED`, an empty mapping changes nothing. The order of
            application is the published one, whatever the order of the mapping.
        size: Height and width of the patches in pixels.

    Returns:
        An ``albumentations.Compose``.

    Raises:
        ConfigError: If a name or a parameter is unknown or a value does not work; the message lists the known ones.

    Example:
        >>> [type(t).__name__ for t in build_augmentation({"blur": {"p": 0.3}, "rotate90": {}}).transforms]
        ['RandomRotate90', 'Blur']
    """
    wanted = PUBLISHED if config is None else config
    unknown = sorted(set(wanted) - set(_BUILDERS))
    if unknown:
        raise ConfigError(f"no augmentation {', '.join(map(repr, unknown))}; known: {', '.join(_BUILDERS)}")
    return A.Compose([_build(name, wanted[name], size) for name in _BUILDERS if name in wanted])


def seed_augmentation(augmentation: Any, seed: int) -> None:
    """Make the next call of an augmentation depend on the seed alone.

    ``Compose.set_random_seed`` of albumentations gives every transform a generator of its own with the same seed, so
    all draw the same number to decide whether they act and flips come in pairs. One shared generator avoids that.

    Args:
        augmentation: What :func:`build_augmentation` returned.
        seed: Any integer from 0.
    """
    augmentation.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _build(name: str, values: Mapping[str, Any] | None, size: int) -> Any:
    builder, values = _BUILDERS[name], dict(values or {})
    known = [k for k in inspect.signature(builder).parameters if k != "size"]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"augmentation {name!r} takes no parameter {', '.join(map(repr, unknown))}; it takes: {', '.join(known)}"
        )
    probability = values.get("p", 0.0)
    if not (isinstance(probability, int | float) and 0 <= probability <= 1):
        raise ConfigError(f"augmentation {name!r} has p={probability!r}; give a probability from 0 to 1")
    try:
        return builder(size, **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augmentation {name!r} does not work with {values}: {error}") from error


def _rotate90(size: int, *, p: float = 0.5) -> Any:
    return A.RandomRotate90(p=p)


def _horizontal_flip(size: int, *, p: float = 0.5) -> Any:
    return A.HorizontalFlip(p=p)


def _vertical_flip(size: int, *, p: float = 0.5) -> Any:
    return A.VerticalFlip(p=p)


def _downscale(size: int, *, p: float = 0.15, scale: float = 0.5) -> Any:
    """Make the patch smaller by ``scale`` and larger again, nearest neighbour both ways."""
    pair = {"downscale": cv2.INTER_NEAREST, "upscale": cv2.INTER_NEAREST}
    return A.Downscale(scale_range=(scale, scale), interpolation_pair=pair, p=p)


def _blur(size: int, *, p: float = 0.2, limit: int = 10) -> Any:
    """Average over a box of odd size, 3 to at most ``limit`` pixels."""
    if limit < 3:
        raise ValueError(f"limit {limit} is below the smallest box, 3")
    return A.Blur(blur_limit=(3, limit - 1 + limit % 2), p=p)  # albumentations rounds an even limit up


def _gauss_noise(size: int, *, p: float = 0.25, variance_limit: float = 50.0) -> GaussianNoise:
    """Add normal noise per channel; its variance, on the 0..255 scale, is uniform in [0, limit]."""
    return GaussianNoise(variance_limit=variance_limit, p=p)


def _color_jitter(
    size: int,
    *,
    p: float = 0.2,
    brightness: float = 0.25,
    contrast: float = 0.25,
    saturation: float = 0.1,
    hue: float = 0.05,
) -> Any:
    return A.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=p)


def _superpixels(
    size: int, *, p: float = 0.1, p_replace: float = 0.1, segments: int = 200, max_size: int | None = None
) -> Superpixels:
    """Flatten a share of superpixels, found at a side of at most ``max_size`` (half the patch if None) pixels."""
    side = max(1, size // 2) if max_size is None else max_size
    return Superpixels(p_replace=p_replace, segments=segments, max_size=side, p=p)


def _zoom_blur(size: int, *, p: float = 0.1, max_factor: float = 1.05) -> Any:
    return A.ZoomBlur(max_factor=(1.0, max_factor), step_factor=(0.01, 0.03), p=p)


def _random_resized_crop(size: int, *, p: float = 0.1, scale: tuple[float, float] = (0.5, 1.0)) -> Any:
    """Cut a square whose side is a share of the patch's and resize it to the patch."""
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale {scale!r} is not 0 < low <= high <= 1")
    heights = (max(1, round(low * size)), max(1, round(high * size)))
    exact = cv2.INTER_NEAREST_EXACT  # plain nearest of OpenCV shifts labels by up to half a pixel against the image
    return A.RandomSizedCrop(min_max_height=heights, size=(size, size), mask_interpolation=exact, p=p)


def _elastic(
    size: int, *, p: float = 0.2, alpha: float = 0.5, sigma: float = 25.0, alpha_affine: float = 15.0
) -> ElasticAffine:
    return ElasticAffine(alpha=alpha, sigma=sigma, alpha_affine=alpha_affine, p=p)


def _scale(size: int, *, p: float = 0.5, limit: tuple[float, float] = (0.8, 1.25)) -> ElasticAffine:
    """Zoom in or out around the centre (not published); what lies outside is filled by reflection."""
    return ElasticAffine(alpha=0.0, sigma=1.0, alpha_affine=0.0, zoom=limit, p=p)


def _hed_jitter(size: int, *, p: float = 0.5, scale: float = 0.1, shift: float = 0.02) -> HedJitter:
    """Vary the amounts of haematoxylin, eosin and residual stain (not published)."""
    return HedJitter(scale=scale, shift=shift, p=p)


def _resolution(size: int, *, p: float = 0.25, scale: tuple[float, float] = (0.4, 0.9)) -> LowerResolution:
    """Reduce and enlarge the patch smoothly, as a slide of lower magnification is resampled (not published)."""
    return LowerResolution(scale=scale, p=p)


def _stain_mix(size: int, *, p: float = 0.5, strength: float = 1.0, spread: float = 1.0) -> StainMix:
    """Move the colours of the tissue towards those of another laboratory (not published)."""
    return StainMix(strength=strength, spread=spread, p=p)


def _jpeg(size: int, *, p: float = 0.3, quality: tuple[int, int] = (30, 90)) -> Jpeg:
    """Compress the patch as JPEG (not published)."""
    return Jpeg(quality=quality, p=p)


def _auto_contrast(size: int, *, p: float = 0.2, cutoff: float = 0.1) -> Any:
    """Stretch each channel from its percentiles ``cutoff`` and ``100 - cutoff`` to 0 and 255 (not published).

    So QuPath gives pixels to a model.
    """
    return A.AutoContrast(cutoff=cutoff, method="pil", p=p)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "rotate90": _rotate90,
    "horizontal_flip": _horizontal_flip,
    "vertical_flip": _vertical_flip,
    "downscale": _downscale,
    "blur": _blur,
    "gauss_noise": _gauss_noise,
    "color_jitter": _color_jitter,
    "superpixels": _superpixels,
    "zoom_blur": _zoom_blur,
    "random_resized_crop": _random_resized_crop,
    "elastic": _elastic,
    "scale": _scale,
    "hed_jitter": _hed_jitter,
    "resolution": _resolution,
    "stain_mix": _stain_mix,
    "jpeg": _jpeg,
    "auto_contrast": _auto_contrast,
}

_OURS = ("scale", "hed_jitter", "resolution", "stain_mix", "jpeg", "auto_contrast")


def _defaults(name: str) -> Mapping[str, Any]:
    parameters = inspect.signature(_BUILDERS[name]).parameters
    return MappingProxyType({k: v.default for k, v in parameters.items() if k != "size"})


PUBLISHED: AugmentationConfig = MappingProxyType({name: _defaults(name) for name in _BUILDERS if name not in _OURS})
"""The augmentations of the paper with their probabilities and parameters."""
