"""Environments that have plug-ins installed: folders that a new process searches before everything else."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "plugin_package"


def copy_package(folder):
    """Return a copy of the plug-in package without the file that belongs to this project's test run."""
    ignore = shutil.ignore_patterns("conftest.py", "__pycache__", "build", "*.egg-info")
    return shutil.copytree(PACKAGE, folder / "source", ignore=ignore)


def install_package(source, folder):
    """Build and install a package into a folder with what is here: nothing is fetched, no environment is touched."""
    build = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--target", str(folder)]
    done = subprocess.run([*build, *offline, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def write_distribution(folder, name, entry_points, source, *, version="1.0"):
    """Write a distribution with one module as an installer would leave it; ``entry_points[group][name]`` is a class."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, names in entry_points.items()
        for line in (f"[cellvit.{group}]", *(f"{key} = {module}:{value}" for key, value in names.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


_LISTING = """
import sys
from cellvit.cli import main
codes = []
for arguments in (["--json"], [sys.argv[1]]):
    codes.append(main(["plugins", *arguments]))
    print(end="\\0")
print(codes)
"""


class Environment:
    """Runs commands in new processes that find the plug-ins of some folders."""

    def __init__(self, *folders):
        self.folders = [str(folder) for folder in folders]

    def python(self, *arguments, cwd, **variables):
        path = os.pathsep.join([*self.folders, *filter(None, [os.environ.get("PYTHONPATH")])])
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHONWARN"))}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**inherited, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    def cellvit(self, *arguments, cwd, **variables):
        return self.python("-m", "cellvit", *map(str, arguments), cwd=cwd, **variables)

    def listing(self, kind, *, cwd):
        """Return what ``cellvit plugins --json`` and ``cellvit plugins KIND`` say, both in one new process.

        Returns:
            Exit codes of both, the rows that are not of cellvit, the table, and what went to standard error.
        """
        done = self.python("-c", _LISTING, kind, cwd=cwd)
        assert done.returncode == 0, done.stderr
        rows, table, codes = done.stdout.split("\0")
        rows = [row for row in json.loads(rows) if row["distribution"] != "cellvit-lightning"]
        return json.loads(codes), rows, table, done.stderr
