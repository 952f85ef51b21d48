"""What ``precision="auto"`` stands for: capability, a small tile, what a model states, and what was begun."""

import filecmp
import json

import numpy as np
import pytest
import torch
from slide_drawings import drawn_slide
from support.tiny import VIT, tiny_network

from cellvit import CellViT, segment_slide
from cellvit.errors import ConfigError
from cellvit.inference import precision as module
from cellvit.inference.acceleration import accelerated_inference
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.image import segment_image
from cellvit.inference.precision import choose_precision, time_both
from cellvit.inference.protocol import check_precision

QUIET = {"formats": (), "workers": 0, "measurements": False, "tissue_filter": False, "tile_size": 256}


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Give the machine flags, and a share of float32's time that bfloat16 takes; count how often that is asked."""
    monkeypatch.delenv("CELLVIT_PRECISION")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_timings", {})
    asked = []

    def become(flags, share=0.5, distance=0.001):
        def timing(model):
            asked.append(share)
            if isinstance(share, Exception):
                raise share
            return {"share": share, "distance": distance}

        monkeypatch.setattr(module, "processor_flags", lambda: frozenset(flags))
        monkeypatch.setattr(module, "time_both", timing)
        return asked

    return become


@pytest.fixture(scope="module")
def measured():
    """Return a model that states it was measured in bfloat16."""
    return tiny_network(about={"bfloat16": True})


@pytest.mark.parametrize(
    ("flags", "share", "distance", "name", "reason", "notes"),
    [
        (["avx2"], 0.5, 0.001, "32-true", "no units for bfloat16", 0),
        (["amx_bf16", "avx512_bf16"], 0.42, 0.001, "bf16-mixed", "processor has AMX, and takes 0.42", 0),
        (["avx512_bf16"], 0.5, 0.001, "bf16-mixed", "AVX-512 BF16", 0),
        (["amx_bf16"], 4.0, 0.001, "32-true", "takes 4.00 of float32's time here", 0),
        (["amx_bf16"], 0.4, 0.4, "32-true", "does not work here, though the processor has AMX", 1),
        (["amx_bf16"], 0.4, float("nan"), "32-true", "maps differ by nan", 1),
        (["amx_bf16"], RuntimeError("could not create a primitive\nmore"), 0, "32-true", "could not create", 1),
    ],
)
def test_auto_is_what_is_faster_and_right(processor, measured, flags, share, distance, name, reason, notes):
    processor(flags, share, distance)
    found = choose_precision("auto", measured)
    assert found.name == name
    assert reason in found.reason
    assert len(found.notes) == notes
    assert not any("\n" in note for note in found.notes)


def test_a_timing_is_kept_and_a_limit_of_the_library_counts(processor, measured, monkeypatch):
    asked = processor(["amx_bf16"])
    for _ in range(2):
        assert choose_precision("auto", measured).name == "bf16-mixed"
    module._timings.clear()  # as in another process
    assert choose_precision("auto", measured).name == "bf16-mixed"
    assert len(asked) == 1
    module.cache_path().write_text("no JSON")
    module._timings.clear()
    assert choose_precision("auto", measured).name == "bf16-mixed"
    assert len(asked) == 2
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choose_precision("auto", measured).name == "32-true"


def test_what_a_model_states_decides(processor):
    processor(["amx_bf16"])
    assert choose_precision("auto", tiny_network(about={"bfloat16": False})).name == "32-true"
    unknown = choose_precision("auto", tiny_network())
    assert unknown.name == "bf16-mixed"
    assert "does not state" in unknown.notes[0]
    with pytest.warns(UserWarning, match="does not state that its scores"):
        segment_image(np.zeros((64, 64, 3), np.uint8), model=tiny_network())


def test_a_statement_about_bfloat16_changes_no_fingerprint_and_ends_with_training():
    stated, plain = tiny_network(about={"bfloat16": True}), tiny_network()
    assert weights_hash(stated) == weights_hash(plain)
    stated.on_fit_start()
    assert "bfloat16" not in stated.settings["about"]


def test_a_real_timing(measured):
    found = time_both(measured)
    assert found["share"] > 0
    assert 0 < found["distance"] < 0.02


def test_the_environment_says_what_auto_is(monkeypatch, measured):
    monkeypatch.setenv("CELLVIT_PRECISION", "bf16-mixed")
    assert choose_precision("auto", measured).name == "bf16-mixed"
    assert choose_precision("32-true", measured).name == "32-true"
    monkeypatch.setenv("CELLVIT_PRECISION", "half")
    with pytest.raises(ConfigError, match="'half' is unknown; choose from auto, 32-true"):
        choose_precision("auto", measured)


def test_what_a_device_cannot_do_is_refused_with_the_choices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ConfigError, match=r"cuda cannot do precision 'bf16-mixed'; use 'auto', '32-true' or '16"):
        check_precision("bf16-mixed", torch.device("cuda"))
    assert not module.bfloat16_units(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_precision("bf16-mixed", torch.device("cuda"))
    assert module.bfloat16_units(torch.device("cuda"))
    with pytest.raises(ConfigError, match="needs a GPU; use 'auto'"):
        check_precision("16-mixed", torch.device("cpu"))


def test_a_slide_goes_on_in_the_precision_it_was_begun_in(tmp_path, monkeypatch, measured):
    """Killed in bfloat16 and resumed where ``auto`` is float32, the bytes are those of an undisturbed run."""
    slide = drawn_slide(tmp_path, 1024, 1024)
    monkeypatch.setenv("CELLVIT_PRECISION", "bf16-mixed")
    whole = segment_slide(slide, tmp_path / "whole", model=measured, **QUIET)
    assert whole.summary["settings"]["precision"] == "bf16-mixed"
    assert whole.summary["precision"] == {"name": "bf16-mixed", "reason": "as $CELLVIT_PRECISION says"}

    def stop(done, total):
        if done >= 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_slide(slide, tmp_path / "resumed", model=measured, progress=stop, **QUIET)
    assert (tmp_path / "resumed/.work/part-000000.arrow").exists()
    monkeypatch.setenv("CELLVIT_PRECISION", "32-true")
    with pytest.warns(UserWarning, match="begun in bf16-mixed and goes on in it; here 'auto' would be 32-true"):
        resumed = segment_slide(slide, tmp_path / "resumed", model=measured, **QUIET)
    assert resumed.summary["precision"]["reason"] == "as the run was begun"
    assert filecmp.cmp(whole.out / "nuclei.parquet", resumed.out / "nuclei.parquet", shallow=False)
    again = segment_slide(
        slide, tmp_path / "whole", model=measured, **QUIET
    )  # finished: nothing to do, nothing refused
    assert again.summary == json.loads((whole.out / "summary.json").read_text())


@pytest.mark.parametrize(
    "encoder",
    [
        VIT,
        {
            "class_path": "sam-b",
            "init_args": {
                "embed_dim": 32,
                "depth": 4,
                "num_heads": 2,
                "window_size": 4,
                "pretrained_grid": 8,
                "out_chans": 8,
            },
        },
    ],
)
def test_maps_of_published_kinds_agree_in_bfloat16(encoder):
    model = CellViT(encoder, 6, decoder={"class_path": "unetr", "init_args": {"widths": [8, 8, 8, 16]}}).eval()
    image = torch.rand(1, 3, 128, 128)
    exact = model.predict_maps(image)
    with accelerated_inference(model), torch.autocast("cpu", torch.bfloat16):
        found, again = model.predict_maps(image), model.predict_maps(image)
    for name, values in exact.items():
        assert torch.equal(found[name], again[name]), name  # the same bytes each time
        assert (found[name].float() - values).abs().mean() < 0.01 * values.abs().mean() + 1e-3, name
