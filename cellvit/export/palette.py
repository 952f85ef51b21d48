"""Names and colours for type ids: those a model states, those of PanNuke, and stand-ins for all others."""

from collections.abc import Mapping
from typing import Any

from cellvit.classes import palette_color, standard_colors
from cellvit.errors import DataError
from cellvit.types import NucleiClasses, Rgb

BACKGROUND_COLOR: Rgb = (128, 128, 128)
"""Colour of nuclei without a known type."""


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


def type_color(classes: NucleiClasses | None, type_id: int) -> Rgb:
    """Return the colour of a type: the stated one, or one that depends on the id alone; grey for no type."""
    if type_id <= 0:
        return BACKGROUND_COLOR
    if classes is not None and type_id < len(classes):
        return classes.colors[type_id]
    return palette_color(type_id)


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
    """Return classes as plain data for a file, ``[{"name": ..., "color": [r, g, b]}, ...]`` by id, or None."""
    if classes is None:
        return None
    pairs = zip(classes.names, classes.colors, strict=True)
    return [{"name": name, "color": [int(c) for c in color]} for name, color in pairs]


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
        return NucleiClasses(names, tuple(colors))
    except (TypeError, KeyError, ValueError) as error:
        message = f"{source} has classes {data!r}; write a list of {{name, color: [r, g, b]}}"
        raise DataError(message) from error
