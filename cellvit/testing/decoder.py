"""What every decoder must do."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cellvit.decoders.base import Decoder
from cellvit.types import FeatureInfo

BRANCHES = ("first", "second")


class DecoderContract:
    """One full-resolution map per branch, gradients everywhere, weights survive a round trip, rows do not mix."""

    features = (FeatureInfo(4, 2), FeatureInfo(8, 4), FeatureInfo(12, 8), FeatureInfo(16, 16))

    def make(self, features: Sequence[FeatureInfo], branches: Sequence[str]) -> Decoder:
        """Return a new decoder, as small as its settings allow."""
        raise NotImplementedError

    def inputs(self, batch: int = 2, height: int = 32, width: int = 48) -> tuple[Tensor, list[Tensor]]:
        """Return an image and feature maps of it."""
        maps = [torch.randn(batch, f.channels, height // f.stride, width // f.stride) for f in self.features]
        return torch.randn(batch, 3, height, width), maps

    @pytest.mark.parametrize("size", [(16, 16), (32, 48), (80, 16)])
    def test_every_branch_has_full_resolution(self, size: tuple[int, int]) -> None:
        decoder = self.make(self.features, BRANCHES).eval()
        with torch.inference_mode():
            maps = decoder(*self.inputs(1, *size))
        assert {name: tuple(m.shape) for name, m in maps.items()} == dict.fromkeys(
            BRANCHES, (1, decoder.out_channels, *size)
        )

    def test_gradients_reach_every_parameter(self) -> None:
        decoder = self.make(self.features, BRANCHES).train()
        torch.stack([(m * torch.randn_like(m)).sum() for m in decoder(*self.inputs()).values()]).sum().backward()  # type: ignore[no-untyped-call]
        assert [name for name, p in decoder.named_parameters() if p.grad is None] == []

    def test_state_dict_round_trip(self) -> None:
        first, second = (self.make(self.features, BRANCHES).eval() for _ in range(2))
        second.load_state_dict(first.state_dict())
        inputs = self.inputs()
        with torch.inference_mode():
            torch.testing.assert_close(first(*inputs), second(*inputs))

    def test_rows_of_a_batch_do_not_mix(self) -> None:
        decoder = self.make(self.features, BRANCHES).eval()
        image, maps = self.inputs()
        with torch.inference_mode():
            both, one = decoder(image, maps), decoder(image[1:], [m[1:] for m in maps])
        for name in BRANCHES:
            torch.testing.assert_close(both[name][1:], one[name], rtol=1e-4, atol=1e-5)
