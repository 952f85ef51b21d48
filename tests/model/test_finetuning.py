"""Starting from other weights: what fits is taken, what means something else starts anew and is named."""

import json

import lightning as L
import pytest
import torch
from support.tiny import SHARED_UNETR, VIT, make_loader

from cellvit import CellViT
from cellvit.cli import main
from cellvit.encoders import ViTEncoder
from cellvit.errors import ConfigError, UnknownPluginError, WeightsError
from cellvit.training.finetuning import InitFrom, init_from, merge_adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
NAMES = ["Background", "Tumour", "Lymphocyte"]


def make_model(classes=3, tissues=2, encoder=VIT, **settings):
    names = settings.pop("class_names", NAMES[:classes] if classes <= 3 else None)
    return CellViT(
        encoder, classes, tissues, decoder=settings.pop("decoder", SHARED_UNETR), class_names=names, **settings
    )


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(5)
    model = make_model()
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source", model


def tensors(model, *prefixes):
    return {k: v for k, v in model.state_dict().items() if k.startswith(prefixes)}


def assert_same(model, other, *prefixes):
    ours, theirs = tensors(model, *prefixes), tensors(other, *prefixes)
    assert ours
    assert set(ours) == set(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_model_of_the_same_classes_takes_everything(source):
    path, original = source
    model = make_model()
    report = init_from(model, path)
    assert_same(model, original, "encoder.", "decoder.", "heads.")
    assert report.reinitialised == {}
    assert set(report.loaded) == {"encoder", "decoder", *(f"heads.{branch}" for branch in original.heads)}


def test_heads_of_other_classes_start_anew_and_are_named(source):
    path, original = source
    model = make_model(classes=2, tissues=4)
    before = {k: v.clone() for k, v in tensors(model, "heads.nuclei_type_map", "heads.tissue_types").items()}
    report = init_from(model, path)
    assert_same(model, original, "encoder.", "decoder.", "heads.nuclei_binary_map.", "heads.hv_map.")
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert set(report.reinitialised) == {"heads.nuclei_type_map", "heads.tissue_types"}
    assert "Lymphocyte" in report.reinitialised["heads.nuclei_type_map"]
    assert r"(2, 24) for (4, 24)" in report.reinitialised["heads.tissue_types"]
    assert "heads.nuclei_type_map starts anew: class_names are ['Background', 'Tumour'] here" in str(report)


def test_a_head_of_as_many_but_other_classes_starts_anew(source):
    path, _ = source
    report = init_from(make_model(class_names=["Background", "Tumour", "Other"]), path)
    assert set(report.reinitialised) == {"heads.nuclei_type_map"}


def test_a_branch_that_only_one_of_them_has_is_left_aside(tmp_path):
    decoder = {"class_path": "unetr", "init_args": {**SHARED_UNETR["init_args"], "shared_levels": 2}}
    torch.manual_seed(6)
    two = {"nuclei_binary_map": "binary", "hv_map": "hv"}
    original = make_model(tissues=0, decoder=decoder, heads=two, postprocessor="hv-watershed")
    original.save_pretrained(tmp_path / "two")
    model = make_model(tissues=0, decoder=decoder)
    own = {k: v.clone() for k, v in tensors(model, "decoder.paths.nuclei_type_map").items()}
    report = init_from(model, tmp_path / "two")
    assert_same(model, original, "encoder.", "decoder.skips", "decoder.trunk", "decoder.paths.hv_map")
    assert own
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in own.items())
    assert report.reinitialised == {
        "decoder.paths.nuclei_type_map": "the source has no such branch",
        "heads.nuclei_type_map": "the source has no such head",
    }
    model.save_pretrained(tmp_path / "three")
    assert init_from(original, tmp_path / "three").reinitialised == {}  # and the other way round


def test_names_that_a_source_does_not_state_are_those_a_model_takes_by_default(tmp_path):
    original = make_model(classes=6, class_names=None)
    original.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["model"]["class_names"] = None
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert init_from(make_model(classes=6, class_names=None), tmp_path / "m").reinitialised == {}
    others = make_model(classes=6, class_names=["Background", *"ABCDE"])
    assert set(init_from(others, tmp_path / "m").reinitialised) == {"heads.nuclei_type_map"}


def test_settings_that_show_in_no_tensor_are_noted(source):
    path, _ = source
    assert init_from(make_model(), path).differences == ()
    taps = {"class_path": "vit-256", "init_args": {**VIT["init_args"], "taps": [1, 2, 3, 4], "drop_path_rate": 0.3}}
    report = init_from(make_model(mpp=0.5, mean=[0.7] * 3, encoder=taps), path)
    assert "mpp is 0.5 here and 0.25 there" in report.differences
    assert "mean is [0.7, 0.7, 0.7] here and [0.5, 0.5, 0.5] there" in str(report)
    assert "encoder.taps is [1, 2, 3, 4] here and None there" in report.differences


def test_some_parts_alone(source):
    path, original = source
    model = make_model()
    before = {k: v.clone() for k, v in tensors(model, "decoder.", "heads.").items()}
    report = init_from(model, path, parts=["encoder"])
    assert_same(model, original, "encoder.")
    assert report.loaded == ("encoder",)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_another_architecture_is_refused_and_changes_nothing(source):
    path, _ = source
    other = {"class_path": "vit-256", "init_args": {**VIT["init_args"], "depth": 5}}
    model = make_model(encoder=other)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"the encoder of .*source' does not fit .*missing: vit\.blocks\.4\.norm1"):
        init_from(model, path)
    narrow = {"class_path": "unetr", "init_args": {**SHARED_UNETR["init_args"], "widths": [4, 6, 8, 12]}}
    with pytest.raises(WeightsError, match=r"the decoder of .* of another shape: .*take other parts alone \(enc"):
        init_from(make_model(decoder=narrow), path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_what_fits_of_another_architecture_is_taken_when_asked(source):
    path, original = source
    other = {"class_path": "vit-256", "init_args": {**VIT["init_args"], "depth": 5}}
    narrow = {"class_path": "unetr", "init_args": {**SHARED_UNETR["init_args"], "widths": [4, 6, 8, 12]}}
    model = make_model(encoder=other, decoder=narrow)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = init_from(model, path, strict=False)
    theirs, changed = original.state_dict(), 0
    for name, tensor in model.state_dict().items():
        fits = name in theirs and theirs[name].shape == tensor.shape
        torch.testing.assert_close(tensor, theirs[name] if fits else before[name])
        changed += fits
    assert 0 < changed < len(before)
    of_block = sum(name.startswith("encoder.vit.blocks.4.") for name in before)
    total = sum(name.startswith("encoder.") for name in before)
    assert f"of the encoder, {of_block} of {total} tensors do not fit (missing: vit.blocks.4.norm1" in str(report)
    assert "of another shape" in report.reinitialised["decoder"]
    with pytest.raises(WeightsError, match="the encoder of"):
        init_from(make_model(encoder={"class_path": "hybrid", "init_args": {"embed_dim": 24}}), path, strict=False)


@pytest.mark.parametrize("parts", [[], ["encoders"], "encoder"])
def test_unknown_parts_are_refused(parts, source):
    with pytest.raises(ConfigError, match="must be a list of some of encoder, decoder, heads"):
        init_from(make_model(), source[0], parts=parts)


def test_an_unknown_source_is_refused():
    with pytest.raises(UnknownPluginError, match="neither a path nor a bundled model"):
        init_from(make_model(), "no-such-model")


class Start(L.Callback):
    """Keeps the encoder's first weights as training starts."""

    def on_train_start(self, trainer, pl_module):
        self.state = {k: v.clone() for k, v in pl_module.state_dict().items()}


def fit(model, folder, *callbacks, ckpt_path=None, epochs=1):
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=list(callbacks), default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
    return trainer


def test_training_starts_from_the_source_and_resumes_from_its_checkpoint(source, tmp_path, monkeypatch):
    path, original = source
    monkeypatch.setenv("MODELS", str(path.parent))
    start, model = Start(), make_model(classes=2)
    said = []
    monkeypatch.setattr("cellvit.training.finetuning.rank_zero_info", said.append)
    trainer = fit(model, tmp_path, InitFrom("$MODELS/source"), start)
    assert "heads.nuclei_type_map starts anew" in said[0]
    for name, tensor in tensors(original, "encoder.", "decoder.").items():
        assert torch.equal(start.state[name], tensor), name
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Start()
    fit(make_model(classes=2), tmp_path, InitFrom("/nowhere"), again, ckpt_path=tmp_path / "a.ckpt", epochs=2)
    trained = model.state_dict()
    assert all(torch.equal(again.state[name], trained[name]) for name in tensors(original, "encoder.", "decoder."))


def test_an_unset_variable_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"source '\$NO_SUCH_FOLDER/a' names NO_SUCH_FOLDER, which is not set"):
        fit(make_model(), tmp_path, InitFrom("$NO_SUCH_FOLDER/a"))


def with_adapters(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def test_adapters_start_from_a_plain_model_and_merge_into_one(source, tmp_path):
    path, original = source
    lora = {"class_path": "lora", "init_args": {"encoder": VIT, "rank": 2}}
    model = make_model(encoder=lora)
    report = init_from(model, path)
    assert report.reinitialised == {}
    image = torch.rand(2, 3, 48, 32)
    torch.testing.assert_close(model.eval()(image), original.eval()(image))
    adapted = with_adapters(model)
    plain = merge_adapters(adapted)
    assert isinstance(plain.encoder, ViTEncoder)
    assert not plain.training
    torch.testing.assert_close(plain(image), adapted(image), rtol=1e-4, atol=1e-4)
    plain.save_pretrained(tmp_path / "merged")
    again = CellViT.from_pretrained(tmp_path / "merged")
    assert again.settings["encoder"] == VIT
    torch.testing.assert_close(again(image), plain(image))
    adapted.save_pretrained(tmp_path / "adapted")
    assert main(["export", str(tmp_path / "adapted"), "--out", str(tmp_path / "exported"), "--merge-adapters"]) == 0
    assert_same(CellViT.from_pretrained(tmp_path / "exported"), plain, "encoder.", "decoder.", "heads.")
    further = make_model(encoder=lora)
    init_from(further, tmp_path / "adapted")
    torch.testing.assert_close(further.eval()(image), adapted(image))


def test_a_model_without_adapters_has_nothing_to_merge(source, capsys):
    with pytest.raises(ConfigError, match="encoder ViTEncoder has no adapters to merge"):
        merge_adapters(make_model())
    assert main(["export", str(source[0]), "--out", str(source[0].parent / "out"), "--merge-adapters"]) == 1
    assert "has no adapters to merge" in capsys.readouterr().err
    assert not (source[0].parent / "out").exists()
