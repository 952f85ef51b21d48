"""What pages say about the code is so: dotted paths lead somewhere, links too, and the map shows the house."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest
from test_architecture import PLACES

from cellvit.data import FolderDataModule, PanNukeDataModule

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "docs/**/*.yaml", "tests/plugin_package/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it tells what names were
)
DOTTED = re.compile(r"(?<![\w./-])cellvit(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
GROUP = re.compile(r'(?<=entry-points\.")cellvit\.\w+|(?<=group `)cellvit\.\w+')
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def find(path):
    """Return what a dotted path names."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name != ".".join(parts[:length]):
                raise
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def dotted_paths(text):
    """Return the dotted paths of a page, without names of files and of groups of entry points."""
    return set(DOTTED.findall(GROUP.sub("", text))) - {"cellvit.md"}


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dotted_paths_lead_somewhere(file):
    lost = []
    for path in dotted_paths(file.read_text(encoding="utf-8")):
        try:
            find(path)
        except (ModuleNotFoundError, AttributeError) as error:
            lost.append(f"{path}: {error}")
    assert not lost


def test_a_path_that_leads_nowhere_is_found():
    assert dotted_paths("`cellvit.io.gone`, [x][cellvit.types.Nuclei], my.cellvit.x, a/cellvit.yaml") == {
        "cellvit.io.gone",
        "cellvit.types.Nuclei",
    }
    assert dotted_paths("the group `cellvit.readers`") == set()
    with pytest.raises(AttributeError):
        find("cellvit.io.gone")
    assert find("cellvit.data.FolderDataModule") is FolderDataModule
    assert find("cellvit.PanNukeDataModule") is PanNukeDataModule


@pytest.mark.parametrize("file", [ROOT / "README.md", CONTRIBUTING], ids=lambda path: path.name)
def test_links_of_the_front_pages_lead_to_files(file):
    links = LINK.findall(file.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_map_shows_every_package_on_its_floor():
    shown = {}
    for floor, names in re.findall(r"^\| (\d+) \| (.+?) \|", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE):
        shown |= {name: int(floor) for name in re.findall(r"`([\w.]+)`", names)}
    hidden = {"cellvit", "cellvit.__main__"}  # the front, no place to put something
    assert shown == {name: place[0] for name, place in PLACES.items() if name not in hidden}


def test_no_page_or_message_promises_a_package_index():
    command = ["git", "grep", "-nE", r"pip install[^|]*cellvit-lightning", "--", "cellvit", "docs", "*.md"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode > 1:
        pytest.skip(f"not a git checkout: {found.stderr.strip()}")
    lines = [
        line for line in found.stdout.splitlines() if not line.startswith(("CHANGELOG.md", "docs/pages/how-to/install"))
    ]
    assert lines == []
