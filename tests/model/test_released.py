"""Checkpoints of the published implementation: every tensor has its place, and the outputs are those of the method."""

import argparse
import json
import os
import pathlib
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.functional_cellvit import SIZES, Size, encode, network
from support.released_files import (
    ENTRIES,
    NUCLEI,
    PARAMETERS,
    SMALL,
    TISSUES,
    content_of,
    hollow_state,
    number_of_parameters,
    random_state,
    released,
    shapes_of,
    write,
)

from cellvit import CellViT
from cellvit.encoders import SAMEncoder
from cellvit.errors import UnknownPluginError, WeightsError
from cellvit.model.checkpoint import read_model
from cellvit.model.released import Spelling
from cellvit.weights.safe_loading import open_safely

pytestmark = pytest.mark.filterwarnings("ignore:licence of ")
PAGE = Path(__file__).parents[2] / "docs/pages/how-to/released-weights.md"
SMALL_SAM = Size(24, 4, 3, (1, 2, 3, 4), (1, 3))
EXHAUSTIVE = os.environ.get("CELLVIT_EXHAUSTIVE") == "1"
"""Whether whole networks of all encoders run at 1024 px."""


@pytest.fixture
def file(tmp_path):
    """Return a place for a file of up to 2.8 GB that is gone after the test."""
    path = tmp_path / "released.pth"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a small released checkpoint: a plain ViT of four blocks under the published decoder, 100 MB."""
    path = write(tmp_path_factory.mktemp("small") / "small.pth", released("small"))
    yield path
    path.unlink()


@pytest.fixture
def folder(tmp_path):
    """Return a place for a model that is gone after the test."""
    yield tmp_path / "model"
    shutil.rmtree(tmp_path / "model", ignore_errors=True)


def assert_close(ours, theirs):
    """Check that tensors agree to 1e-4 of their spread."""
    assert ours.shape == theirs.shape
    spread = theirs.std().item()
    assert spread > 0.1
    assert (ours - theirs).abs().max().item() < 1e-4 * spread


# The same outputs as an independent statement of the method.


def compare(name, file, sides, *, whole=True):
    """Check the outputs, or the encoder's alone, of a network of published size on images of some sizes."""
    size = SIZES[name]
    model = CellViT.from_pretrained(write(file, released(name)))
    assert not model.training
    state = open_safely(file)["model_state_dict"]  # on the disk, so that the memory holds the weights once
    for height, width in sides:
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            if whole:
                ours, theirs = model(image), network(state, image, size)
                assert set(ours) == set(theirs)
                for output, value in theirs.items():
                    assert_close(ours[output], value)
            else:
                encoded = model.encoder((image - 0.5) / 0.5)
                taps, tissue = encode(state, (image - 0.5) / 0.5, size)
                assert_close(model.heads["tissue_types"](encoded.pooled), tissue)
                for feature, tap in zip(encoded.features, taps, strict=True):
                    assert_close(feature, tap)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_outputs_at_256_px_are_those_of_the_method(name, file):
    compare(name, file, [(256, 256), (256, 320)] if name == "vit-256" else [(256, 256)])


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_outputs_at_1024_px_are_those_of_the_method(name, file):
    """By default without the decoder, which is convolutional and ran at 256 px."""
    if name in ("sam-l", "sam-h") and not EXHAUSTIVE:
        pytest.skip("SAM-L and SAM-H take ten minutes at 1024 px; set CELLVIT_EXHAUSTIVE=1 to run them")
    compare(name, file, [(1024, 1024)], whole=EXHAUSTIVE)


def test_a_small_network_gives_the_outputs_of_the_method_for_any_statistics_of_pixels(file):
    state = random_state(shapes_of(SMALL))
    changes = {"transformations__normalize__mean": [0.4] * 3, "transformations__normalize__std": [0.2] * 3}
    model = CellViT.from_pretrained(write(file, content_of("small", state, **changes)))
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        ours, theirs = model(image), network(state, image, SMALL, mean=0.4, std=0.2)
    for output, value in theirs.items():
        assert_close(ours[output], value)


def small_sam():
    """Return SAM's encoder in small with the tensors of a file, which it holds under our names."""
    state = {name: value for name, value in random_state(shapes_of(SMALL_SAM)).items() if "decoder" not in name}
    encoder = SAMEncoder(embed_dim=24, depth=4, num_heads=3, global_attention=(1, 3)).eval()
    inner = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    encoder.net.load_state_dict(inner)
    return encoder, state


@pytest.mark.parametrize("sides", [(256, 256), (256, 320), (1024, 1024)])
def test_a_small_sam_gives_the_maps_of_the_method(sides):
    encoder, state = small_sam()
    image = torch.randn(1, 3, *sides)
    with torch.inference_mode():
        ours, (taps, tissue) = encoder(image), encode(state, image, SMALL_SAM)
    for feature, tap in zip(ours.features, taps, strict=True):
        assert_close(feature, tap)
    head = state["classifier_head.weight"], state["classifier_head.bias"]
    assert_close(torch.nn.functional.linear(ours.pooled, *head), tissue)


def test_256_px_read_the_corner_of_the_position_embedding_and_1024_px_all_of_it():
    encoder, state = small_sam()
    changed = state["encoder.pos_embed"] + 1
    changed[:, :16, :16] = state["encoder.pos_embed"][:, :16, :16]
    for side, same in ((256, True), (1024, False)):
        image = torch.randn(1, 3, side, side)
        with torch.inference_mode():
            before, expected = encoder(image), encode(state, image, SMALL_SAM)[0]
            encoder.net.pos_embed.copy_(changed)
            after = encoder(image)
            encoder.net.pos_embed.copy_(state["encoder.pos_embed"])
            stated = encode({**state, "encoder.pos_embed": changed}, image, SMALL_SAM)[0]
        assert torch.equal(after.features[3], before.features[3]) is same
        assert torch.equal(stated[3], expected[3]) is same


@pytest.mark.parametrize("size", [SMALL, SMALL_SAM], ids=["vit", "sam"])
def test_every_tensor_matters(size):
    """A network that ignored a tensor would agree with a statement that ignores it too."""
    state = random_state(shapes_of(size))
    leaves = {name: value.requires_grad_() for name, value in state.items() if value.is_floating_point()}
    outputs = network(state, torch.rand(1, 3, 64, 64), size)
    total = sum((value * torch.randn(value.shape)).sum() for value in outputs.values())
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        assert gradient is not None, name
        assert gradient.abs().max() > 1e-4, name
    rest = [name for name in state if name not in leaves]
    assert all(name.endswith("num_batches_tracked") for name in rest)


# Names, shapes and counts.


@pytest.mark.parametrize("name", ENTRIES)
def test_files_have_the_published_counts_and_find_a_place_for_every_tensor(name, file):
    shapes = shapes_of(SIZES[name])
    assert (len(shapes), number_of_parameters(shapes)) == (ENTRIES[name], PARAMETERS[name])
    write(file, content_of(name, hollow_state(shapes)))
    settings, state = read_model(file)
    # timm 1.0.20 cannot build a plain ViT without memory, and that one is small
    with torch.device("cpu" if name == "vit-256" else "meta"):
        own = {k: v.shape for k, v in CellViT(**settings).state_dict().items()}
    assert {k: v.shape for k, v in state.items()} == own


@pytest.mark.parametrize("name", ["small", "vit-256", "sam-b"])
def test_names_lead_there_and_back(name):
    is_sam = name.startswith("sam")
    spelling = Spelling(
        encoder="net" if is_sam else "vit", tissue_layer="classifier_head" if is_sam else "encoder.head"
    )
    names = list(shapes_of({**SIZES, "small": SMALL}[name]))
    ours = [spelling.ours(theirs) for theirs in names]
    assert len(set(ours)) == len(names)
    assert [spelling.theirs(own) for own in ours] == names
    assert spelling.ours("optimizer.lr") == "optimizer.lr"


def test_settings_become_those_of_a_model(small):
    model = CellViT.from_pretrained(small)
    assert model.classes.names == NUCLEI
    assert list(model.tissue_names) == list(TISSUES)
    assert model.mpp == 0.25
    assert model.settings["postprocessor"] == {"class_path": "hv-watershed", "init_args": {"magnification": 40}}
    assert {"licence", "origin", "cite", "data"} <= set(model.about)
    assert model.about["source"]["file"] == "small.pth"


@pytest.mark.parametrize(
    ("changes", "mpp"),
    [
        ({"data__magnification": 20}, 0.5),
        ({"data__magnification": "x40"}, 0.25),
        ({"data__dataset_path": "/data/PanNuke/x20"}, 0.5),
        ({}, 0.25),
    ],
)
def test_resolution_is_what_the_file_states(changes, mpp, file):
    model = CellViT.from_pretrained(write(file, released("small", hollow=True, **changes)))
    assert model.mpp == mpp
    assert model.postprocessor.init_args["magnification"] == 10 / mpp


def test_other_counts_of_classes_work(file):
    state = hollow_state(shapes_of(SMALL, types=3, tissues=2))
    changes = {"data__num_nuclei_classes": 3, "data__num_tissue_classes": 2}
    names = {f"dataset_config__nuclei_types__{key}": None for key in NUCLEI[3:]}
    model = CellViT.from_pretrained(write(file, content_of("small", state, **changes, **names)))
    assert model.classes.names == NUCLEI[:3]
    assert model(torch.rand(1, 3, 32, 32))["tissue_types"].shape == (1, 2)


def test_a_released_model_is_found_by_its_name_in_the_folder_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    with pytest.raises(UnknownPluginError, match="is not here; 'cellvit models CellViT-256-x40' says"):
        CellViT.from_pretrained("CellViT-256-x40")
    write(tmp_path / "CellViT-256-x40.pth", released("small"))
    assert CellViT.from_pretrained("CellViT-256-x40").about["source"]["file"] == "CellViT-256-x40.pth"


def test_a_regression_map_is_left_out_and_said(file):
    state = random_state(shapes_of(SMALL, regression=True))
    path = write(file, content_of("small", state, model__regression_loss=True))
    model, image = CellViT.from_pretrained(path), torch.rand(1, 3, 32, 32)
    assert "regression map" in model.about["left_out"]
    with torch.inference_mode():
        assert_close(model(image)["nuclei_binary_map"], network(state, image, SMALL)["nuclei_binary_map"][:, :2])


def test_nested_settings_and_older_files_are_read(small, file):
    content = torch.load(small, weights_only=False)
    nested = {}
    for name, value in content["config"].items():
        *parents, last = name.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    expected, state = read_model(small)
    for config in (nested, argparse.Namespace(**nested)):
        path = write(file, {**content, "config": config}, _use_new_zipfile_serialization=False)
        settings, ours = read_model(path)
        assert {**settings, "about": None} == {**expected, "about": None}
        assert all(torch.equal(ours[name], value) for name, value in state.items())


def test_a_converted_model_is_saved_and_loaded_with_the_same_outputs(small, folder):
    model = CellViT.from_pretrained(small)
    model.save_pretrained(folder)
    again, image = CellViT.from_pretrained(folder), torch.rand(1, 3, 48, 32)
    assert again.settings == model.settings
    for name, value in model.predict_maps(image).items():
        assert torch.equal(again.predict_maps(image)[name], value)
    assert json.loads((folder / "config.json").read_text())["model"]["about"]["source"]["arch"] == "CellViT"


# What cannot be used.


def hollow_with(file, change=None, **changes):
    """Write a small checkpoint without values, changed."""
    content = {**released("small", hollow=True), **changes}
    if change:
        change(content["model_state_dict"])
    return write(file, content)


def test_a_missing_and_an_unknown_tensor_are_named_as_the_file_spells_them(file):
    def lose(state):
        del state["hv_map_decoder.decoder1_upsampler.0.block.1.running_mean"]
        del state["encoder.blocks.2.attn.qkv.bias"]
        state["regression_decoder.weight"] = torch.zeros(2)

    with pytest.raises(WeightsError) as caught:
        CellViT.from_pretrained(hollow_with(file, lose))
    text = str(caught.value)
    assert "missing: hv_map_decoder.decoder1_upsampler.0.block.1.running_mean, encoder.blocks.2.attn.qkv.bias;" in text
    assert "unused: regression_decoder.weight" in text
    assert "released.pth" in text


def test_a_tensor_of_another_shape_is_named(file):
    def widen(state):
        state["decoder2.0.block.1.weight"] = torch.zeros(256, 255, 3, 3)

    with pytest.raises(WeightsError, match=r"decoder2.0.block.1.weight \(256, 255, 3, 3\) for \(256, 256, 3, 3\)"):
        CellViT.from_pretrained(hollow_with(file, widen))


def test_a_tensor_that_is_there_twice_is_refused(file):
    def repeat(state):
        state["encoder.vit.cls_token"] = state["encoder.cls_token"]
        state["decoder.skips.0.0.0.bias"] = state["decoder0.0.block.0.bias"]

    with pytest.raises(WeightsError, match="two tensors that are the same one of a network"):
        CellViT.from_pretrained(hollow_with(file, repeat))


def test_weights_of_another_encoder_are_refused(file):
    content = content_of("sam-b", hollow_state(shapes_of(SIZES["sam-l"])))
    with pytest.raises(WeightsError, match=r"model.backbone 'SAM-B', which makes tokens of 768 .* \(1, 64, 64, 1024\)"):
        CellViT.from_pretrained(write(file, content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__num_nuclei_classes": 7}, r"data.num_nuclei_classes 7, .* nuclei_type_maps_decoder.decoder0_header.2"),
        ({"data__num_tissue_classes": 5}, r"data.num_tissue_classes 5, .* encoder.head.weight has shape \(19, 24\)"),
        ({"data__num_nuclei_classes": None}, "has setting data.num_nuclei_classes None; it must be a whole number"),
        ({"model__regression_loss": True}, "model.regression_loss True, which needs 4 outputs"),
        ({"data__magnification": 10}, "data.magnification 10; post-processing is known for 40 and 20"),
        ({"model__embed_dim": 48}, r"model.embed_dim 48, .* encoder.pos_embed has shape \(1, 197, 24\)"),
        ({"model__depth": 6}, "model.depth 6, but tensors of 4 blocks"),
        ({"transformations__normalize__std": [1, 2]}, "transformations.normalize.std .* must be three numbers"),
        ({"dataset_config__nuclei_types__Dead": 9}, "dataset_config.nuclei_types .* must be numbered from 0 to 5"),
    ],
)
def test_settings_that_contradict_the_tensors_or_cannot_be_are_named(changes, message, file):
    with pytest.raises(WeightsError, match=message):
        CellViT.from_pretrained(write(file, released("small", hollow=True, **changes)))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("CellViT256Shared", "shared decoder were not released"),
        ("HoVerNet", "unknown architecture 'HoVerNet'; this version converts CellViT256, CellViTSAM and CellViT"),
        ("CellViT256", r"architecture 'CellViT256', which makes tokens of 384 channels, but tensor encoder.pos_embed"),
        ("CellViTSAM", "setting model.backbone 'default'; architecture 'CellViTSAM' knows SAM-B, SAM-L and SAM-H"),
    ],
)
def test_other_architectures_are_refused(arch, message, file):
    with pytest.raises(WeightsError, match=message):
        CellViT.from_pretrained(hollow_with(file, arch=arch))


@pytest.mark.parametrize(("key", "value"), [("config", [1, 2]), ("model_state_dict", torch.zeros(2))])
def test_a_part_of_the_file_that_is_something_else_is_named(key, value, file):
    with pytest.raises(WeightsError, match=f"holds a {type(value).__name__} as '{key}'"):
        CellViT.from_pretrained(hollow_with(file, **{key: value}))


@pytest.mark.parametrize(
    ("content", "message"),
    [  # each with what the message says
        ({"image_encoder.pos_embed": torch.zeros(2)}, "weights of an encoder alone; the callback .*PretrainedEncoder"),
        ({"teacher": {"module.backbone.cls_token": torch.zeros(2)}}, "weights of an encoder alone"),
        ({"decoder0.0.block.0.weight": torch.zeros(2)}, "holds .*decoder0"),
        (
            {"hv_map_decoder.bottleneck_upsampler.weight": torch.zeros(2)},
            r"without \['arch', 'config'\], which",
        ),
        ({"model_state_dict": {"fc1.weight": torch.zeros(2)}, "config": {}}, "a classifier of nuclei by their embed"),
        ({"model_state_dict": {"a": torch.zeros(2)}, "arch": "CellViT256"}, r"but not \['config'\]"),
        ({"state": {}, "param_groups": []}, "state of an optimiser without a network"),
        ([1, 2], "holds a list"),
    ],
)
def test_other_files_say_what_they_are_and_what_takes_them(content, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        CellViT.from_pretrained(write(tmp_path / "other.pth", content))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(share, zipped, tmp_path):
    content = content_of("small", random_state({"encoder.pos_embed": (1, 197, 24)}))
    path = write(tmp_path / "cut.pth", content, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=r"cut.pth' is not a checkpoint or is damaged"):
        CellViT.from_pretrained(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"<!doctype html><html>", "is a web page instead of the file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n", "is not a checkpoint or is damaged"),
        (b'\x40\0\0\0\0\0\0\0{"__metadata__"', "is a safetensors file"),
    ],
)
def test_a_file_of_another_kind_says_which(start, message, tmp_path):
    path = tmp_path / "download.pth"
    path.write_bytes(start + bytes(100))
    with pytest.raises(WeightsError, match=message):
        CellViT.from_pretrained(path)


def test_a_zip_archive_of_other_files_says_so(tmp_path):
    path = tmp_path / "classifier.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sam-h/consep.pth", b"")
    with pytest.raises(WeightsError, match=r"is a ZIP archive with \['sam-h/consep.pth'\], .* unpack it"):
        CellViT.from_pretrained(path)


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "legacy"])
def intact(request, tmp_path_factory):
    content = content_of("small", random_state({"encoder.pos_embed": (1, 197, 24)}))
    path = tmp_path_factory.mktemp("intact") / "a.pth"
    return write(path, content, _use_new_zipfile_serialization=request.param).read_bytes(), path.with_name("b.pth")


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_refused_wherever_the_damage_is(intact, data):
    content, path = intact
    damaged = bytearray(content)
    # the description of the file is at its start, that of an archive also at its end
    places = st.one_of(st.integers(0, 4000), st.integers(len(content) - 1500, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(places)] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with pytest.raises(WeightsError):  # the intact one lacks tensors, too
        CellViT.from_pretrained(path)


def test_damage_among_the_values_is_found_by_their_check_sum(small, tmp_path):
    damaged = bytearray(small.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(b ^ 255 for b in damaged[middle : middle + 64])
    (tmp_path / "bits.pth").write_bytes(damaged)
    CellViT.from_pretrained(small)
    with pytest.raises(WeightsError, match=r"is damaged \(check sum of .*/data/"):
        CellViT.from_pretrained(tmp_path / "bits.pth")


# Nothing in a file is run.


class Bomb:
    """An object whose loading would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["config", "optimizer_state_dict", "model_state_dict"])
def test_code_in_a_file_does_not_run(place, zipped, file):
    mark = file.with_name("mark")
    content = content_of("small", {"encoder.pos_embed": torch.zeros(1, 197, 24)})
    content[place]["extra"] = {"inside": [Bomb(mark)]}
    write(file, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"released.pth' cannot be opened safely .* if you trust its origin"):
        CellViT.from_pretrained(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # and it would have run
    assert mark.exists()


def test_a_bare_pickle_with_code_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(mark), protocol))
        with pytest.raises(WeightsError):
            CellViT.from_pretrained(tmp_path / "evil.pth")
        assert not mark.exists()


def test_plain_data_of_a_training_run_is_read(tmp_path):
    things = {
        "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("C:/a"), Path("c")],
        "numbers": [np.dtype(code).type(1) for code in "?bBhHiIlLefd"],
        "arguments": argparse.Namespace(lr=np.float64(0.1), where=Path("d")),
    }
    for zipped in (True, False):
        path = write(tmp_path / "a.pth", things, _use_new_zipfile_serialization=zipped)
        read = open_safely(path)
        assert [str(p) for p in read["paths"]] == ["/a/b", "C:\\a", "c"]
        assert not any(isinstance(p, Path) for p in read["paths"])  # these could touch a disk
        assert read["numbers"] == things["numbers"]
        assert read["arguments"].lr == 0.1


class Leftover:
    """An object of a program that is not at hand where a file is converted."""


def test_the_way_out_for_a_file_that_needs_more_works(small, tmp_path, monkeypatch, file):
    content = {**torch.load(small, weights_only=False), "arch": "CellViT"}
    content["config"] |= {"sweep": Leftover(), "logging.tags": ["a", Leftover()]}
    monkeypatch.chdir(tmp_path)
    write(file.with_name("theirs.pth"), content)
    with pytest.raises(WeightsError, match=r"it asks for \S*test_released.Leftover"):
        CellViT.from_pretrained("theirs.pth")
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    Path("theirs.pth").unlink()
    Path("plain.pth").replace(file)
    assert CellViT.from_pretrained(file).classes.names == NUCLEI
