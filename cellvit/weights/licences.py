"""Licences of weights as data, and one line for the user when weights may not be used commercially."""

import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

ACCEPT = "CELLVIT_ACCEPT_LICENCES"
"""Environment variable: any value but 0 hides the notices."""

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
TITLE_WIDTH = 80


class LicenceNotice(UserWarning):
    """Weights that were just loaded may not be used commercially."""


@dataclass(frozen=True)
class Licence:
    """A licence of weights.

    Attributes:
        id: SPDX identifier where there is one, else a short name; empty for a free text.
        title: What to call it in one line.
        commercial: Whether it allows commercial use.
        note: What else to know.
    """

    id: str
    title: str
    commercial: bool
    note: str = ""


_KNOWN = (
    Licence("Apache-2.0", "Apache-2.0", True),
    Licence("BSD-3-Clause", "BSD-3-Clause", True),
    Licence("MIT", "MIT", True),
    Licence("CC0-1.0", "CC0-1.0", True),
    Licence("CC-BY-4.0", "CC BY 4.0", True),
    Licence("CC-BY-SA-4.0", "CC BY-SA 4.0", True),
    Licence("CC-BY-NC-4.0", "CC BY-NC 4.0", False),
    Licence("CC-BY-NC-SA-4.0", "CC BY-NC-SA 4.0", False),
    Licence("CC-BY-NC-ND-4.0", "CC BY-NC-ND 4.0", False),
    Licence(
        "Apache-2.0-Commons-Clause",
        "Apache-2.0 with Commons Clause",
        False,
        "the clause withdraws the right to sell: no product or service whose value derives from the weights",
    ),
    Licence(
        "Apache-2.0-research",
        "Apache-2.0, for research only",
        False,
        "the authors state Apache-2.0 and that any deployed use, commercial or otherwise, is out of scope",
    ),
    Licence(
        "Owkin-non-commercial",
        "Owkin non-commercial licence",
        False,
        "for non-profit organisations; others are invited to ask for a separate agreement",
    ),
)
LICENCES: Mapping[str, Licence] = {licence.id: licence for licence in _KNOWN}
"""The licences known by name."""

SPDX = frozenset({"Apache-2.0", "BSD-3-Clause", "MIT", *(name for name in LICENCES if name.startswith("CC"))})
"""Those whose name is an SPDX identifier."""

# A free text is restricted if it says so in one of these ways; `\bnc\b` finds the NC of Creative Commons.
RESTRICTED = re.compile(
    r"non-? ?commercial|not for commercial|no commercial|research[ -](use|purposes?|only)|academic|commons clause"
    r"|not stated|\bnc\b|proprietary|all rights reserved|evaluation only|unknown|unlicensed|not licensed",
    re.IGNORECASE,
)

_announced: set[str] = set()


def find_licence(text: str, *, commercial: bool | None = None) -> Licence:
    """Return the licence that a text names or describes.

    Args:
        text: A name of :data:`LICENCES` in any spelling (``CC BY-NC 4.0``), or a free text. What stands after a first
            colon is a note.
        commercial: Whether it allows commercial use, where somebody stated that. None reads a free text for phrases
            such as "research use" and "non-commercial"; without one of them it counts as unrestricted.

    Example:
        >>> find_licence("cc by-nc 4.0").id
        'CC-BY-NC-4.0'
        >>> find_licence("research use only: images under mixed licences").commercial
        False
    """
    title, _, note = (part.strip() for part in text.partition(":"))
    known = _by_spelling().get(_spelling(title))
    if commercial is None:
        commercial = not RESTRICTED.search(text if known is None else note) and (known is None or known.commercial)
    if known is not None and commercial == known.commercial:
        return replace(known, note=note or known.note)
    return Licence("", textwrap.shorten(title, TITLE_WIDTH, placeholder=" ..."), commercial, note)


def model_licence(about: Mapping[str, Any] | None) -> Licence | None:
    """Return the licence that the free facts of a model state, or None.

    Args:
        about: ``licence`` is a name or a free text for :func:`find_licence`. ``commercial``, a boolean, says whether
            commercial use is allowed and overrides what the text is read to mean.
    """
    facts = dict(about or {})
    text, commercial = facts.get("licence"), facts.get("commercial")
    stated = commercial if isinstance(commercial, bool) else None
    if not isinstance(text, str) or not text.strip():
        return None if stated is None else Licence("", "no licence stated", stated)
    return find_licence(text, commercial=stated)


def announce(name: str, licence: Licence | None) -> None:
    """Tell the user, once per process and weight, that weights may not be used commercially.

    Nothing is said for other licences, in processes other than the first of a distributed run, and where the
    environment variable :data:`ACCEPT` is set.

    Args:
        name: What the user calls the weights.
        licence: None is silent.

    Warns:
        LicenceNotice: At the line of the user's code that led here.
    """
    if licence is None or licence.commercial or name in _announced or _hidden():
        return
    _announced.add(name)  # before: where warnings are errors, asking again goes on
    message = f"licence of {name}: {licence.title}; not for commercial use ({ACCEPT}=1 hides this line)"
    warnings.warn(message, LicenceNotice, stacklevel=_level_outside())


def announce_model(about: Mapping[str, Any] | None, name: str) -> None:
    """Announce the licence that the free facts of a model state; see :func:`announce` and :func:`model_licence`.

    Args:
        about: Its ``name``, if any, is what the user reads.
        name: What to call the model otherwise.
    """
    announce(str((about or {}).get("name") or name), model_licence(about))


@contextmanager
def plain_notices() -> Iterator[None]:
    """Return a context in which a notice is one line on standard error, without the source line of a warning."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, LicenceNotice):
                sys.stderr.write(f"{message}\n")
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _hidden() -> bool:
    return os.environ.get(ACCEPT, "0") not in ("", "0") or any(os.environ.get(k, "0") not in ("", "0") for k in RANKS)


def _level_outside() -> int:
    """Return the stack level, seen from the caller, of the first frame that is not of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "cellvit":
        level, frame = level + 1, frame.f_back
    return level


def _spelling(text: str) -> str:
    return re.sub(r"[\s_-]+", "-", text.strip()).casefold()


def _by_spelling() -> dict[str, Licence]:
    return {_spelling(name): licence for licence in _KNOWN for name in (licence.id, licence.title)}
