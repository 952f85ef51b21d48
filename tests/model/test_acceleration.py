"""What runs faster gives the same, and leaves the model as it was."""

import copy
import threading
from contextlib import ExitStack

import lightning as L
import numpy as np
import pytest
import torch
from support.tiny import NARROW_HYBRID, SHARED_UNETR, make_loader, spec
from torch import nn

from cellvit import CellViT
from cellvit.errors import ConfigError
from cellvit.inference import acceleration as module
from cellvit.inference.acceleration import accelerated_inference, compile_for_inference
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.image import segment_image
from cellvit.training.compile import CompiledTraining

TOLERANCE = 1e-3
HYBRID = spec("hybrid", **NARROW_HYBRID["init_args"], residual_blocks=[0, 1, 0], window=4)


def tiny_network():
    return CellViT(HYBRID, 3, decoder=SHARED_UNETR)


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


def working(network):
    """Return the batch norms that compute something."""
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and not module._is_changed(m)]


def published():
    """Return a network as published."""
    return CellViT("random", 6, 19)


@pytest.mark.parametrize("build", [tiny_network, subpixel, published, lambda: CellViT.from_pretrained("nano")])
def test_fusing_changes_no_map(build):
    torch.manual_seed(0)
    model = shaken(build())
    image = torch.rand(2, 3, 64, 96)
    before = model.predict_maps(image)
    norms = len(working(model))
    with accelerated_inference(model):
        assert len(working(model)) < norms / 4
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
    norms = working(model)
    with ExitStack() as second:
        with accelerated_inference(model):
            second.enter_context(accelerated_inference(model))
        assert not model.training
        assert not working(model.decoder)
    assert model.training
    assert working(model) == norms


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
    assert working(model)


def test_what_is_read_meanwhile_is_the_network_as_it_was():
    """Fingerprints, saving and copies, as in another thread or a progress callback."""
    model = shaken(tiny_network())
    state, digest = {name: value.clone() for name, value in model.state_dict().items()}, weights_hash(model)
    image = torch.rand(1, 3, 32, 32)
    with accelerated_inference(model):
        assert weights_hash(model) == digest
        assert list(model.state_dict()) == list(state)
        copied = copy.deepcopy(model)
    assert len(working(copied)) == len(working(model))
    assert torch.equal(copied.predict_maps(image)["hv_map"], model.predict_maps(image)["hv_map"])
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert copied.predict_maps(image)["hv_map"].abs().max() == 0


def test_an_error_while_fusing_leaves_nothing_behind(monkeypatch):
    model, fuse, calls = tiny_network(), module.fuse_conv_bn_eval, []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise MemoryError
        return fuse(*arguments, **options)

    norms = working(model)
    monkeypatch.setattr(module, "fuse_conv_bn_eval", fail)
    with pytest.raises(MemoryError), accelerated_inference(model):
        pass
    assert model.training
    assert working(model) == norms
    monkeypatch.undo()
    with accelerated_inference(model):
        assert len(working(model)) < len(norms) / 4
    assert working(model) == norms


def test_parts_that_were_held_still_are():
    model = tiny_network()
    model.encoder.eval()
    with accelerated_inference(model):
        assert not model.decoder.training
    assert (model.training, model.encoder.training, model.decoder.training) == (True, False, True)


class Both(nn.Sequential):
    """Returns what each layer makes, so that none may take over another's work."""

    def forward(self, x):
        made = [x := layer(x) for layer in self]
        return torch.cat(made)


class Doubled(nn.Conv2d):
    """A convolution of another kind, which must not be taken for a plain one."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: nn.Sequential(Doubled(4, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: Both(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
    ],
)
def test_what_is_not_plain_stays(layers):
    network, x = layers().eval(), torch.randn(2, 4, 8, 8)
    expected = network(x)
    with accelerated_inference(network), torch.inference_mode():
        kept = [m for m in network if isinstance(m, Doubled | nn.BatchNorm2d)]
        assert not any("forward" in vars(m) for m in kept)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)


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
        assert not working(network)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_segment_image_runs_the_fused_network(monkeypatch):
    seen, predict = [], CellViT.predict_maps
    monkeypatch.setattr(CellViT, "predict_maps", lambda self, x: seen.append(len(working(self))) or predict(self, x))
    model = tiny_network()
    segment_image(np.zeros((64, 64, 3), np.uint8), model=model)
    assert len(seen) == 1
    assert seen[0] < len(working(model)) / 4


def test_a_compiled_model_gives_the_same_maps():
    torch.manual_seed(1)
    model = shaken(tiny_network())
    image = torch.rand(1, 3, 64, 64)
    before = model.predict_maps(image)
    assert compile_for_inference(model, backend="eager") is model
    with accelerated_inference(model):
        assert working(model)
        after = model.predict_maps(image)
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, rtol=0, atol=TOLERANCE)
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert copied.predict_maps(image)["hv_map"].abs().max() == 0


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


class Counting:
    """A backend that changes nothing and counts what it is given and what of that runs."""

    def __init__(self):
        self.compiled, self.modes = [], []

    def __call__(self, graph, inputs):
        self.compiled.append(graph)

        def run(*arguments):
            self.modes.append(torch.is_grad_enabled())
            return graph.forward(*arguments)

        return run


@TRACING
def test_compiled_training_learns_the_same():
    backend = Counting()
    plain, compiled = train([]), train([CompiledTraining(backend=backend)])
    parts = 2 + len(compiled.heads)  # encoder, decoder, and the losses of every head
    assert len(backend.compiled) >= parts
    assert len(backend.modes) >= parts * compiled.trainer.global_step
    assert all(backend.modes)  # validation takes no gradients
    expected, found = (model.trainer.callback_metrics for model in (plain, compiled))
    assert found.keys() == expected.keys()
    losses = [name for name in expected if "loss" in name]  # scores count pixels and nuclei: rounding turns some
    assert {"train/loss", "val/loss"} <= set(losses)
    for name in losses:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4, msg=name)
    assert "forward" not in vars(compiled.encoder)
    assert all("losses" not in vars(head) for head in compiled.heads.children())


@TRACING
def test_only_the_parts_that_are_asked_for_are_compiled():
    backend = Counting()
    model = train([CompiledTraining(backend=backend, parts=["losses"])])
    graphs = len(backend.compiled)
    assert len(model.heads) <= graphs
    assert not any("convolution" in str(node.target) for graph in backend.compiled for node in graph.graph.nodes)
    with pytest.raises(ConfigError, match=r"\['loss'\] cannot be compiled; choose from encoder, decoder and losses"):
        CompiledTraining(parts=["decoder", "loss"])


class Copying(L.Callback):
    """Copies the model while it is trained, and then stops the training with an error."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.model, self.copied = pl_module, copy.deepcopy(pl_module.encoder)
        raise RuntimeError("stopped")


@TRACING
def test_compiled_training_leaves_copies_and_a_training_that_failed_as_they_were():
    copying = Copying()
    with pytest.raises(RuntimeError, match="stopped"):
        train([CompiledTraining(backend="eager"), copying])
    assert "forward" not in vars(copying.model.encoder)
    assert all("losses" not in vars(head) for head in copying.model.heads.children())
    image = torch.rand(1, 3, 32, 32)
    copied = copying.copied.train()
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert all(not features.any() for features in copied(image).features)
