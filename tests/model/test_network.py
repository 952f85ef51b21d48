"""The plain network: what it shares with the model that trains, what it refuses, and that others can compile it."""

import warnings
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import make_loader
from torch.utils.data import DataLoader, TensorDataset

from cellvit import CellViT, FolderDataModule, segment_slide
from cellvit.callbacks import PredictionWriter
from cellvit.errors import ConfigError
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.image import segment_image
from cellvit.inference.protocol import load_model
from cellvit.io import read_parquet
from cellvit.model.network import CellViTNetwork


@pytest.fixture
def plain(small_model):
    return small_model.network


def trainer(tmp_path, **settings):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return L.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet, **settings)


def assert_same_maps(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        torch.testing.assert_close(theirs[name], values, msg=name)


def test_a_loaded_model_is_the_plain_network_in_evaluation_mode(small_settings, tmp_path):
    model = CellViT(**small_settings, about={"licence": "CC0"}).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cpu")
    assert type(loaded) is CellViTNetwork
    assert not isinstance(loaded, L.LightningModule)
    assert not any(module.training for module in loaded.modules())
    assert loaded.settings == model.settings
    assert loaded.about["licence"] == "CC0"
    assert weights_hash(loaded) == weights_hash(model)  # a slide begun with one goes on with the other
    image = torch.rand(1, 3, 40, 33)
    assert_same_maps(model.predict_maps(image), loaded.predict_maps(image))
    loaded.save_pretrained(tmp_path / "again")
    files = [(tmp_path / name / "config.json").read_bytes() for name in ("model", "again")]
    assert files[0] == files[1]
    assert CellViT.from_pretrained(tmp_path / "again").settings == model.settings


def test_a_checkpoint_of_a_training_is_loaded_as_a_plain_network(small_model, tmp_path):
    state = {"state_dict": small_model.state_dict(), "hyper_parameters": dict(small_model.hparams)}
    torch.save(state, tmp_path / "last.ckpt")
    loaded = load_model(tmp_path / "last.ckpt", device="cpu")
    image = torch.rand(1, 3, 32, 32)
    assert_same_maps(small_model.predict_maps(image), loaded.predict_maps(image))


def test_the_network_of_a_model_shares_its_weights_and_its_state(small_model, plain):
    assert type(plain) is CellViTNetwork
    assert plain.state_dict().keys() == small_model.state_dict().keys()
    assert all(a is b for a, b in zip(plain.parameters(), small_model.parameters(), strict=True))
    assert plain.settings is small_model.settings
    assert plain.training is small_model.training is False
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    assert len(segment_image(image, model=plain)) == len(segment_image(image, model=small_model))


def test_a_network_knows_no_other_setting(small_settings):
    with pytest.raises(ConfigError, match=r"no setting \['optimiser'\].*keeps: metrics, optimizer"):
        CellViTNetwork(**small_settings, optimiser="torch.optim.SGD")


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_network_computes_the_same(plain):
    image, other = torch.rand(2, 1, 3, 32, 48)
    traced = torch.jit.trace(plain, image, strict=False)  # the maps are a dictionary
    with torch.no_grad():
        assert_same_maps(plain(other), traced(other))


def test_an_exported_network_computes_the_same(plain):
    image, other = torch.rand(2, 1, 3, 32, 48)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        exported = torch.export.export(plain, (image,))
    with torch.no_grad():
        assert_same_maps(plain(other), exported.module()(other))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"image is uint8; divide by 255 \(float in \[0, 1\]\)"),
        (torch.full((1, 3, 32, 32), 255.0), r"image has values up to 255; divide by 255 \(float in \[0, 1\]\)"),
        (torch.full((1, 3, 32, 32), 128, dtype=torch.int64), "image is int64; divide by 255"),
    ],
)
def test_images_that_are_not_in_0_to_1_are_refused(small_model, plain, image, message):
    for model in (small_model, plain):
        for call in (model, model.predict_maps):
            with pytest.raises(ConfigError, match=message):
                call(image)


def test_values_a_little_above_1_are_what_resampling_makes(plain):
    plain(torch.full((1, 3, 16, 16), 1.2))
    plain(torch.zeros(0, 3, 16, 16).new_full((1, 3, 16, 16), -0.1))


def test_on_other_devices_values_are_looked_at_once(plain):
    looked = []
    image = SimpleNamespace(device=torch.device("cuda"), is_meta=False, numel=lambda: 1)
    image.detach, image.amax = lambda: image, lambda: looked.append(1) or torch.tensor(1.0)
    for _ in range(3):
        plain._refuse_large_values(image)
    assert len(looked) == 1


def test_a_network_without_values_runs_too(small_settings):
    assert (
        CellViTNetwork(**small_settings).eval().to("meta")(torch.zeros(1, 3, 16, 16, device="meta"))["hv_map"].is_meta
    )


@pytest.mark.parametrize("make", [lambda images: images, TensorDataset], ids=["tensors", "TensorDataset"])
def test_predict_takes_a_loader_of_plain_tensors(small_model, tmp_path, make):
    images = torch.rand(3, 3, 32, 40)
    writer = PredictionWriter(str(tmp_path / "out"), formats=["parquet"])
    found = trainer(tmp_path, callbacks=[writer]).predict(small_model, DataLoader(make(images), batch_size=2))
    assert [len(batch) for batch in found] == [2, 1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"00000{i}.parquet" for i in range(3)]
    assert len(read_parquet(tmp_path / "out/000002.parquet")) == len(found[1][0].nuclei)


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ({"picture": torch.rand(1, 3, 16, 16)}, "gives a dict"),
        (torch.rand(3, 16, 16), r"a tensor \(3, 16, 16\)"),
        ([], "gives a list"),
    ],
)
def test_a_batch_without_images_is_refused(small_model, batch, what):
    with pytest.raises(ConfigError, match=rf"{what}; give images \(B, 3, H, W\)"):
        small_model.predict_step(batch, 0)


class FitOnly(FolderDataModule):
    """A folder of images to train on, and none to predict."""

    def __init__(self):
        super().__init__("unused")

    def setup(self, stage):
        if stage != "fit":
            super().setup(stage)

    def train_dataloader(self):
        return make_loader()

    val_dataloader = train_dataloader


def test_explicit_loaders_work_after_fit_with_a_data_module(small_model, tmp_path):
    run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
    run.fit(small_model.train(), datamodule=FitOnly())
    found = run.predict(small_model, DataLoader(torch.rand(2, 3, 32, 32), batch_size=1))
    assert [len(batch) for batch in found] == [1, 1]
    with pytest.raises(ConfigError, match="predict_dir is not set"):  # as before, where no loader is given
        run.predict(small_model, datamodule=FitOnly())


@pytest.mark.parametrize(("about", "licence"), [({"licence": "CC0"}, "CC0"), ({}, None)])
def test_the_summary_of_a_slide_states_the_licence_of_the_model(small_settings, tmp_path, about, licence):
    model = CellViT(**small_settings, about=about).eval()
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "a.png")
    done = segment_slide(tmp_path / "a.png", tmp_path / "out", model=model, mpp=0.25, workers=0, tissue_filter=False)
    assert done.summary["model"]["licence"] == licence
