from cellvit.testing import DecoderContract as DecoderContract
