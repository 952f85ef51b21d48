import subprocess
import sys

CODE = """
import sys
import cellvit.viewer
assert "starlette" not in sys.modules
sys.modules["starlette"] = None
try:
    import cellvit.viewer.app
except Exception as error:
    print(type(error).__name__, error)
del sys.modules["starlette"]
import cellvit.viewer.app
print(*(name for name in ("torch", "lightning", "timm", "matplotlib", "sklearn", "uvicorn") if name in sys.modules))
"""


def test_the_server_needs_the_extra_and_no_torch():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    missing, heavy = done.stdout.split("\n")[:2]
    assert missing.startswith("ConfigError this needs the package 'starlette'")
    assert missing.endswith("pip install '.[view]'")
    assert not heavy
