"""What every head must do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cellvit.errors import ConfigError
from cellvit.heads.base import Head, HeadSizes
from cellvit.types import Batch

SIZES = HeadSizes(decoder_channels=4, pooled_channels=5, num_nuclei_classes=3, num_tissue_classes=7)


def make_batch(batch: int = 2, height: int = 16, width: int = 24) -> Batch:
    """Return a batch of random targets of the branches that data modules know."""
    types = torch.randint(0, 3, (batch, height, width))
    return {
        "image": torch.rand(batch, 3, height, width),
        "instance_map": (types > 0).long(),
        "nuclei_binary_map": (types > 0).long(),
        "hv_map": torch.rand(batch, 2, height, width) * 2 - 1,
        "nuclei_type_map": types,
        "tissue_types": torch.randint(0, 7, (batch,)),
        "name": ["a"] * batch,
    }


def make_features(head: Head, batch: int = 2) -> Tensor:
    """Return random features from the head's source."""
    return torch.randn(batch, 4, 16, 24) if head.source == "decoder" else torch.randn(batch, 5)


class HeadContract:
    """Shapes, finite losses whose gradients reach every parameter, weights that scale terms."""

    def make(self, sizes: HeadSizes, **settings: Any) -> Head:
        """Return a new head."""
        raise NotImplementedError

    @pytest.mark.parametrize("batch", [1, 2])
    def test_shapes(self, batch: int) -> None:
        head = self.make(SIZES)
        logits = head(make_features(head, batch))
        expected = (batch, head.out_channels, 16, 24) if head.source == "decoder" else (batch, head.out_channels)
        assert tuple(logits.shape) == expected == tuple(head.activate(logits).shape)

    def test_losses_are_finite_scalars_and_train_every_parameter(self) -> None:
        head, batch = self.make(SIZES), make_batch()
        terms = head.losses(head(make_features(head)), batch)
        assert set(terms) == set(head.default_losses)
        assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
        torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    def test_weights_scale_terms_and_terms_left_out_are_not_there(self) -> None:
        head, batch = self.make(SIZES), make_batch()
        logits = head(make_features(head)).detach()
        first = next(iter(head.default_losses))
        double = self.make(SIZES, losses={first: 2.0})
        torch.testing.assert_close(double.losses(logits, batch)[first], 2 * head.loss_terms(logits, batch)[first])
        assert set(double.losses(logits, batch)) == {first}

    def test_unknown_loss_lists_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match=next(iter(self.make(SIZES).default_losses))):
            self.make(SIZES, losses={"dise": 1.0})

    def test_losses_are_computed_in_float32_under_autocast(self) -> None:
        head, batch = self.make(SIZES), make_batch()
        logits = head(make_features(head)).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = head.losses(logits, batch)
        for name, value in head.losses(logits, batch).items():
            assert mixed[name].dtype == torch.float32
            torch.testing.assert_close(mixed[name], value)
