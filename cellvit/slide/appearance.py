"""Pictures that are not what the models know: stained tissue on bright ground. Told before the network runs."""

import numpy as np

from cellvit.io.images import Rgb8

_BLACK = 40  # brightest channel; a picture whose brightest pixels are below is nearly black
_DARK = 60  # brightest channel of the dark ground of fluorescence
_GROUND = 0.5
_HAZE = 120  # brightest channel; a picture of which 70 % are brighter has no dark ground, not even a hazy one
_STAIN = 8  # by which red and blue exceed green in tissue stained with H&E
_STAINED = 0.03
_BRIGHT = 170
_LIT = 0.01
_PIXELS = 2**20


def appearance_remarks(picture: Rgb8) -> list[str]:
    """Return a sentence if a picture cannot be stained tissue on bright ground: nearly black, or like fluorescence.

    Pure white is no part of the picture. A black frame around a slide is: below, pixels that are not dark must hardly
    ever have the colours of H&E for a picture to be like fluorescence.

    Args:
        picture: ``(H, W, 3)`` uint8.

    Example:
        >>> appearance_remarks(np.full((8, 8, 3), (230, 180, 210), np.uint8))
        []
        >>> appearance_remarks(np.full((8, 8, 3), 3, np.uint8))[0].split(":")[0]
        'the picture is nearly black'
    """
    step = max(1, round((picture.shape[0] * picture.shape[1] / _PIXELS) ** 0.5))
    pixels = picture[::step, ::step].reshape(-1, 3)
    pixels = pixels[(pixels < 255).any(axis=1)]
    if not len(pixels):
        return []
    highest, lowest, green = pixels.max(axis=1), pixels.min(axis=1), pixels[:, 1].astype(np.int16)
    brightest = float(np.percentile(highest, 99))
    if brightest < _BLACK:
        return [
            f"the picture is nearly black: 99 % of its pixels are darker than {brightest + 1:.0f} of 255; look at it, "
            "and check its bits and its exposure: no nuclei can be expected"
        ]
    dark = highest < _DARK
    tinted = np.minimum(pixels[:, 0], pixels[:, 2]).astype(np.int16) > green + _STAIN
    stained = (tinted & (green > 0.4 * highest) & ~dark).sum() / max(1, (~dark).sum())
    ground, haze = float(dark.mean()), float(np.percentile(highest, 30))
    if stained >= _STAINED or haze >= _HAZE or (ground <= _GROUND and (lowest > _BRIGHT).mean() >= _LIT):
        return []
    return [
        f"the picture looks like fluorescence or dark field: 30 % of it is darker than {haze + 1:.0f} of 255, and "
        "hardly anything has the colours of H&E on bright ground, for which the models are made; look at it before "
        "you use the nuclei"
    ]
