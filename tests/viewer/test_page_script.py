"""The page's modules: what they compute (node), their types (tsc), and that they make one script."""

import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from cellvit.viewer import vendor
from cellvit.viewer.bundle import PAGE, page_script

TYPESCRIPT = vendor.Package(
    "typescript",
    "5.9.3",
    "jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw==",
    {},
)
OPTIONS = {
    "noEmit": True,
    "checkJs": True,
    "allowJs": True,
    "strict": True,
    "target": "es2022",
    "module": "esnext",
    "moduleResolution": "bundler",
    "lib": ["es2023", "dom", "dom.iterable"],
    "types": [],
    "allowUmdGlobalAccess": True,  # OpenSeadragon is loaded by a script of its own
    "skipLibCheck": True,
}


@pytest.fixture(scope="module")
def node():
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not on PATH; install Node.js to test the page's script")
    return found


def archive(package):
    """Return the archive of a package of npm, or skip the test where it cannot be had."""
    try:
        return vendor.archive(package)
    except vendor.VendorError as error:
        pytest.skip(f"npm gives no {package.name}: {error}")


def test_modules_compute_what_they_should(node):
    done = subprocess.run(
        [node, "--test", Path(__file__).parent / "page" / "page.test.js"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"pass 1[5-9]", done.stdout)


@pytest.mark.slow
def test_types_hold(node, tmp_path):
    with tarfile.open(fileobj=BytesIO(archive(TYPESCRIPT))) as tar:
        tar.extractall(tmp_path, filter="data")
    openseadragon = replace(vendor.PACKAGES[0], files={"package/types/index.d.ts": "openseadragon.d.ts"})
    vendor.unpack(openseadragon, archive(openseadragon), tmp_path)
    scripts = [str(PAGE / "main.js"), str(PAGE.with_name("share.js"))]
    settings = {"compilerOptions": OPTIONS, "files": ["openseadragon.d.ts", *scripts]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(settings))
    command = [node, tmp_path / "package" / "lib" / "tsc.js", "-p", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_modules_make_one_script(node, tmp_path):
    script = tmp_path / "page.js"
    script.write_text(page_script())
    assert not re.search(r"^(import|export)\b", script.read_text(), re.MULTILINE)
    done = subprocess.run([node, "--check", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script.read_text(), re.MULTILINE)
    assert sorted(names) == sorted(set(names)), "a name of two modules: in one script they are the same thing"


def test_every_module_is_checked_and_loaded_early():
    modules = {path.name for path in PAGE.glob("*.js")}
    assert all((PAGE / name).read_text().startswith("// @ts-check\n") for name in modules)
    page = (PAGE / "index.html").read_text()
    early = set(re.findall(r'modulepreload" href="static/([\w-]+\.js)"', page))
    assert early == modules - {"main.js", "types.js"}
    assert not re.search(r"https?://", page)


def test_html_is_never_made_from_text():
    unsafe = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")
    assert [path.name for path in PAGE.glob("*.js") if unsafe.search(path.read_text())] == []
