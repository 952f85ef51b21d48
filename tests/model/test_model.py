from itertools import pairwise

import pytest
import torch
from torch import nn

from cellvit import CellViT, Encoder, EncoderOutput, FeatureInfo, HVPostprocessor, NucleiPrediction
from cellvit.errors import ConfigError, UnknownPluginError
from cellvit.model.build import true_nuclei


class ConvStem(Encoder):
    """Four strided convolutions, as a user would write them."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(sizes))
        self.features = [FeatureInfo(c, 2 ** (i + 1)) for i, c in enumerate(sizes[1:])]
        self.pooled_channels = sizes[-1]

    def forward(self, image):
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return EncoderOutput(maps, image.mean((2, 3)))


def test_the_published_network_in_one_line():
    model = CellViT(encoder="vit-256", num_nuclei_classes=6, num_tissue_classes=19)
    assert sum(p.numel() for p in model.parameters()) == 46_750_349
    assert model.classes.names[1:] == ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
    with torch.inference_mode():
        outputs = model.eval()(torch.rand(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "nuclei_binary_map": (1, 2, 64, 96),
        "hv_map": (1, 2, 64, 96),
        "nuclei_type_map": (1, 6, 64, 96),
        "tissue_types": (1, 19),
        "embedding_map": (1, 384, 4, 6),
    }


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (16, 16), (50, 33), (64, 48)])
def test_maps_of_any_size(small_model, size):
    maps = small_model.predict_maps(torch.rand(2, 3, *size))
    assert tuple(maps["nuclei_binary_map"].shape) == (2, 2, *size)
    assert tuple(maps["hv_map"].shape) == (2, 2, *size)
    assert tuple(maps["nuclei_type_map"].shape) == (2, 3, *size)
    torch.testing.assert_close(maps["nuclei_binary_map"].sum(1), torch.ones(2, *size))
    arrays = {k: v[0].numpy() for k, v in maps.items()}
    prediction = small_model.postprocess(arrays)
    assert isinstance(prediction, NucleiPrediction)
    assert prediction.nuclei.classes == small_model.classes
    assert prediction.nuclei.embedding.shape == (len(prediction.nuclei), 16)


def test_sides_that_are_no_multiple_of_16_are_refused_by_forward(small_model):
    with pytest.raises(ConfigError, match="50x64"):
        small_model(torch.rand(1, 3, 50, 64))


def test_normalisation_is_part_of_the_model(small_settings):
    plain = CellViT(**small_settings, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    shifted = CellViT(**small_settings, mean=(0.7, 0.5, 0.6), std=(0.2, 0.3, 0.1)).eval()
    shifted.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 32)
    moved = (image - torch.tensor([0.7, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(shifted(image)["hv_map"], plain(moved)["hv_map"])


def test_parts_as_instances_classes_and_dotted_paths_mean_the_same(small_settings):
    given = {**small_settings, "encoder": ConvStem(width=4)}
    model = CellViT(**given, postprocessor=HVPostprocessor(magnification=20))
    settings = dict(model.hparams)
    assert settings["encoder"]["init_args"] == {"width": 4}
    assert settings["encoder"]["class_path"].endswith("test_model.ConvStem")
    assert settings["postprocessor"]["init_args"] == {"magnification": 20}
    again = CellViT(**settings)
    again.load_state_dict(model.state_dict())
    assert again.postprocessor.magnification == 20
    assert isinstance(CellViT(**{**given, "encoder": ConvStem}).encoder, ConvStem)


def test_a_branch_can_be_left_out(small_settings):
    model = CellViT(**small_settings, heads={"nuclei_binary_map": "binary", "hv_map": "hv"}).eval()
    maps = model.predict_maps(torch.rand(1, 3, 32, 32))
    assert "nuclei_type_map" not in maps
    nuclei = model.postprocess({k: v[0].numpy() for k, v in maps.items()}).nuclei
    assert set(nuclei.type.tolist()) <= {1}


def test_heads_that_cannot_feed_the_postprocessor_are_refused(small_settings):
    with pytest.raises(ConfigError, match=r"needs \['hv_map'\]"):
        CellViT(**small_settings, heads={"nuclei_binary_map": "binary"})


def test_a_head_under_anothers_name_is_refused(small_settings):
    with pytest.raises(ConfigError, match="own name"):
        CellViT(**small_settings, heads={"nuclei_binary_map": "hv", "hv_map": "hv"})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"encoder": "vit-265"}, UnknownPluginError, "vit-256"),
        ({"encoder": {"class_path": "hybrid", "init_args": {"witdh": 3}}}, ConfigError, "widths"),
        ({"encoder": "torch.nn.Linear"}, ConfigError, "does not derive from Encoder"),
        ({"num_nuclei_classes": 1}, ConfigError, "2 or more"),
        ({"class_names": ["Background"]}, ConfigError, "1 class_names for num_nuclei_classes 3"),
        ({"metrics": ["tissue-accuracy"]}, ConfigError, "NucleiMetric"),
    ],
)
def test_wrong_settings_say_what_to_do(small_settings, change, error, message):
    with pytest.raises(error, match=message):
        CellViT(**{**small_settings, **change})


def test_wrong_optimizer_arguments_are_named(small_settings):
    model = CellViT(**small_settings, optimizer={"class_path": "torch.optim.AdamW", "init_args": {"learning_rate": 1}})
    with pytest.raises(ConfigError, match=r"AdamW.*learning_rate"):
        model.configure_optimizers()


def test_only_optimisers_are_taken_for_optimisers(small_settings):
    model = CellViT(**small_settings, optimizer={"class_path": "builtins.print", "init_args": {}})
    with pytest.raises(ConfigError, match="does not derive from Optimizer"):
        model.configure_optimizers()


def test_parameters_without_a_use_do_not_train():
    small = {"class_path": "vit-256", "init_args": {"embed_dim": 24, "depth": 4, "num_heads": 2}}
    frozen = [n for n, p in CellViT(small, 3).named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.vit.norm.weight", "encoder.vit.norm.bias"]
    assert all(p.requires_grad for p in CellViT(small, 3, 2).parameters())


def test_default_optimiser_and_schedule_are_the_published_ones(small_model):
    configured = small_model.configure_optimizers()
    group = configured["optimizer"].param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (3e-4, (0.85, 0.95), 1e-4)
    scheduler = configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(26):
        rates.append(group["lr"])
        configured["optimizer"].step()
        scheduler.step()
    assert rates[9] == pytest.approx(1.89e-4, rel=1e-2)  # the published log of epoch 10
    assert rates[25] == pytest.approx(8.32e-5, rel=1e-2)  # and of epoch 26
    assert configured["lr_scheduler"]["interval"] == "epoch"


def test_true_nuclei_keep_their_types_and_unknown_ones_are_minus_one():
    instances = torch.zeros(1, 20, 20, dtype=torch.int64)
    instances[0, 2:8, 2:8], instances[0, 10:16, 4:9] = 3, 8
    types = torch.zeros_like(instances)
    types[instances == 3], types[instances == 8] = -1, 2
    (truth,) = true_nuclei({"instance_map": instances, "nuclei_type_map": types})
    assert truth.nuclei.type.tolist() == [-1, 2]
    assert truth.instance_map.max() == 2
