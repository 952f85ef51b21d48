"""Tests of the runner draw their slides with the helpers of the tests of slides."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slide"))
