"""What every post-processor must do."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.postprocess.base import Postprocessor

Maps = dict[str, NDArray[Any]]


class PostprocessorContract:
    """The map and the table agree, inputs stay as they are, an image without nuclei is valid."""

    def make(self) -> Postprocessor:
        """Return the post-processor."""
        raise NotImplementedError

    def maps(self) -> Maps:
        """Return activated maps of one image with at least three nuclei."""
        raise NotImplementedError

    def empty_maps(self) -> Maps:
        """Return activated maps of one image without nuclei."""
        raise NotImplementedError

    def test_map_and_table_agree(self) -> None:
        prediction = self.make()(self.maps())
        labels, nuclei = prediction.instance_map, prediction.nuclei
        assert labels.dtype == np.int32
        assert np.unique(labels).tolist() == list(range(len(nuclei) + 1))
        assert len(nuclei) >= 3
        assert nuclei.label.tolist() == list(range(1, len(nuclei) + 1))
        for row in range(len(nuclei)):
            y, x = np.nonzero(labels == row + 1)
            np.testing.assert_allclose(nuclei.centroid[row], (x.mean() + 0.5, y.mean() + 0.5))
            assert nuclei.bbox[row].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert len(nuclei.contour(row)) >= 4

    def test_inputs_are_not_changed(self) -> None:
        maps = self.maps()
        before = {name: value.copy() for name, value in maps.items()}
        self.make()(maps)
        for name, value in before.items():
            np.testing.assert_array_equal(maps[name], value)

    def test_no_nuclei_is_a_valid_result(self) -> None:
        prediction = self.make()(self.empty_maps())
        assert not prediction.instance_map.any()
        assert len(prediction.nuclei) == 0

    def test_embedding_is_averaged_per_nucleus_where_there_are_tokens(self) -> None:
        maps = self.maps()
        assert self.make()({k: v for k, v in maps.items() if k != "embedding_map"}).nuclei.embedding is None
        height, width = maps["hv_map" if "hv_map" in maps else next(iter(maps))].shape[-2:]
        tokens = np.ones((5, -(-height // 16), -(-width // 16)), np.float32)
        nuclei = self.make()({**maps, "embedding_map": tokens}).nuclei
        assert nuclei.embedding is not None
        np.testing.assert_array_almost_equal(nuclei.embedding, np.ones((len(nuclei), 5), np.float32))

    def test_a_missing_map_is_named(self) -> None:
        needed = sorted(self.make().needs)[0]
        with pytest.raises(DataError, match=needed):
            self.make()({k: v for k, v in self.maps().items() if k != needed})
