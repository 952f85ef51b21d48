"""Numbers, sizes, durations and JSON as people and programs read them."""

UNITS = ("B", "kB", "MB", "GB")


def readable_size(size: int) -> str:
    """Return a number of bytes in a unit that suits it.

    Example:
        >>> readable_size(7006394)
        '7.0 MB'
    """
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{size} B"
