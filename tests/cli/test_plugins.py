"""A package of plug-ins as a third party writes it: installed, listed, trained, exported, and what can go wrong."""

import csv
import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_folds import draw_tissue
from plugin_environment import PACKAGE, Environment, copy_package, install_package, write_distribution

from cellvit import CellViT
from cellvit.cli import plugins as cli_plugins
from cellvit.encoders.base import ENCODERS
from cellvit.errors import UnknownPluginError, WeightsError
from cellvit.plugins.registry import RegistryEntry

ROOT = PACKAGE.parents[1]
PAGE = ROOT / "docs/pages/how-to/plugin-package.md"
SMALL = [
    *("--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
    *("--model.decoder", '{"class_path": "unetr", "init_args": {"widths": [4, 6, 8, 10], "image_width": 3}}'),
    *("--data.crop_size", "64"),
    *("--data.batch_size", "2"),
    *("--data.num_workers", "0"),
    *("--data.samples_per_epoch", "4"),
]
CONTRACTS = """
from cellvit.testing import EncoderContract, HeadContract
from my_lab.centre_head import CentreHead
from my_lab.conv_stem import ConvStem


class TestEncoder(EncoderContract):
    def make(self):
        return ConvStem(width=4)


class TestHead(HeadContract):
    make = staticmethod(CentreHead)
"""
SOUND = """
    from torch import nn
    from cellvit import Encoder, EncoderOutput, FeatureInfo

    class Pool(Encoder):
        '''Averages.'''
        def __init__(self):
            super().__init__()
            self.features = [FeatureInfo(3, 2 ** i) for i in range(1, 5)]
            self.pooled_channels = 3
        def forward(self, image):
            maps = [nn.functional.avg_pool2d(image, info.stride) for info in self.features]
            return EncoderOutput(maps, maps[-1].mean((2, 3)))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment with the package in it, and its folder."""
    for tool in ("pip", "setuptools"):
        if find_spec(tool) is None:
            pytest.skip(f"{tool} is not here; install the extra 'dev'")
    folder = tmp_path_factory.mktemp("plugin")
    return Environment(install_package(copy_package(folder), folder / "site"))


@pytest.fixture(scope="module")
def bare():
    """The environment without the package."""
    return Environment()


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """A data folder of drawn tissue."""
    root = tmp_path_factory.mktemp("nuclei")
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image, instances, types = draw_tissue(index)
            cv2.imwrite(str(root / split / f"images/t{index}.png"), image[..., ::-1])
            np.savez(root / split / f"labels/t{index}.npz", inst_map=instances, inst_type=types)
    return root


@pytest.fixture(scope="module")
def trained(installed, nuclei, tmp_path_factory):
    """A folder in which the package's configuration was trained and exported."""
    folder = tmp_path_factory.mktemp("trained")
    command = ["fit", "--config", PACKAGE / "train.yaml", "--trainer.max_epochs", "2", *SMALL]
    done = installed.cellvit(*command, cwd=folder, NUCLEI=str(nuclei))
    assert done.returncode == 0, done.stderr
    done = installed.cellvit("export", "runs/centre/last.ckpt", "--out", "my-model", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder of packages that are broken in several ways, and two that claim one name."""
    folder = tmp_path_factory.mktemp("faulty")
    heads = {"heads": {"not-a-head": "Pool"}}
    write_distribution(folder, "lab-a", {"encoders": {"pool": "Pool"}}, SOUND, version="1.2")
    write_distribution(folder, "lab-b", {"encoders": {"pool": "Pool", "pool-b": "Pool"}} | heads, SOUND)
    write_distribution(folder, "lab-c", {"encoders": {"lost": "Lost"}}, "print('hello')\nimport libscope_7\n")
    return folder


@pytest.mark.slow
def test_installing_leaves_no_trace_in_the_source(installed):
    (site,) = map(Path, installed.folders)
    assert {p.name for p in site.iterdir()} == {"my_lab", "cellvit_my_lab-0.3.0.dist-info"}
    assert {p.name for p in PACKAGE.rglob("*") if "__pycache__" not in p.parts} == {
        *(
            "README.md",
            "conftest.py",
            "conv_stem.py",
            "centre_head.py",
            "npy_slide.py",
            "__init__.py",
            "pyproject.toml",
        ),
        *("src", "my_lab", "tests", "test_my_lab.py", "test_npy_slide.py", "train.yaml"),
    }


@pytest.mark.slow
def test_the_package_passes_its_own_tests_and_our_contracts(installed, tmp_path):
    source = copy_package(tmp_path)
    (source / "tests/test_contracts.py").write_text(CONTRACTS)
    done = installed.python("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "tests", cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_plugins_are_listed_with_the_package_that_brings_them(installed, tmp_path):
    codes, rows, table, _ = installed.listing("head", cwd=tmp_path)
    assert codes == [0, 0]
    assert rows == [
        {
            "kind": "encoder",
            "name": "conv-stem",
            "class": "my_lab.conv_stem.ConvStem",
            "distribution": "cellvit-my-lab",
            "version": "0.3.0",
            "summary": "Four convolutional stages, each at half the resolution of the one before.",
            "error": None,
        },
        {
            "kind": "head",
            "name": "centre",
            "class": "my_lab.centre_head.CentreHead",
            "distribution": "cellvit-my-lab",
            "version": "0.3.0",
            "summary": "A heat map that is 1 at the centre of each nucleus and falls off towards its edge.",
            "error": None,
        },
        {
            "kind": "reader",
            "name": "npy",
            "class": "my_lab.npy_slide.NpySlide",
            "distribution": "cellvit-my-lab",
            "version": "0.3.0",
            "summary": "A slide in scan.npy, half of it in scan.half.npy, micrometres in scan.json.",
            "error": None,
        },
    ]
    assert re.search(r"head +│ centre +│ my_lab.centre_head.CentreHead +│ cellvit-my-lab 0.3.0 +│ A heat", table)
    assert "│ encoder" not in table


@pytest.mark.slow
def test_training_by_name_logs_the_losses_of_the_new_branch(trained):
    (log,) = trained.glob("runs/centre/csv/version_0/metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    for stage in ("train", "val"):
        for term in ("nuclei_centre_map/mse", "nuclei_centre_map/bce", "hv_map/msge"):
            assert any(float(row[f"{stage}/{term}"] or 0) > 0 for row in rows), (stage, term)
    assert any(row["val/bPQ"] for row in rows)
    assert len(list(trained.glob("runs/centre/**/pictures/*/*.png"))) == 4
    settings = json.loads((trained / "my-model/config.json").read_text())["model"]
    assert settings["encoder"] == {"class_path": "conv-stem", "init_args": {"width": 16}}
    assert settings["heads"]["nuclei_centre_map"] == {
        "class_path": "centre",
        "init_args": {"sigma": 3.0, "losses": {"mse": 4.0, "bce": 1.0}},
    }


@pytest.mark.slow
def test_the_exported_model_works_where_the_package_is(trained, installed, nuclei):
    (code,) = [body for title, kind, body in code_blocks() if kind == "python" and not title]
    compare = (
        "import torch\nfrom cellvit.model.checkpoint import read_checkpoint\n"
        "state = read_checkpoint(__import__('pathlib').Path('runs/centre/last.ckpt'))[1]\n"
        "assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())\n"
        "assert tuple(centres.shape) == (1, 1, 250, 250) and 0 < centres.min() < centres.max() < 1\n"
    )
    done = installed.python("-W", "error::RuntimeWarning", "-c", code + compare, cwd=trained)
    assert done.returncode == 0, done.stderr
    done = installed.cellvit(
        *("segment", nuclei / "val/images/t0.png", "--model", "my-model", "--out", "found", "--device", "cpu"),
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    assert (trained / "found/t0.parquet").is_file()


@pytest.mark.slow
def test_without_the_package_the_error_names_what_is_missing(trained, bare, nuclei):
    with pytest.raises(WeightsError, match=r"my-model.*no encoder 'conv-stem'; if a package brings it, install that"):
        CellViT.from_pretrained(trained / "my-model")
    image = nuclei / "val/images/t0.png"
    done = bare.cellvit("segment", image, "--model", "my-model", "--out", "none", "--device", "cpu", cwd=trained)
    assert done.returncode == 2
    assert "no encoder 'conv-stem'" in done.stderr
    assert "made with cellvit-my-lab 0.3.0; install what is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_head_that_is_not_installed_is_named():
    heads = {"nuclei_binary_map": "binary", "hv_map": "hv", "nuclei_type_map": "nuclei-type"}
    with pytest.raises(UnknownPluginError, match=r"no head 'centre-map'.* known: binary, "):
        CellViT({"class_path": "vit-256", "init_args": {"embed_dim": 16, "depth": 4, "num_heads": 2}},
                heads={**heads, "nuclei_centre_map": "centre-map"})  # fmt: skip


@pytest.mark.slow
def test_faulty_packages_are_listed_with_the_reason(installed, faulty, tmp_path):
    both = Environment(*installed.folders, faulty)
    codes, rows, table, told = both.listing("encoder", cwd=tmp_path)
    assert codes == [1, 1]
    assert [(row["name"], row["distribution"], row["version"]) for row in rows] == [
        ("conv-stem", "cellvit-my-lab", "0.3.0"),
        ("lost", "lab-c", "1.0"),
        ("pool", "lab-a", "1.2"),
        ("pool", "lab-b", "1.0"),
        ("pool-b", "lab-b", "1.0"),
        ("centre", "cellvit-my-lab", "0.3.0"),
        ("not-a-head", "lab-b", "1.0"),
        ("npy", "cellvit-my-lab", "0.3.0"),
    ]
    lost, taken, wrong = (row["error"] for row in rows if row["error"])
    assert lost == "ModuleNotFoundError: No module named 'libscope_7'"
    assert taken.startswith("encoder name 'pool' is taken by lab_a.Pool of 'lab-a'")
    assert wrong == "head 'not-a-head' (Pool) must be a class that derives from Head"
    assert re.search(r"lost +│ lab_c.Lost +│ lab-c 1.0 +│ cannot be used: ModuleNotFoundError", table)
    assert told == "hello\n"  # what a plug-in prints is no row, and there is no warning beside the row


@pytest.mark.slow
def test_faulty_packages_are_a_warning_each_and_the_others_train(installed, faulty, nuclei, tmp_path):
    """The head of the sound package does, and a dotted path leads to the class whose name another package has taken."""
    both = Environment(*installed.folders, faulty)
    command = ["fit", "--config", PACKAGE / "train.yaml", *SMALL, "--trainer.fast_dev_run", "1"]
    done = both.cellvit(*command, "--model.encoder", "lab_b.Pool", cwd=tmp_path, NUCLEI=str(nuclei))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    warned = [line for line in done.stderr.splitlines() if "cannot be used" in line]
    assert [re.search(r"plug-in '(.*?)' of '(.*?)'", line).groups() for line in warned] == [
        ("lost", "lab-c"),
        ("pool", "lab-b"),
        ("not-a-head", "lab-b"),
    ]


@pytest.mark.slow
def test_asking_for_a_faulty_plugin(installed, faulty, nuclei, tmp_path):
    both = Environment(*installed.folders, faulty)
    command = ["fit", "--config", PACKAGE / "train.yaml", *SMALL, "--trainer.fast_dev_run", "1"]
    done = both.cellvit(*command, "--model.encoder", "lost", cwd=tmp_path, NUCLEI=str(nuclei))
    assert done.returncode == 1, done.stderr
    reason = "encoder 'lost' of 'lab-c' cannot be used: ModuleNotFoundError: No module named 'libscope_7'"
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_own_parts_are_listed_as_json(capsys):
    assert cli_plugins.main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == sorted(
        (row["kind"] for row in rows), key=list(cli_plugins.REGISTRIES).index
    )
    (row,) = [row for row in rows if row["name"] == "hv-watershed"]
    assert row["class"] == "cellvit.postprocess.hv.HVPostprocessor"
    assert (row["distribution"], row["version"]) == ("cellvit-lightning", version("cellvit-lightning"))
    assert all(row["summary"] and row["error"] is None for row in rows)


@pytest.fixture
def rows_of(monkeypatch):
    """List entries that are not there."""

    def replace(*entries):
        monkeypatch.setattr(ENCODERS, "entries", lambda: list(entries))
        return cli_plugins.plugin_rows(["encoder"])

    return replace


class Documented:
    """Uses :class:`~a.Thing`, ``code`` and `more`.

    A second line.
    """


class Silent(Documented):
    pass


def test_the_summary_is_the_first_line_of_a_class_own_docstring(rows_of):
    entries = [RegistryEntry(cls.__name__, "x.C", "lab", "1", cls) for cls in (Documented, Silent)]
    assert [row["summary"] for row in rows_of(*entries)] == ["Uses a.Thing, code and more.", ""]


def test_own_parts_come_first_and_a_module_stands_where_there_is_no_distribution(rows_of):
    registered = RegistryEntry("a", "my_script.nets.A", "my_script.nets", None, Documented)
    own = RegistryEntry("b", "cellvit.encoders.b.B", "cellvit.encoders.b", None, Documented)
    rows = rows_of(registered, own)
    assert [(row["name"], row["distribution"]) for row in rows] == [("b", "cellvit-lightning"), ("a", None)]
    assert [cli_plugins._source(row) for row in rows] == ["cellvit", "my_script"]


@pytest.mark.parametrize("width", [80, 119, 120, 160])
def test_a_table_fits_its_width_and_shows_everything(rows_of, monkeypatch, capsys, width):
    error = OSError("[bold]lib.so[/bold] is missing from /opt/a/very/long/path/that/has/no/place/to/break/at/all")
    broken = RegistryEntry("a-name-of-some-length", "my_lab.encoders.stem.Stem", "cellvit-my-lab", "0.3.0", error=error)
    rows_of(broken, RegistryEntry("b", "cellvit.b.B", "cellvit.b", None, Documented))
    monkeypatch.setattr("cellvit.cli.console.WIDTH", width)
    assert cli_plugins.main(["encoder"]) == 1
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= width
    for text in ("a-name-of-some-length", "my_lab.encoders.stem.Stem", "cellvit-my-lab 0.3.0", "cannot be used:"):
        assert text in table, text
    cells = "".join(re.sub(r"[│\s]", "", line) for line in table.splitlines())
    if width < 120:  # one column holds the reason, so its lines join
        assert "[bold]lib.so[/bold]" in cells


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["encoders"], 2), (["head", "metric"], 2)])
def test_usage(arguments, code, capsys):
    assert cli_plugins.main(arguments) == code
    captured = capsys.readouterr()
    assert "encoder, decoder, head, postprocessor, metric" in captured.out or "usage: cellvit plugins" in captured.err


def code_blocks():
    """Return title, language and content of every code block of the page."""
    blocks = re.findall(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [(title, kind, body) for kind, title, body in blocks]


def test_the_page_shows_the_files_of_the_package():
    shown = {title: body for title, _, body in code_blocks() if title}
    files = {str(p.relative_to(PACKAGE)): p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert set(shown) == set(files) - {"conftest.py", "README.md"}
    for name, body in shown.items():
        assert body == files[name].read_text(), name
    assert {kind for title, kind, _ in code_blocks() if not title} == {"console", "python", "text"}
