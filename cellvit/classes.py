"""Nucleus types with their names and colours, and names of tissues; those of PanNuke where a model states none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellvit.errors import ConfigError, DataError

Rgb = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class NucleiClasses:
    """Names and colours of the nucleus types; index 0 is background.

    Attributes:
        names: One name per type id.
        colors: One RGB triple per type id, 0..255.
        learnt_on: Tissue, and in brackets the data, that the types were learnt on, such as ``"colon (CoNSeP)"``: on
            other tissue they are a guess. Empty where nobody stated it.
    """

    names: tuple[str, ...]
    colors: tuple[Rgb, ...]
    learnt_on: str = ""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ConfigError(f"{len(self.names)} class names but {len(self.colors)} colours; give one colour per name")

    def __len__(self) -> int:
        return len(self.names)


PANNUKE_COLORS: dict[str, Rgb] = {
    "Neoplastic": (184, 7, 33),
    "Inflammatory": (24, 229, 167),
    "Connective": (99, 117, 255),
    "Dead": (193, 212, 8),
    "Epithelial": (230, 90, 14),
}
"""Colours of the PanNuke types, in the order of their ids 1 to 5.

They have the hues of the published ones and differ more: by CIEDE2000 at least 15 from each other, for normal sight and
for the three kinds of colour blindness as Machado et al. (2009) simulate them, and at least 13 from the colours of H&E
tissue. Of the published ones inflammatory and epithelial are 3 apart without red cones, and epithelial is 8 from eosin.
"""

PANNUKE = NucleiClasses(("Background", *PANNUKE_COLORS), ((0, 0, 0), *PANNUKE_COLORS.values()))
"""The types of PanNuke."""

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

NO_TYPE = "No type"
"""What nuclei of type 0 are called: background is no type of a nucleus."""

BACKGROUND_COLOR: Rgb = (128, 128, 128)
"""Colour of nuclei without a known type."""

PALETTE: tuple[Rgb, ...] = (
    *PANNUKE_COLORS.values(),
    (0, 17, 0),
    (68, 68, 68),
    (119, 136, 102),
    (68, 0, 255),
    (119, 170, 255),
    (102, 102, 85),
    (119, 187, 102),
)
"""Colours of types without a colour of their own, by id from 1 on."""


def type_name(classes: NucleiClasses | None, type_id: int) -> str | None:
    """Return the name of a type.

    Args:
        classes: Known names, or None.
        type_id: Class id.

    Returns:
        The name, ``"Type k"`` where none is known, None for 0 and below: no type.

    Example:
        >>> type_name(None, 3)
        'Type 3'
    """
    if type_id <= 0:
        return None
    if classes is not None and type_id < len(classes):
        return classes.names[type_id]
    return f"Type {type_id}"


def type_label(classes: NucleiClasses | None, type_id: int) -> str:
    """Return the name of a type as :func:`type_name` does, and :data:`NO_TYPE` for 0 and below."""
    return type_name(classes, type_id) or NO_TYPE


def type_color(classes: NucleiClasses | None, type_id: int) -> Rgb:
    """Return the colour of a type: the stated one, or one that depends on the id alone; grey for no type."""
    if type_id <= 0:
        return BACKGROUND_COLOR
    if classes is not None and type_id < len(classes):
        return classes.colors[type_id]
    return palette_color(type_id)


def palette_color(type_id: int) -> Rgb:
    """Return the colour of a type id of 1 or more that has no colour of its own."""
    return PALETTE[(type_id - 1) % len(PALETTE)]


def hex_color(color: Rgb) -> str:
    """Return a colour as HTML writes it.

    Args:
        color: Red, green and blue, 0 to 255.

    Example:
        >>> hex_color((200, 30, 30))
        '#c81e1e'
    """
    return f"#{bytes(color).hex()}"


def standard_colors(names: Sequence[str]) -> tuple[Rgb, ...]:
    """Return a colour per class name, background first: PanNuke's by name, others by id."""
    types = enumerate(names[1:], start=1)
    return ((0, 0, 0), *(PANNUKE_COLORS.get(name, palette_color(i)) for i, name in types))[: len(names)]


def default_classes(
    count: int,
    *,
    names: Sequence[str] | None = None,
    colors: Sequence[Sequence[int]] | None = None,
    learnt_on: str = "",
) -> NucleiClasses:
    """Return names and colours for a number of classes, filling in what is not given.

    Args:
        count: Number of nucleus types, background counted.
        names: One per type, background first; None takes PanNuke's names for six classes, else ``Type k``.
        colors: One RGB triple per type; None takes the colours of PanNuke's types by name, else a palette.
        learnt_on: Tissue that the types were learnt on.

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
    return NucleiClasses(tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in colors), learnt_on)


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


def classes_from_map(names: Mapping[int, str]) -> NucleiClasses | None:
    """Return classes for names keyed by id, as released files hold them; None if there are none.

    Ids that are missing get ``"Background"`` (0) or ``"Type k"``.
    """
    if not names:
        return None
    fallback = {i: type_name(None, i) or "Background" for i in range(max(names) + 1)}
    known = tuple(names.get(i, name) for i, name in fallback.items())
    return NucleiClasses(known, standard_colors(known))


def classes_to_list(classes: NucleiClasses | None) -> list[dict[str, Any]] | None:
    """Return classes as plain data for a file, ``[{"name": ..., "color": [r, g, b]}, ...]`` by id, or None.

    Types also say what they were ``"learnt_on"``, where that is known.
    """
    if classes is None:
        return None
    pairs = zip(classes.names, classes.colors, strict=True)
    data: list[dict[str, Any]] = [{"name": name, "color": [int(c) for c in color]} for name, color in pairs]
    if classes.learnt_on:
        data[1:] = [{**entry, "learnt_on": classes.learnt_on} for entry in data[1:]]
    return data


def classes_from_list(data: Any, *, source: str) -> NucleiClasses | None:
    """Return classes from the plain data of :func:`classes_to_list`.

    Args:
        data: What the file holds, or None.
        source: The file; named in errors.

    Raises:
        DataError: If the data are of another form.
    """
    if data is None:
        return None
    try:
        names = tuple(str(entry["name"]) for entry in data)
        colors: list[Rgb] = []
        for entry in data:
            red, green, blue = entry["color"]
            colors.append((int(red), int(green), int(blue)))
        learnt_on = dict.fromkeys(str(entry["learnt_on"]) for entry in data if "learnt_on" in entry)
        return NucleiClasses(names, tuple(colors), ", ".join(learnt_on))
    except (TypeError, KeyError, ValueError) as error:
        message = f"{source} has classes {data!r}; write a list of {{name, color: [r, g, b]}}"
        raise DataError(message) from error
