"""Names and colours of nucleus types, names of tissues."""

from collections.abc import Sequence

from cellvit.errors import ConfigError
from cellvit.types import NucleiClasses, Rgb

PANNUKE_COLORS: dict[str, Rgb] = {
    "Neoplastic": (255, 0, 0),
    "Inflammatory": (34, 221, 77),
    "Connective": (35, 92, 236),
    "Dead": (254, 255, 0),
    "Epithelial": (255, 159, 68),
}
"""Colours of the PanNuke types, in the order of their ids 1 to 5."""

PANNUKE = NucleiClasses(("Background", *PANNUKE_COLORS), ((0, 0, 0), *PANNUKE_COLORS.values()))

NO_TYPE = "No type"
"""What nuclei of type 0 are called: background is no type of a nucleus."""

PANNUKE_TISSUES: tuple[str, ...] = (
    "Adrenal_gland",
    "Bile-duct",
    "Bladder",
    "Breast",
    "Cervix",
    "Colon",
    "Esophagus",
    "HeadNeck",
    "Kidney",
    "Liver",
    "Lung",
    "Ovarian",
    "Pancreatic",
    "Prostate",
    "Skin",
    "Stomach",
    "Testis",
    "Thyroid",
    "Uterus",
)
"""The tissues of PanNuke as its files spell them, in the order of their ids 0 to 18."""

PALETTE: tuple[Rgb, ...] = (
    *PANNUKE_COLORS.values(),
    (0, 200, 210),
    (140, 86, 255),
    (120, 180, 0),
    (0, 110, 90),
    (255, 90, 200),
    (150, 75, 30),
    (20, 20, 120),
)
"""Colours of types without a colour of their own, by id from 1 on."""


def palette_color(type_id: int) -> Rgb:
    """Return the colour of a type id of 1 or more that has no colour of its own."""
    return PALETTE[(type_id - 1) % len(PALETTE)]


def standard_colors(names: Sequence[str]) -> tuple[Rgb, ...]:
    """Return a colour per class name, background first: PanNuke's by name, others by id."""
    types = enumerate(names[1:], start=1)
    return ((0, 0, 0), *(PANNUKE_COLORS.get(name, palette_color(i)) for i, name in types))[: len(names)]


def default_classes(
    count: int, *, names: Sequence[str] | None = None, colors: Sequence[Sequence[int]] | None = None
) -> NucleiClasses:
    """Return names and colours for a number of classes, filling in what is not given.

    Args:
        count: Number of nucleus types, background counted.
        names: One per type, background first; None takes PanNuke's names for six classes, else ``Type k``.
        colors: One RGB triple per type; None takes the colours of PanNuke's types by name, else a palette.

    Returns:
        The classes.

    Raises:
        ConfigError: If the count is below 2, or names or colours are not ``count`` many.

    Example:
        >>> default_classes(3).names
        ('Background', 'Type 1', 'Type 2')
    """
    if count < 2:
        raise ConfigError(f"num_nuclei_classes {count} must count background and at least one type: 2 or more")
    if names is None:
        names = PANNUKE.names if count == len(PANNUKE) else ("Background", *(f"Type {i}" for i in range(1, count)))
    if colors is None:
        colors = standard_colors(names)
    for what, values in (("class_names", names), ("class_colors", colors)):
        if len(values) != count:
            raise ConfigError(
                f"{len(values)} {what} for num_nuclei_classes {count}; give one per class, background first"
            )
    return NucleiClasses(tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in colors))


def default_tissues(count: int, *, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the tissues a model tells apart, or whose scores it averages.

    Args:
        count: Number of tissue classes of the model; 0 if it has no tissue head.
        names: One per tissue; None takes PanNuke's names for 19 classes, else none.

    Returns:
        The names; empty if they are not known.

    Raises:
        ConfigError: If a model with a tissue head is given another number of names.
    """
    if names is None:
        return PANNUKE_TISSUES if count == len(PANNUKE_TISSUES) else ()
    if count and names and len(names) != count:
        raise ConfigError(f"{len(names)} tissue_names for num_tissue_classes {count}; give one per tissue")
    return tuple(names)
