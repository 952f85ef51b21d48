"""What runs faster gives the same, and leaves the model as it was."""

import threading
from contextlib import ExitStack

import lightning as L
import pytest
import torch
from tiny_training import DECODER, make_loader
from torch import nn

from cellvit import CellViT
from cellvit import acceleration as module
from cellvit.acceleration import CompiledTraining, accelerated_inference, compile_for_inference
from cellvit.errors import ConfigError
from cellvit.segment import segment_image

TOLERANCE = 1e-3
HYBRID = {
    "class_path": "hybrid",
    "init_args": {
        "widths": [4, 6, 8],
        "residual_blocks": [0, 1, 0],
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "window": 4,
    },
}


def tiny_network():
    return CellViT(HYBRID, 3, decoder=DECODER)


def subpixel():
    return CellViT(HYBRID, 3, decoder={"class_path": "subpixel", "init_args": {"widths": [4, 6, 8, 10]}})


def shaken(model):
    """Give batch norms statistics and weights that are not those of a new network."""
    generator = torch.Generator().manual_seed(3)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.running_mean, -1, 1),
                (norm.running_var, 0.2, 3),
                (norm.weight.data, 0.5, 2),
                (norm.bias.data, -1, 1),
            ):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def published():
    """Return a network as published."""
    return CellViT("random", 6, 19)


@pytest.mark.parametrize("build", [tiny_network, subpixel, published, lambda: CellViT.from_pretrained("nano")])
def test_fusing_changes_no_map(build):
    torch.manual_seed(0)
    model = shaken(build())
    image = torch.rand(2, 3, 64, 96)
    before = model.predict_maps(image)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with accelerated_inference(model):
        assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) < norms / 4
        fused = model.predict_maps(image)
    assert set(fused) == set(before)
    for name, expected in before.items():
        assert (fused[name] - expected).abs().max() < TOLERANCE * max(1, expected.abs().max()), name
    after = model.predict_maps(image)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was_also_after_an_error(training):
    model = tiny_network().train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    seen = []

    def fail(image):
        with accelerated_inference(model):
            seen.append(model.training)
            model(image)

    with pytest.raises(ConfigError, match="multiples of 16"):
        fail(torch.rand(1, 3, 15, 16))
    assert seen == [False]
    assert model.training is training
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_last_of_several_uses_undoes_the_change():
    model = tiny_network()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with ExitStack() as second:
        with accelerated_inference(model):
            second.enter_context(accelerated_inference(model))
        assert not model.training
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.decoder.modules())
    assert model.training
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == norms


def test_threads_share_a_model():
    model = shaken(tiny_network())
    image = torch.rand(1, 3, 64, 64)
    expected = model.predict_maps(image)["hv_map"]
    wrong = []

    def use():
        for _ in range(10):
            with accelerated_inference(model):
                found = model.predict_maps(image)["hv_map"]
            if (found - expected).abs().max() > TOLERANCE:
                wrong.append(found)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Doubled(nn.Conv2d):
    """A convolution of another kind, which must not be taken for a plain one."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: nn.Sequential(Doubled(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    ],
)
def test_what_is_not_plain_stays(layers):
    network = layers()
    kinds = [type(m) for m in network]
    with accelerated_inference(network):
        assert [type(m) for m in network] == kinds


def test_a_layer_that_somebody_listens_to_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    heard = []
    network[0].register_forward_hook(lambda layer, given, made: heard.append(made.shape))
    with accelerated_inference(network):
        network(torch.rand(1, 3, 8, 8))
    assert heard == [(1, 4, 6, 6)]


@pytest.mark.parametrize(
    ("conv", "channels"),
    [(nn.Conv2d(3, 5, 3, padding=1, bias=False), 3), (nn.Conv2d(3, 5, 1), 3), (nn.ConvTranspose2d(4, 5, 2, 2), 4)],
)
def test_each_kind_of_convolution(conv, channels):
    network = shaken(nn.Sequential(conv, nn.BatchNorm2d(5)))
    x = torch.randn(2, channels, 9, 7)
    expected = network(x)
    with accelerated_inference(network), torch.inference_mode():
        assert isinstance(network[1], nn.Identity)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_segment_image_runs_the_fused_network(monkeypatch):
    seen = []
    fuse = module._fuse
    monkeypatch.setattr(module, "_fuse", lambda network: seen.append(fuse(network)) or seen[-1])
    model = tiny_network()
    segment_image(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), model=model)
    assert len(seen) == 1
    assert seen[0]


def test_a_compiled_model_gives_the_same_maps():
    torch.manual_seed(1)
    model = shaken(tiny_network())
    image = torch.rand(1, 3, 64, 64)
    before = model.predict_maps(image)
    assert compile_for_inference(model, backend="eager") is model
    with accelerated_inference(model):
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        after = model.predict_maps(image)
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, rtol=0, atol=TOLERANCE)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="install g\\+\\+"):
        compile_for_inference(tiny_network())


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_training_goes_on_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="not compiled"):
        train([CompiledTraining()])


def train(callbacks):
    """Return a model after two epochs."""
    L.seed_everything(5, verbose=False)
    model = tiny_network()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(model, make_loader(), make_loader(1))
    return model


# torch reads the gradient of a parameter while it traces, and warns of its own reading
TRACING = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@TRACING
def test_compiled_training_learns_the_same():
    plain, compiled = train([]), train([CompiledTraining(backend="eager")])
    expected, found = (model.trainer.callback_metrics for model in (plain, compiled))
    assert found.keys() == expected.keys()
    losses = [name for name in expected if "loss" in name]  # scores count pixels and nuclei: rounding turns some
    assert {"train/loss", "val/loss"} <= set(losses)
    for name in losses:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4, msg=name)
    assert "forward" not in vars(compiled.encoder)
    assert all("losses" not in vars(head) for head in compiled.heads.children())
