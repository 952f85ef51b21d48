"""Names and colours of nucleus types."""

from collections.abc import Sequence

from cellvit.errors import ConfigError
from cellvit.types import NucleiClasses, Rgb

PANNUKE = NucleiClasses(
    names=("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"),
    colors=((0, 0, 0), (255, 0, 0), (34, 221, 77), (35, 92, 236), (254, 255, 0), (255, 159, 68)),
)
PALETTE: tuple[Rgb, ...] = (
    (255, 0, 0), (34, 221, 77), (35, 92, 236), (254, 255, 0), (255, 159, 68),
    (180, 80, 220), (0, 200, 200), (255, 105, 180), (140, 90, 40), (120, 120, 120),
)  # fmt: skip


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
        known = dict(zip(PANNUKE.names, PANNUKE.colors, strict=True))
        colors = [(0, 0, 0), *(known.get(n, PALETTE[i % len(PALETTE)]) for i, n in enumerate(names[1:]))]
    for what, values in (("class_names", names), ("class_colors", colors)):
        if len(values) != count:
            raise ConfigError(
                f"{len(values)} {what} for num_nuclei_classes {count}; give one per class, background first"
            )
    return NucleiClasses(tuple(names), tuple((int(r), int(g), int(b)) for r, g, b in colors))
