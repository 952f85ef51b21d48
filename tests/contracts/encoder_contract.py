from cellvit.testing import EncoderContract as EncoderContract
