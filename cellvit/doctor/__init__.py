"""All checks, in the order of the report."""

import os
from collections.abc import Callable, Iterator
from importlib import import_module

from cellvit.doctor.finding import Finding, guarded

__all__ = ["Finding", "examine"]


_SEE_ABOVE = "see the section 'software' for packages that are missing or do not load"


def examine() -> Iterator[Finding]:
    """Yield the findings of all checks as they come; nothing is fetched from a network.

    Yields:
        Findings; those of one section follow each other.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
    yield from guarded("software", "packages", _check("software.check_versions"), "from a checkout: pip install -U .")
    workers: list[Callable[[], Finding]] = []

    def start_worker() -> Iterator[Finding]:
        workers.append(import_module("cellvit.doctor.workers").WorkerCheck().finding)
        yield from ()

    # a worker takes seconds to start: it does so beside the checks that follow
    not_started = list(guarded("workers", "post-processing", start_worker, _SEE_ABOVE))
    yield from guarded("software", "packages", _check("software.check_loading"), "reinstall the package it names")
    yield from guarded("machine", "machine", _check("machine.check_machine"), _SEE_ABOVE)
    yield from guarded("machine", "folders", _check("machine.check_folders"), "set TMPDIR to a folder you may write to")
    yield from guarded("devices", "torch", _check("machine.check_devices"), _SEE_ABOVE)
    yield from guarded("slides", "readers", _check("slides.check_readers"), _SEE_ABOVE)
    yield from guarded("plug-ins", "parts of models", _check("software.check_plugins"), _SEE_ABOVE)
    yield from guarded("models", "weights", _check("models.check_weights"), _SEE_ABOVE)
    yield from guarded("models", "network", _check("models.check_network"), _SEE_ABOVE)
    yield from guarded("models", "precision", _check("models.check_precision"), _SEE_ABOVE)
    yield from not_started
    for finding in workers:
        yield finding()


def _check(path: str) -> Callable[[], Iterator[Finding]]:
    """Return a check whose module is imported when it runs: a package it needs may be broken."""

    def run() -> Iterator[Finding]:
        module, name = path.split(".")
        yield from getattr(import_module(f"cellvit.doctor.{module}"), name)()

    return run
