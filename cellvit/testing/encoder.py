"""What every encoder must do."""

import copy

import pytest
import torch

from cellvit.encoders.base import Encoder


class EncoderContract:
    """Shapes match ``features``, gradients reach what trains, weights survive a round trip, any size works."""

    def make(self) -> Encoder:
        """Return a new encoder, as small as its settings allow."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 16), (256, 256)])
    def test_shapes_match_features(self, size: tuple[int, int]) -> None:
        encoder = self.make().eval()
        with torch.inference_mode():
            output = encoder(torch.randn(1, 3, *size))
        assert len(output.features) == len(encoder.features) == 4
        for tensor, info in zip(output.features, encoder.features, strict=True):
            assert tuple(tensor.shape) == (1, info.channels, size[0] // info.stride, size[1] // info.stride)
        assert tuple(output.pooled.shape) == (1, encoder.pooled_channels)

    def test_strides_do_not_decrease_and_end_at_16(self) -> None:
        strides = [info.stride for info in self.make().features]
        assert strides == sorted(strides)
        assert strides[-1] == 16

    def test_gradients_reach_every_parameter_that_trains(self) -> None:
        encoder = self.make().train()
        output = encoder(torch.randn(2, 3, 64, 64))
        torch.stack([(f * torch.randn_like(f)).sum() for f in [*output.features, output.pooled]]).sum().backward()  # type: ignore[no-untyped-call]
        assert [name for name, p in encoder.named_parameters() if p.grad is None and p.requires_grad] == []

    def test_state_dict_round_trip(self) -> None:
        first, second, image = self.make().eval(), self.make().eval(), torch.randn(1, 3, 64, 64)
        second.load_state_dict(first.state_dict())
        with torch.inference_mode():
            ours, theirs = first(image), second(image)
        torch.testing.assert_close([*ours.features, ours.pooled], [*theirs.features, theirs.pooled])

    def test_rows_of_a_batch_do_not_mix(self) -> None:
        encoder, images = self.make().eval(), torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            both, one = encoder(images), encoder(images[1:])
        for of_both, alone in zip([*both.features, both.pooled], [*one.features, one.pooled], strict=True):
            torch.testing.assert_close(of_both[1:], alone, rtol=1e-3, atol=1e-4)

    def test_layer_groups_hold_every_parameter_once(self) -> None:
        encoder = self.make()
        grouped = [id(p) for group in encoder.layer_groups() for p in group]
        assert sorted(grouped) == sorted(id(p) for p in encoder.parameters())

    def test_deepcopy_keeps_the_configuration(self) -> None:
        encoder = self.make()
        assert copy.deepcopy(encoder).init_args == encoder.init_args
