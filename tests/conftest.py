"""What every test shares: the place of the real data, fixed seeds, one thread per worker, no network."""

import os
import random
import signal
from pathlib import Path

# Before the first import of the libraries that read them; workers of pytest-xdist inherit them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CELLVIT_PRECISION"] = "32-true"  # "auto" would be bfloat16 on some machines, and other numbers
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the package index for news at import

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# Every automated run is repeatable; `HYPOTHESIS_PROFILE=default` looks for new counterexamples.
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker one thread, as the workers already share the cores, and no ignored signals."""
    if hasattr(signal, "SIGHUP"):  # which nohup ignores, and children inherit that
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the shell ignores for what runs in the background
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # third-party code draws from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real data that ``CELLVIT_TEST_DATA`` names, or skip the test."""
    value = os.environ.get("CELLVIT_TEST_DATA")
    if not value:
        pytest.skip("CELLVIT_TEST_DATA is not set; name the folder that holds nuclei/ and wsi/")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"CELLVIT_TEST_DATA={value!r} is not a folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a small untrained model that finds something in noise."""
    from support.tiny import tiny_network

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_network().save_pretrained(folder)
    return str(folder)


# conftest files hold no doctests, and collecting several of one name as modules is an error
collect_ignore_glob = ["**/conftest.py", "conftest.py"]
