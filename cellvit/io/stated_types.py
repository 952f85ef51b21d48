"""Types of nuclei from what a file says of each: the name of a class, the number of a type, or both."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import PANNUKE_COLORS, NucleiClasses, Rgb, palette_color, standard_colors, type_name
from cellvit.io.qupath import StatedClass

_BACKGROUND = "Background"
_NAMELESS = re.compile(r"Type ([1-9][0-9]{0,3})")  # what a type is called that has no name


class _Said(NamedTuple):
    """What is said of a nucleus: the name of its class, whether anything is said of one, and the number of its type."""

    name: str | None
    given: bool
    number: int | None


class StatedTypes:
    """Collects what is said of nuclei, and tells their types when all is known.

    The name of a class wins over every number: other programs keep it, people correct it. A number is used where the
    file's own list of classes gives it that name, or where no name is said and the list knows the number.

    Args:
        classes: The file's own list of classes, or None.
        listed: Whether the file has a list at all, if only one that says that its types have no names.

    Example:
        >>> types = StatedTypes(None, listed=False)
        >>> said = [StatedClass(name, given=True, color=None) for name in ("Tumor", "Stroma", "Tumor")]
        >>> codes = np.array([types.code(one, number) for one, number in zip(said, (2, 1, 1))])
        >>> ids, classes, notes = types.resolve(codes)
        >>> ids.tolist(), classes.names
        ([1, 2, 1], ('Background', 'Tumor', 'Stroma'))
    """

    def __init__(self, classes: NucleiClasses | None, *, listed: bool) -> None:
        self._classes, self._listed = classes, listed
        self._codes: dict[_Said, int] = {}
        self._colors: dict[str, Rgb | None] = {}

    def code(self, stated: StatedClass, number: Any = None) -> int:
        """Return a code for what is said of a nucleus; the same for the same.

        Args:
            stated: Its class.
            number: The number of its type as the file has it, or None.
        """
        if stated.name is not None and self._colors.get(stated.name) is None:
            self._colors[stated.name] = stated.color
        return self._codes.setdefault(_Said(stated.name, stated.given, _whole(number)), len(self._codes))

    def resolve(self, codes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NucleiClasses | None, list[str]]:
        """Return the types.

        Args:
            codes: ``(N,)`` code of every nucleus.

        Returns:
            The type of every nucleus ``(N,)``, names and colours of the types, and what the user should know.
        """
        said = list(self._codes)
        ids, classes = self._by_list(said) if self._listed else self._by_name(said)
        lost = [i for i, one in enumerate(said) if not one.given and (one.number or 0) > 0 and not ids[i]]
        count, notes = int(np.isin(codes, lost).sum()), []
        if count:
            notes.append(
                f"{count:,} nuclei state the number of a type, such as {said[lost[0]].number}, without the name of a "
                "class, and the file lists no class of that number: they have no type"
            )
        return np.array([*ids, 0], np.int32)[codes], classes, notes

    def _by_name(self, said: Sequence[_Said]) -> tuple[list[int], NucleiClasses | None]:
        """Return the type of everything that is said, where names alone count."""
        found = dict.fromkeys(one.name for one in said if one.name is not None)
        names = [name for name in found if name != _BACKGROUND]
        if set(names) <= set(PANNUKE_COLORS):
            names = list(PANNUKE_COLORS)
        ids = {name: i for i, name in enumerate(names, start=1)}
        types = [min(one.number or 0, 0) if one.name is None else ids.get(one.name, 0) for one in said]
        names = [_BACKGROUND, *names]
        return types, NucleiClasses(tuple(names), self._colored(names, standard_colors(names))) if found else None

    def _by_list(self, said: Sequence[_Said]) -> tuple[list[int], NucleiClasses | None]:
        """Return the type of everything that is said, where the file has a list of classes."""
        names = (_BACKGROUND,) if self._classes is None else self._classes.names
        ids = {name: i for i, name in reversed(list(enumerate(names)))}
        types = [self._listed_type(one, ids) for one in said]
        new = tuple(dict.fromkeys(str(one.name) for one, kind in zip(said, types, strict=True) if kind is None))
        if not new:
            return [kind or 0 for kind in types], self._classes
        first = max(len(names), 1 + max(kind or 0 for kind in types))
        known = (*names, *(f"Type {i}" for i in range(len(names), first)))
        colors = ((0, 0, 0),) if self._classes is None else self._classes.colors
        colors += tuple(palette_color(i) for i in range(len(names), first + len(new)))
        added = self._colored(new, colors[first:])
        ids = {name: i for i, name in enumerate(new, start=first)}
        full = [ids[str(one.name)] if kind is None else kind for one, kind in zip(said, types, strict=True)]
        return full, NucleiClasses((*known, *new), (*colors[:first], *added))

    def _listed_type(self, said: _Said, ids: Mapping[str, int]) -> int | None:
        """Return the type by the list; None for a name that it does not have."""
        name, given, number = said
        if name is None:
            highest = 0 if given else len(self._classes or ()) - 1
            return 0 if number is None or number > max(highest, 0) else number
        if number is not None and type_name(self._classes, number) == name:
            return number
        nameless = _NAMELESS.fullmatch(name)
        if name in ids or nameless is None:
            return ids.get(name)
        kind = int(nameless[1])
        return kind if type_name(self._classes, kind) == name else None

    def _colored(self, names: Sequence[str], colors: tuple[Rgb, ...]) -> tuple[Rgb, ...]:
        """Return the colours that the file states, and the given ones where it states none."""
        return tuple(self._colors.get(name) or color for name, color in zip(names, colors, strict=True))


def _whole(number: Any) -> int | None:
    """Return a number that other programs may have made text or a float of, or None."""
    try:
        value = float(number)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(value) if value.is_integer() else None
