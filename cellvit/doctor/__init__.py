"""Checks of an installation: what is here, what works, and what to do about the rest."""

from cellvit.doctor.examination import examine
from cellvit.doctor.finding import Finding

__all__ = ["Finding", "examine"]
