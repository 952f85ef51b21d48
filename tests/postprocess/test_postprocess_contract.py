import numpy as np
import pytest
from support.drawn_nuclei import draw_ellipses, perfect_maps

from cellvit.postprocess import HVPostprocessor
from cellvit.testing import PostprocessorContract


@pytest.mark.parametrize("normalisation", ["tile", "fixed"])
class TestHVWatershed(PostprocessorContract):
    @pytest.fixture(autouse=True)
    def _choose(self, normalisation):
        self.normalisation = normalisation

    def make(self):
        return HVPostprocessor(normalisation=self.normalisation)

    def maps(self):
        return perfect_maps(draw_ellipses(12, (130, 150), radius=(8, 12), gap=3, seed=1))

    def empty_maps(self):
        return perfect_maps(np.zeros((48, 64), np.int32))
