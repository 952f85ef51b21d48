from cellvit.testing.head import SIZES as SIZES
from cellvit.testing.head import HeadContract as HeadContract
from cellvit.testing.head import make_batch as make_batch
from cellvit.testing.head import make_features as make_features
