"""Checks of the package itself: run `pytest` in its folder after installing it."""

import math

import pytest
import torch
from my_lab.centre_head import centre_map

from cellvit import ENCODERS, HEADS, CellViT, HeadSizes
from cellvit.errors import ConfigError

SIZES = HeadSizes(decoder_channels=5, pooled_channels=7, num_nuclei_classes=3, num_tissue_classes=0)
HEAD_NAMES = {
    "nuclei_binary_map": "binary",
    "hv_map": "hv",
    "nuclei_type_map": "nuclei-type",
    "nuclei_centre_map": "centre",
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw_batch(size=2, side=32):
    """Return a batch with one square nucleus per image; every head finds its target in it."""
    instances = torch.zeros(size, side, side, dtype=torch.int64)
    for index in range(size):
        instances[index, 8 + index : 17 + index, 10:19] = 1
    return {
        "image": torch.rand(size, 3, side, side),
        "instance_map": instances,
        "nuclei_binary_map": instances,
        "hv_map": torch.zeros(size, 2, side, side),
        "nuclei_type_map": instances,
        "tissue_types": torch.full((size,), -1),
        "name": [str(index) for index in range(size)],
    }


def test_installed_names_lead_to_the_classes():
    assert ENCODERS.origin("conv-stem") == HEADS.origin("centre") == "cellvit-my-lab"


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 16)])
def test_encoder_returns_what_it_declares(size):
    encoder = ENCODERS.get("conv-stem")(width=4)
    output = encoder(torch.rand(2, 3, *size))
    shapes = [(2, info.channels, size[0] // info.stride, size[1] // info.stride) for info in encoder.features]
    assert [tuple(map_.shape) for map_ in output.features] == shapes
    assert tuple(output.pooled.shape) == (2, encoder.pooled_channels)


def test_encoder_groups_hold_every_parameter_once():
    encoder = ENCODERS.get("conv-stem")(width=4)
    grouped = [id(parameter) for group in encoder.layer_groups() for parameter in group]
    assert sorted(grouped) == sorted(map(id, encoder.parameters()))


def test_head_returns_what_it_declares_and_names_its_losses():
    head = HEADS.get("centre")(SIZES)
    logits = head(torch.rand(2, 5, 32, 32))
    assert tuple(logits.shape) == tuple(head.activate(logits).shape) == (2, head.out_channels, 32, 32)
    assert set(head.loss_terms(logits, draw_batch())) == set(head.default_losses)


def test_centre_map_is_what_a_slow_loop_computes():
    instances = torch.randint(0, 4, (2, 7, 9))
    expected = torch.zeros(2, 1, 7, 9)
    for image, labels in enumerate(instances):
        for label in range(1, int(labels.max()) + 1):
            pixels = (labels == label).nonzero().float()
            for row, column in pixels.long().tolist():
                distance = math.dist((row, column), pixels.mean(0).tolist())
                expected[image, 0, row, column] = math.exp(-(distance**2) / (2 * 1.5**2))
    torch.testing.assert_close(centre_map(instances, sigma=1.5), expected)


def test_background_has_no_centre():
    assert centre_map(torch.zeros(1, 4, 4, dtype=torch.int64), sigma=2.0).max() == 0


@pytest.mark.parametrize(
    ("make", "value"),
    [(lambda: ENCODERS.get("conv-stem")(width=0), "width 0"), (lambda: HEADS.get("centre")(SIZES, sigma=0), "sigma 0")],
)
def test_settings_that_cannot_work_are_refused(make, value):
    with pytest.raises(ConfigError, match=value):
        make()


def test_model_trains_every_parameter_and_learns_where_centres_are(tmp_path):
    model = CellViT(
        {"class_path": "conv-stem", "init_args": {"width": 4}},
        3,
        decoder={"class_path": "unetr", "init_args": {"widths": [4, 6, 8, 10], "image_width": 3}},
        heads=HEAD_NAMES,
    )
    batch, history = draw_batch(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        outputs = model(batch["image"])
        losses = {name: sum(head.losses(outputs[name], batch).values()) for name, head in model.heads.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(losses["nuclei_centre_map"].item())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert history[-1] < 0.5 * history[0]

    model.eval().save_pretrained(tmp_path)
    image = torch.rand(1, 3, 40, 24)  # no multiples of 16: the model pads, and crops every map
    expected = model.predict_maps(image)["nuclei_centre_map"]
    assert tuple(expected.shape) == (1, 1, 40, 24)
    torch.testing.assert_close(CellViT.from_pretrained(tmp_path).predict_maps(image)["nuclei_centre_map"], expected)
