"""Settings of the published implementation, as its checkpoints carry them: names joined by dots, or nested."""

import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from cellvit.errors import WeightsError

DEFAULT_MAGNIFICATION = 40
DEFAULT_CHANNEL = 0.5
_X20 = re.compile(r"(?:^|[^a-z0-9])(?:x20|20x)(?:[^a-z0-9]|$)", re.IGNORECASE)


def value_of(config: Mapping[str, Any], name: str) -> Any:
    """Return a setting, None where it is not stated.

    Args:
        config: The settings.
        name: Its name, joined by dots.

    Example:
        >>> value_of({"data.magnification": 20}, "data.magnification")
        20
        >>> value_of({"data": {"magnification": 20}}, "data.magnification")
        20
    """
    if name in config:
        return config[name]
    first, _, rest = name.partition(".")
    inner = config.get(first)
    return value_of(inner, rest) if rest and isinstance(inner, Mapping) else None


def whole_number(config: Mapping[str, Any], name: str, *, least: int) -> int:
    """Return a setting that counts something.

    Args:
        config: The settings.
        name: See :func:`value_of`.
        least: The smallest value that can be used.

    Raises:
        WeightsError: If it is missing, no whole number, or too small.
    """
    value = value_of(config, name)
    if not _is_whole(value) or value < least:
        raise WeightsError(f"has setting {name} {value!r}; it must be a whole number of {least} or more")
    return int(value)


def channel_values(config: Mapping[str, Any], name: str) -> list[float]:
    """Return a value per R, G and B; 0.5 each where the setting is missing, as published.

    Args:
        config: The settings.
        name: See :func:`value_of`; one number stands for three.

    Raises:
        WeightsError: If it is neither one number nor three.
    """
    value = value_of(config, name)
    if value is None:
        value = DEFAULT_CHANNEL
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise WeightsError(f"has setting {name} {value!r}; it must be three numbers, for R, G and B")
    return [float(number) for number in values]


def magnification_of(config: Mapping[str, Any]) -> tuple[int, str]:
    """Return the objective power a network was trained at, 40 or 20, and how that is known.

    Args:
        config: ``data.magnification`` counts, else ``x20`` in ``data.dataset_path``, else 40 is assumed.

    Raises:
        WeightsError: If another one is stated.
    """
    stated = value_of(config, "data.magnification")
    if stated is None:
        path = value_of(config, "data.dataset_path")
        if _X20.search(str(path)):
            return 20, f"as data.dataset_path {str(path)!r} says"
        return DEFAULT_MAGNIFICATION, "assumed, as the file states none"
    digits = re.fullmatch(r"\s*x?\s*(40|20)(?:\.0)?\s*x?\s*", str(stated), re.IGNORECASE)
    if not digits:
        raise WeightsError(f"has setting data.magnification {stated!r}; post-processing is known for 40 and 20")
    return int(digits[1]), "as data.magnification says"


def class_names(config: Mapping[str, Any], count: int) -> list[str] | None:
    """Return the names of the nucleus types, None where the settings have none.

    Args:
        config: The settings; ``dataset_config.nuclei_types`` numbers the names.
        count: How many there must be.

    Raises:
        WeightsError: If they are not numbered from 0 to ``count - 1``.
    """
    section = "dataset_config.nuclei_types"
    numbered = _section(config, section)
    names = _in_order(numbered, count)
    if numbered and names is None:
        raise WeightsError(
            f"has setting {section} {numbered!r}, but data.num_nuclei_classes {count}; "
            f"the types must be numbered from 0 to {count - 1}"
        )
    return names


def tissue_names(config: Mapping[str, Any], count: int) -> list[str] | None:
    """Return the names of the tissues: none where they do not fit, None where the settings have none.

    No output of the network depends on them, so a list of another data set's tissues keeps nobody from using it.

    Args:
        config: The settings; ``dataset_config.tissue_types`` numbers the names.
        count: How many there should be.
    """
    numbered = _section(config, "dataset_config.tissue_types")
    return (_in_order(numbered, count) or []) if numbered else None


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what stands below a name, by what follows it."""
    inner = value_of(config, name)
    if isinstance(inner, Mapping):
        return {str(key): value for key, value in inner.items()}
    prefix = f"{name}."
    return {str(key).removeprefix(prefix): value for key, value in config.items() if str(key).startswith(prefix)}


def _in_order(numbered: Mapping[str, Any], count: int) -> list[str] | None:
    by_id = {int(value): name for name, value in numbered.items() if _is_whole(value)}
    fits = len(numbered) == count and sorted(by_id) == [*range(count)]
    return [by_id[i] for i in range(count)] if fits else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)
