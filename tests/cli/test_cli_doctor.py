"""``cellvit doctor``: every check, with what it looks for, and what it says when that is broken."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from cellvit import cli
from cellvit.cli import doctor as cli_doctor
from cellvit.doctor import Finding, examine, machine, models, slides, software, workers
from cellvit.doctor.finding import first_line, guarded
from cellvit.inference import resources
from cellvit.plugins import listing


def named(findings):
    return {finding.name: finding for finding in findings}


def statuses(findings):
    return {finding.name: finding.status for finding in findings}


@pytest.mark.slow
def test_this_installation_is_well_and_nothing_is_left_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["problems"] == 0
    checks = {(check["section"], check["name"]): check for check in report["checks"]}
    assert len(checks) == len(report["checks"])
    sections = [check["section"] for check in report["checks"]]
    order = list(dict.fromkeys(sections))
    assert order == ["software", "machine", "devices", "slides", "plug-ins", "models", "workers"]
    assert sections == sorted(sections, key=order.index)
    assert checks["software", "torch"]["facts"]["version"] == torch.__version__.partition("+")[0]
    assert checks["models", "network"]["facts"]["nuclei"] == 3
    assert checks["workers", "post-processing"]["facts"]["kind"] == "processes"
    assert "library 4" in checks["slides", "OpenSlide"]["text"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("cellvit", ".cellvit"))] == []


def test_lines_say_what_to_do_and_the_exit_code_counts_problems(monkeypatch, capsys):
    found = [
        Finding("software", "torch", "ok", "2.9"),
        Finding("machine", "memory", "note", "[1] GB free", "close other programs"),
        Finding("models", "nano", "problem", "is gone", "reinstall"),
    ]
    monkeypatch.setattr(cli_doctor, "examine", lambda: iter(found))
    assert cli_doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("software", "ok", "machine", "note", "->", "models", "problem", "->", "1"),
    ]
    assert lines[3].endswith("[1] GB free")
    assert lines[4].endswith("-> close other programs")
    assert lines[-1] == "1 to repair: 3 checks, 1 notes, 1 problems"
    assert cli_doctor.main(["--brief"]) == 1
    assert "torch" not in capsys.readouterr().out
    assert cli_doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["notes"], report["problems"]) == (False, 1, 1)
    assert report["checks"][2]["advice"] == "reinstall"
    monkeypatch.setattr(cli_doctor, "examine", lambda: iter(found[:2]))
    assert cli_doctor.main([]) == 0
    assert "all is well" in capsys.readouterr().out


def test_wrong_usage_and_help(capsys):
    assert cli_doctor.main(["--fix"]) == 2
    capsys.readouterr()
    assert cli_doctor.main(["--help"]) == 0
    assert "Nothing is fetched" in capsys.readouterr().out


def test_a_check_that_fails_is_a_finding():
    def check():
        yield Finding("a", "b", "ok", "c")
        raise OSError("first\nsecond")

    good, bad = guarded("s", "n", check, "do this")
    assert good.status == "ok"
    assert (bad.status, bad.text, bad.advice) == ("problem", "OSError: first", "do this")
    assert first_line(KeyError()) == "KeyError"


def test_help_and_start_load_nothing_heavy():
    code = (
        "import sys; from cellvit.cli import doctor; doctor.main(['--help']); "
        "print([m for m in ('torch', 'numpy', 'cv2', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_requirements_are_listed_with_their_versions():
    found = named(software.check_versions())
    needed = software.requirements()
    assert {item.requirement.name for item in needed if not item.extra} <= set(found)
    assert {f"extra {extra}" for extra in software.EXTRAS} <= set(found)
    assert {item.extra for item in needed} - {"", "dev", "docs"} == set(software.EXTRAS)
    assert found["numpy"].facts["version"] == np.__version__
    assert set(software.LOADED) <= {item.requirement.name for item in needed}


def test_an_extra_of_the_package_is_listed_whether_or_not_its_purpose_is_known(monkeypatch):
    lines = ["numpy>=1", 'no-such-package>=2; extra == "later"', 'pytest; extra == "dev"']
    monkeypatch.setattr(software, "requires", lambda name: lines)
    found = named(software.check_versions())
    assert [name for name in found if name.startswith("extra")] == ["extra later"]
    assert found["extra later"].text == "not here: no-such-package>=2"
    assert found["extra later"].advice == "from a checkout, pip install '.[later]'"


def test_packages_that_are_missing_or_old(monkeypatch):
    versions = {"torch": "1.0", "timm": None, "peft": None, "opencv-python": "4.9"}
    real = software._version
    monkeypatch.setattr(software, "_version", lambda name: versions[name] if name in versions else real(name))
    found = named(software.check_versions())
    assert found["torch"].status == "problem"
    assert found["torch"].text.startswith("1.0, but >=")
    assert found["torch"].advice.startswith("pip install 'torch>=")
    assert (found["timm"].status, found["timm"].text) == ("problem", "is missing")
    assert found["extra lora"].status == "note"
    assert found["extra lora"].advice.endswith("pip install '.[lora]'")
    assert found["OpenCV"].status == "note"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("libGL.so.1: cannot open shared object file", "pip uninstall -y opencv-python"),
        ("numpy.core.multiarray failed to import", "built for another numpy"),
        ("undefined symbol", "--force-reinstall opencv-python-headless"),
    ],
)
def test_packages_that_do_not_load(monkeypatch, text, advice):
    def load(module):
        if module == "cv2":
            raise ImportError(text)

    monkeypatch.setattr(software, "import_module", load)
    (found,) = software.check_loading()
    assert (found.name, found.status) == ("opencv-python-headless", "problem")
    assert text in found.text
    assert advice in found.advice


def test_plugins_that_cannot_be_used(monkeypatch):
    row = {"kind": "head", "class": "lab.Head", "summary": "", "error": None}
    rows = [
        {**row, "name": "binary", "distribution": "cellvit-lightning", "version": "1"},
        {**row, "name": "centre", "distribution": "my-lab", "version": "2"},
        {**row, "name": "bad", "distribution": "their-lab", "version": "3", "error": "ImportError: no scipy"},
    ]
    monkeypatch.setattr(listing, "plugin_rows", lambda kinds: rows)
    found = named(software.check_plugins())
    assert found["bad"].status == "problem"
    assert "their-lab 3 cannot be used: ImportError" in found["bad"].text
    assert found["parts of models"].text == "1 of cellvit; of other packages: centre (my-lab)"


def test_readers_open_what_is_written_for_them():
    found = list(slides.check_readers())
    assert {finding.status for finding in found} == {"ok"}, found
    assert [finding.name for finding in found] == [
        *("OpenSlide", "tifffile", "Pillow", "JPEG codec", "JPEG 2000 codec", "LZW codec", "Deflate codec"),
    ]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("OpenSlide", "cellvit.slide.readers.openslide.OpenSlideReader"),
        ("tifffile", "cellvit.slide.readers.tiff.TiffSlide"),
        ("Pillow", "cellvit.slide.readers.image.ImageSlide"),
    ],
)
def test_a_broken_reader_is_told_from_the_others(monkeypatch, name, target):
    def broken(path):
        raise OSError("library not found")

    monkeypatch.setattr(target, broken)
    found = named(slides.check_readers())
    assert [key for key, finding in found.items() if finding.status == "problem"] == [name]
    assert "library not found" in found[name].text
    assert "pip install" in found[name].advice


def test_wrong_pixels_of_a_reader_are_a_problem(monkeypatch):
    from cellvit.slide.readers.tiff import TiffSlide

    real = TiffSlide.read_region
    monkeypatch.setattr(TiffSlide, "read_region", lambda self, *a, **k: real(self, *a, **k)[..., ::-1])
    found = named(slides.check_readers())
    assert found["tifffile"].status == "problem"
    assert "grey levels off" in found["tifffile"].text


def test_a_missing_codec_is_a_problem(monkeypatch):
    import imagecodecs

    def missing(data):
        raise imagecodecs.DelayedImportError("jpeg2k")

    monkeypatch.setattr(imagecodecs, "jpeg2k_encode", missing)
    found = named(slides.check_readers())
    assert found["JPEG 2000 codec"].status == "problem"
    assert "imagecodecs" in found["JPEG 2000 codec"].advice
    assert found["JPEG codec"].status == "ok"


def test_cores_threads_and_memory(monkeypatch):
    monkeypatch.setattr("cellvit.inference.settings.available_cores", lambda: 8)
    monkeypatch.setattr(resources, "cpu_quota", lambda: None)
    monkeypatch.setattr(resources, "free_memory", lambda: 64 * 10**9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert set(statuses(machine.check_machine()).values()) == {"ok"}
    monkeypatch.setattr(resources, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(resources, "free_memory", lambda: 10**9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = named(machine.check_machine())
    assert {finding.status for finding in found.values()} == {"note"}
    assert "a container limits them to 1.5" in found["cores"].text
    assert "--workers 1" in found["cores"].advice
    assert "OMP_NUM_THREADS" in found["threads"].advice
    assert "no AVX2" in found["vector instructions"].text
    assert "--tile-size 512" in found["memory"].advice
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    assert "more than the 8 cores" in named(machine.check_machine())["threads"].text
    monkeypatch.setattr(resources, "free_memory", lambda: None)
    assert named(machine.check_machine())["memory"].status == "ok"


def test_memory_is_that_of_the_container(monkeypatch, tmp_path):
    names = ("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive")
    zeros = "".join(f"{name}: 0 kB\n" for name in names)
    (tmp_path / "meminfo").write_text(f"MemTotal: 4000000 kB\n{zeros}MemAvailable:     2000000 kB\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    assert resources.free_memory() == 2_048_000_000
    assert resources.cpu_quota() is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert resources.free_memory() == 2_048_000_000
    assert resources.cpu_quota() is None
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert resources.free_memory() == 600_000_000
    assert resources.total_memory() == 1_000_000_000
    assert resources.cpu_quota() == 1.5
    for name in ("memory.max", "cpu.max"):
        (tmp_path / name).unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert resources.free_memory() == 2_048_000_000
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert resources.cpu_quota() is None
    assert resources.peak_memory() > 10**7


def test_folders_that_cannot_be_written_and_full_disks(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**11))
    assert statuses(machine.check_folders()) == {"temporary folder": "ok", "current folder": "ok"}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**9, 10**9))
    assert statuses(machine.check_folders()) == {"temporary folder": "note", "current folder": "note"}

    def refuse(path, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    found = named(machine.check_folders())
    assert found["temporary folder"].status == "problem"
    assert "Permission denied" in found["temporary folder"].text
    assert "TMPDIR" in found["temporary folder"].advice
    assert found["current folder"].status == "note"


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_without_a_card_the_cpu_is_well(no_gpu):
    assert statuses(machine.check_devices()) == {"cuda": "ok", "cpu": "ok"}


def test_a_card_that_torch_does_not_see(no_gpu, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = named(machine.check_devices())["cuda"]
    assert (found.status, "CUDA 13.0" in found.advice) == ("problem", True)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = named(machine.check_devices())["cuda"]
    assert (found.status, "CUDA build" in found.advice) == ("problem", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = named(machine.check_devices())["cuda"]
    assert (found.status, "unset" in found.advice) == ("note", True)


def test_cards_must_compute_and_have_memory(no_gpu, monkeypatch):
    card = SimpleNamespace(name="Card", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (20 * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    real = machine._wrong_result
    monkeypatch.setattr(machine, "_wrong_result", lambda device: "" if device == "cuda:0" else real(device))
    found = named(machine.check_devices())["cuda:0"]
    assert (found.status, found.text) == ("ok", "Card, 20.0 GB free of 24.0 GB, computes")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10**9, 24 * 10**9))
    assert named(machine.check_devices())["cuda:0"].status == "note"
    monkeypatch.setattr(machine, "_wrong_result", lambda device: real(device))
    monkeypatch.setattr(torch.Tensor, "to", _no_kernel(torch.Tensor.to))
    found = named(machine.check_devices())["cuda:0"]
    assert found.status == "problem"
    assert "no kernel image" in found.text
    assert "sm_80" in found.advice

    def broken(number):
        raise RuntimeError("driver shut down")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert named(machine.check_devices())["cuda:0"].text == "RuntimeError: driver shut down"


def _no_kernel(real):
    def to(self, *arguments, **settings):
        if arguments and str(arguments[0]).startswith("cuda"):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return real(self, *arguments, **settings)

    return to


def test_wrong_numbers_of_a_device_are_a_problem(no_gpu, monkeypatch):
    real = torch.nn.functional.conv2d

    def wrong(image, kernel, **settings):
        return real(image, kernel, **settings) * (1.3 if image.dtype == torch.float32 else 1)

    monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)
    found = named(machine.check_devices())["cpu"]
    assert (found.status, found.text) == ("problem", "computes wrong numbers")


@pytest.mark.gpu
def test_a_real_card_computes():
    assert named(machine.check_devices())["cuda:0"].status in ("ok", "note")


def test_weights_that_are_here_and_where_they_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"x" * 2000)
    (tmp_path / "vit256_small_dino.pth").write_bytes(b"")
    found = named(models.check_weights())
    assert found["nano"].status == "ok"
    assert found["sam-b"].facts["bytes"] == 2000
    assert (found["vit-256"].status, found["vit-256"].advice) == ("problem", "fetch it again")
    assert "CellViT-SAM-H-x40" in found["models not here"].facts["names"]
    assert "sam-b" not in found["encoders not here"].facts["names"]
    assert found["CELLVIT_WEIGHTS"].text == str(tmp_path)
    assert "not there yet" in found["cache of the hub"].text
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path / "wrong"))
    assert named(models.check_weights())["CELLVIT_WEIGHTS"].status == "problem"


def test_the_model_of_the_package_must_be_there(monkeypatch, tmp_path):
    monkeypatch.delenv("CELLVIT_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "find_weights", lambda entry: None)
    assert named(models.check_weights())["nano"].status == "problem"
    monkeypatch.setattr(models, "entries", lambda: ())
    assert named(models.check_weights())["package"].status == "problem"


def test_the_network_finds_drawn_nuclei_and_says_if_not(monkeypatch):
    (found,) = models.check_network()
    assert (found.status, found.facts["nuclei"]) == ("ok", 3)
    monkeypatch.setattr("cellvit.inference.image.segment_image", lambda *a, **k: [])
    (found,) = models.check_network()
    assert found.status == "problem"
    assert "0 of 3" in found.text


class _Pool:
    """A stand-in for the pool of workers, in this process."""

    kind = "processes"

    def __init__(self, model, workers):
        assert workers == 1
        self._model = model

    def __enter__(self):
        return self

    def __exit__(self, *stop):
        pass

    def submit(self, maps):
        return self._model.postprocess(maps).nuclei


def _with_pool(monkeypatch, *, nuclei_of=lambda future: future, kind="processes"):
    monkeypatch.setattr("cellvit.inference.workers.PostprocessPool", type("Pool", (_Pool,), {"kind": kind}))
    monkeypatch.setattr("cellvit.inference.workers.nuclei_of", nuclei_of)


def test_a_worker_must_find_both_drawn_nuclei(monkeypatch):
    _with_pool(monkeypatch)
    found = workers.WorkerCheck().finding()
    assert (found.status, found.facts["nuclei"]) == ("ok", 2)
    _with_pool(monkeypatch, kind="threads")
    assert workers.WorkerCheck().finding().status == "note"
    _with_pool(monkeypatch, nuclei_of=lambda future: [])
    assert workers.WorkerCheck().finding().text == "a worker found 0 of 2 drawn nuclei"


def test_a_worker_that_dies_or_is_stuck_is_a_problem(monkeypatch):
    from cellvit.errors import OutputError

    def died(future):
        raise OutputError("a post-processing worker was killed")

    _with_pool(monkeypatch, nuclei_of=died)
    found = workers.WorkerCheck().finding()
    assert found.status == "problem"
    assert "was killed" in found.text
    assert "--workers 0" in found.advice
    _with_pool(monkeypatch, nuclei_of=lambda future: time.sleep(5))
    started = time.monotonic()
    found = workers.WorkerCheck(timeout=0.2).finding()
    assert time.monotonic() - started < 4
    assert found.status == "problem"
    assert "0.2 seconds" in found.text


@pytest.mark.slow
def test_a_real_worker_that_is_stuck_is_ended(monkeypatch):
    import multiprocessing

    before = set(multiprocessing.active_children())
    check = workers.WorkerCheck(timeout=0.0)  # it cannot have imported what it needs by then
    assert check.finding().status == "problem"
    for _ in range(100):
        if set(multiprocessing.active_children()) <= before:
            break
        time.sleep(0.1)
    assert set(multiprocessing.active_children()) <= before


def test_what_breaks_in_one_check_does_not_hide_the_others(monkeypatch):
    def broken():
        raise ImportError("no module named numpy")
        yield

    for module, names in (
        ("software", ("check_versions", "check_loading", "check_plugins")),
        ("machine", ("check_machine", "check_folders", "check_devices")),
        ("slides", ("check_readers",)),
        ("models", ("check_weights", "check_network", "check_precision")),
    ):
        for name in names:
            monkeypatch.setattr(f"cellvit.doctor.{module}.{name}", broken)
    monkeypatch.setattr(workers, "WorkerCheck", lambda: next(broken()))
    found = list(examine())
    assert len(found) == 11
    assert {finding.status for finding in found} == {"problem"}
    assert all("no module named numpy" in finding.text and finding.advice for finding in found)
