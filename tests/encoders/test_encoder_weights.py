"""Published weight files: the names and shapes they have, what they carry beside the encoder, and broken ones."""

import argparse
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.build_sam import sam_model_registry

from cellvit.encoders import ENCODERS, HybridEncoder, SAMEncoder, ViTEncoder, load_encoder_weights
from cellvit.encoders.pretrained import rename
from cellvit.errors import WeightsError


def small_vit():
    return ViTEncoder(embed_dim=24, depth=4, num_heads=3)


def small_sam():
    return SAMEncoder(
        embed_dim=24, depth=4, num_heads=3, global_attention=(1, 3), window_size=3, pretrained_grid=4, out_chans=8
    )


def dino_shapes(width=384, depth=12):
    """Return the names and shapes of DINO's backbone, written out."""
    block = {
        "norm1.weight": (width,), "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "norm2.weight": (width,), "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
    }


HEAD = {"head.mlp.0.weight": (8, 24), "head.last_layer.weight_g": (5, 1), "head.last_layer.weight_v": (5, 8)}


def tensors(shapes, prefix=""):
    return {f"{prefix}{name}": torch.randn(shape) for name, shape in shapes.items()}


def sam_file(encoder):
    """Return the content of a SAM file that holds an encoder's weights, and parts of the rest."""
    return {
        **{f"image_encoder.{name}": value.clone() for name, value in encoder.net.state_dict().items()},
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.randn(2, 4),
        "prompt_encoder.point_embeddings.0.weight": torch.randn(1, 8),
        "mask_decoder.iou_token.weight": torch.randn(1, 8),
        "mask_decoder.transformer.layers.0.self_attn.q_proj.weight": torch.randn(8, 8),
    }


def written(content, path):
    torch.save(content, path)
    return path


def assert_filled(module, values, prefix=""):
    state = module.state_dict()
    for name, value in state.items():
        assert torch.equal(value, values[f"{prefix}{name}"].to(value.dtype)), name


# HIPT


def test_hipts_file_fills_vit_256(tmp_path):
    backbone = tensors(dino_shapes(), "module.backbone.")
    content = {"teacher": {**backbone, **tensors(HEAD, "module.head.")}, "student": {"anything": torch.zeros(1)}}
    encoder = ENCODERS.get("vit-256")()
    load_encoder_weights(encoder, written(content, tmp_path / "vit256_small_dino.pth"))
    assert len(encoder.vit.state_dict()) == len(backbone) == 150
    assert_filled(encoder.vit, backbone, "module.backbone.")


def test_a_training_file_of_dino_holds_plain_data_beside_the_tensors(tmp_path):
    teacher = tensors(dino_shapes(24, 4), "backbone.")
    content = {
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.0005), "params": [0, 1]}]},
        "epoch": 99,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, global_crops_scale=(0.4, 1.0), optimizer="adamw"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    encoder = small_vit()
    load_encoder_weights(encoder, written(content, tmp_path / "checkpoint.pth"))
    assert_filled(encoder.vit, teacher, "backbone.")


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_either_numpy_are_read(module, tmp_path):
    teacher = tensors(dino_shapes(24, 4))
    path = tmp_path / "x.pth"
    torch.save({"teacher": teacher, "lr": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    plain, count = re.subn(rb"cnumpy\._?core\.multiarray\n", f"c{module}\n".encode(), path.read_bytes())
    assert count == 1
    path.write_bytes(plain)
    load_encoder_weights(small_vit(), path)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_a_backbone_alone_works(prefix, tmp_path):
    content = tensors(dino_shapes(24, 4), prefix)
    encoder = small_vit()
    load_encoder_weights(encoder, written(content, tmp_path / "x.pt"))
    assert_filled(encoder.vit, content, prefix)


def test_safetensors_work(tmp_path):
    content = tensors(dino_shapes(24, 4))
    save_file(content, tmp_path / "x.safetensors")
    encoder = small_vit()
    load_encoder_weights(encoder, tmp_path / "x.safetensors")
    assert_filled(encoder.vit, content)


def test_a_teacher_that_is_no_network(tmp_path):
    with pytest.raises(WeightsError, match="'teacher' is a Tensor"):
        load_encoder_weights(small_vit(), written({"teacher": torch.zeros(1)}, tmp_path / "x.pth"))


# SAM


@pytest.mark.parametrize("stripped", [False, True], ids=["whole", "image-encoder-alone"])
def test_a_file_of_sam_fills_its_encoder(stripped, tmp_path):
    source, encoder = small_sam(), small_sam()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    content = dict(source.net.state_dict()) if stripped else sam_file(source)
    load_encoder_weights(encoder, written(content, tmp_path / "sam.pth"))
    assert_filled(encoder, source.state_dict())


@pytest.mark.parametrize(("name", "theirs"), [("sam-b", "vit_b"), ("sam-l", "vit_l"), ("sam-h", "vit_h")])
def test_names_and_shapes_are_those_of_segment_anything(name, theirs):
    with torch.device("meta"):
        encoder, content = ENCODERS.get(name)(), sam_model_registry[theirs]().state_dict()
    found = {key: value.shape for key, value in encoder.weights_from(content).items()}
    assert found == {key: value.shape for key, value in encoder.state_dict().items()}
    assert len(content) > len(found)


def test_half_precision_becomes_the_encoders_own(tmp_path):
    source, encoder = small_sam(), small_sam()
    half = {name: value.half() for name, value in sam_file(source).items()}
    load_encoder_weights(encoder, written(half, tmp_path / "sam.pth"))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert_filled(encoder.net, half, "image_encoder.")


def test_a_file_of_another_size_names_the_first_tensors_and_changes_nothing(tmp_path):
    with torch.device("meta"):
        large, base = ENCODERS.get("sam-l")(), ENCODERS.get("sam-b")()
    large_state = {f"image_encoder.{k}": torch.empty(1).expand(v.shape) for k, v in large.net.state_dict().items()}
    encoder = small_sam()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    path = written(large_state, tmp_path / "sam_vit_l_0b3195.pth")
    with pytest.raises(WeightsError) as caught:
        load_encoder_weights(base, path)
    text = str(caught.value)
    assert "sam_vit_l_0b3195.pth' do not fit encoder SAMEncoder" in text
    assert "unused: net.blocks.12.norm1.weight" in text
    assert "net.pos_embed (1, 64, 64, 1024) for (1, 64, 64, 768)" in text
    assert "sam_vit_b_01ec64.pth" in text
    with pytest.raises(WeightsError, match="of another shape"):
        load_encoder_weights(encoder, path)
    assert_filled(encoder, before)


# Every tensor is accounted for


@pytest.mark.parametrize("name", ["image_encoder.neck.3.bias", "image_encoder.blocks.1.attn.rel_pos_w"])
def test_a_missing_tensor_is_named(name, tmp_path):
    content = sam_file(small_sam())
    del content[name]
    with pytest.raises(WeightsError, match=f"missing: {name.replace('image_encoder', 'net')}"):
        load_encoder_weights(small_sam(), written(content, tmp_path / "sam.pth"))


@pytest.mark.parametrize("name", ["image_encoder.blocks.0.attn.extra", "adapter.weight"])
def test_an_unknown_tensor_is_named(name, tmp_path):
    content = {**sam_file(small_sam()), name: torch.zeros(1)}
    with pytest.raises(WeightsError, match=f"unused: net.{name.removeprefix('image_encoder.')}"):
        load_encoder_weights(small_sam(), written(content, tmp_path / "sam.pth"))


def test_something_else_under_a_name_is_named(tmp_path):
    content = {**sam_file(small_sam()), "image_encoder.pos_embed": 3}
    with pytest.raises(WeightsError, match=r"not a tensor: net\.pos_embed"):
        load_encoder_weights(small_sam(), written(content, tmp_path / "sam.pth"))


def test_long_lists_are_cut(tmp_path):
    with pytest.raises(WeightsError, match=r"missing: vit\.cls_token, vit\.pos_embed, .* and 49 more; unused: vit\.a;"):
        load_encoder_weights(small_vit(), written({"a": torch.zeros(1)}, tmp_path / "x.pth"))


def test_two_tensors_of_one_name_are_refused(tmp_path):
    content = {**sam_file(small_sam()), "pos_embed": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"x\.pth': two tensors are both called 'net\.pos_embed'"):
        load_encoder_weights(small_sam(), written(content, tmp_path / "x.pth"))
    assert rename({"a": 1, "b": 2}, lambda name: None if name == "a" else "c") == {"c": 2}


def test_other_encoders_read_their_own_names(tmp_path):
    source = HybridEncoder(widths=(4, 6, 8), embed_dim=16, depth=1, num_heads=2)
    encoder = HybridEncoder(widths=(4, 6, 8), embed_dim=16, depth=1, num_heads=2)
    load_encoder_weights(encoder, written(source.state_dict(), tmp_path / "x.pth"))
    assert_filled(encoder, source.state_dict())


# Broken files


class Bomb:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_code_in_a_file_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": {}, "args": argparse.Namespace(x=Bomb())}, tmp_path / "evil.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("evil.pth", "plain.pt"):
        with pytest.raises(WeightsError, match=rf"{name}'.*opened safely.*if you trust its origin"):
            load_encoder_weights(small_vit(), tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_what_is_allowed_here_stays_forbidden_elsewhere(tmp_path):
    path = written({"teacher": tensors(dino_shapes(24, 4)), "args": argparse.Namespace()}, tmp_path / "x.pth")
    load_encoder_weights(small_vit(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_missing_file_names_where_it_comes_from(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pth'.*no such file.*vit256_small_dino\.pth of HIPT"):
        load_encoder_weights(small_vit(), tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match="no such file"):
        load_encoder_weights(small_vit(), tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    content = tensors(dino_shapes(24, 4))
    if suffix == ".pth":
        torch.save(content, path)
    else:
        save_file(content, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="damaged"):
        load_encoder_weights(small_vit(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken zip"])
def test_a_file_of_something_else(content, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"x\{suffix}"):
        load_encoder_weights(small_vit(), path)


def test_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        load_encoder_weights(small_vit(), tmp_path / "x.pth")


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), "text"])
def test_a_file_without_names(content, tmp_path):
    with pytest.raises(WeightsError, match=f"holds a {type(content).__name__} instead"):
        load_encoder_weights(small_vit(), written(content, tmp_path / "x.pth"))
