"""Contract tests for plug-ins: what every encoder, decoder, head and post-processor must do.

Subclass one in a test file, build your part in ``make``, and run pytest, which must be installed.

Example:
    >>> from cellvit.encoders import HybridEncoder
    >>> class TestMyEncoder(EncoderContract):
    ...     def make(self):
    ...         return HybridEncoder(depth=2)
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{kind}" for kind in ("decoder", "encoder", "head", "postprocessor")))

from cellvit.testing.decoder import DecoderContract  # noqa: E402  rewritten first
from cellvit.testing.encoder import EncoderContract  # noqa: E402
from cellvit.testing.head import HeadContract  # noqa: E402
from cellvit.testing.postprocessor import PostprocessorContract  # noqa: E402

__all__ = ["DecoderContract", "EncoderContract", "HeadContract", "PostprocessorContract"]
