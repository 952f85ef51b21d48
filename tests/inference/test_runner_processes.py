"""What a run does where processes are forked, refused or killed, and where memory runs out."""

import errno
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from slide_drawings import drawn_slide
from support.drawn_slides import DrawnModel

from cellvit import segment_image, segment_slide
from cellvit.errors import ConfigError, OutputError
from cellvit.inference import acceleration, outputs, workers
from cellvit.inference.resources import memory_advice
from cellvit.inference.workers import PostprocessPool, nuclei_of
from cellvit.types import HV_MAP, NUCLEI_BINARY_MAP

FORKED = """
import os, sys, warnings
import numpy as np, torch
from cellvit import segment_image
from cellvit.inference.protocol import load_model

torch.set_num_threads(2)
model = load_model(sys.argv[1], device="cpu")
image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
found = len(segment_image(image, model=model))
if os.fork() == 0:
    with warnings.catch_warnings(record=True) as told:
        same = len(segment_image(image, model=model)) == found
    told = [text for text in told if "stain" not in str(text.message) and "haematoxylin" not in str(text.message)]
    print(same, torch.get_num_threads(), len(told), told[0].message, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_computes_with_one_thread_and_says_so(tiny_model):
    """Without that it waits for threads of its parent for ever."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)} | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FORKED, tiny_model]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output = process.communicate(timeout=200)[0]
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert output.startswith("True 1 1 this process was forked, so it computes with 1 thread in place of 2")


def test_a_process_that_was_not_forked_keeps_its_threads(monkeypatch):
    before = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acceleration.one_thread_after_fork()
    assert torch.get_num_threads() == before


def maps():
    """Return the maps of a tile with one nucleus."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j].astype(np.float32)
    nucleus = (x**2 + y**2 < 0.25).astype(np.float32)
    return {NUCLEI_BINARY_MAP: np.stack([1 - nucleus, nucleus]), HV_MAP: np.stack([x, y]) * nucleus}


def refuse(error):
    def call(*arguments, **settings):
        raise error

    return call


REFUSALS = [
    OSError(errno.EROFS, os.strerror(errno.EROFS)),  # /dev/shm cannot be written
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),  # or is full
    NotImplementedError("system provides too few semaphores"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: str(error)[:20])
def test_without_shared_memory_threads_do_the_work_and_a_line_says_so(monkeypatch, error):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse(error))
    with PostprocessPool(DrawnModel(), 2) as pool:
        assert pool.kind == "threads"
        assert len(nuclei_of(pool.submit(maps()))) == 1
    (note,) = pool.notes
    assert note.startswith("no post-processing process could be started (")
    assert (getattr(error, "strerror", None) or str(error)) in note
    assert "\n" not in note


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(errno.ECONNREFUSED, "refused"), EOFError("unexpected EOF"), BlockingIOError(11, "x")],
)
def test_processes_that_cannot_be_started_later_are_replaced_by_threads(monkeypatch, error):
    with PostprocessPool(DrawnModel(), 1) as pool:
        assert pool.kind == "processes"
        monkeypatch.setattr(workers, "submit", refuse(error))
        assert [len(nuclei_of(pool.submit(maps()))) for _ in range(2)] == [1, 1]
    assert pool.kind == "threads"
    assert len(pool.notes) == 1


def test_what_starts_workers_is_started_early_and_a_refusal_is_left_to_those_who_need_it(monkeypatch):
    workers.start_early()  # of a system that allows it, and again
    workers.start_early()
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", refuse(REFUSALS[0]))
    workers.start_early()
    monkeypatch.setattr(workers, "may_have_children", lambda: False)
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: pytest.fail("started"))
    workers.start_early()


def test_what_is_made_of_a_tile_goes_to_the_workers_once_and_its_place_with_its_maps():
    def finish(index, image, found):
        return found.nuclei.select(np.zeros(index, int)), image.shape

    pixels = np.zeros((2, 3, 3), np.uint8)
    with PostprocessPool(DrawnModel(), 0, finish) as pool:
        nuclei, shape = nuclei_of(pool.submit(maps(), (0, pixels)))
        assert (len(nuclei), shape) == (0, (2, 3, 3))
        assert len(nuclei_of(pool.submit(maps()))) == 1


def test_a_slide_without_processes_is_done_and_its_summary_says_how(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse(REFUSALS[0]))
    monkeypatch.setattr(outputs, "PARALLEL_EXPORT_MIN_NUCLEI", 1)
    monkeypatch.setattr(outputs, "available_cores", lambda: 2)
    slide = drawn_slide(tmp_path, 500, 400)
    settings = {"tissue_filter": False, "formats": ("geojson", "json"), "tile_size": 256, "workers": 1}
    with pytest.warns(UserWarning, match="no post-processing process could be started"):
        result = segment_slide(slide, tmp_path / "out", model=DrawnModel(), **settings)
    assert result.summary["workers"] == {"number": 1, "kind": "threads"}
    assert any("threads did its work" in text for text in result.summary["warnings"])
    assert all((tmp_path / "out" / name).exists() for name in ("nuclei.geojson.gz", "cells.json.gz"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_leaves_workers_alone_and_a_dead_starter_is_a_line():
    server = multiprocessing.forkserver._forkserver
    with PostprocessPool(DrawnModel(), 1) as pool:
        assert len(nuclei_of(pool.submit(maps()))) == 1
        for pid in (server._forkserver_pid, *pool._processes._processes):
            os.kill(pid, signal.SIGHUP)
        assert len(nuclei_of(pool.submit(maps()))) == 1
        os.kill(server._forkserver_pid, signal.SIGKILL)
        with pytest.raises(OutputError, match=r"worker was killed, or the process that starts them.*are kept: run the"):
            _until_it_is_noticed(pool)
    os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOWAIT)  # a dying one still counts as there
    with PostprocessPool(DrawnModel(), 1) as pool:  # the next slide has new ones
        assert len(nuclei_of(pool.submit(maps()))) == 1
        assert pool.kind == "processes"


def _until_it_is_noticed(pool):
    while True:
        nuclei_of(pool.submit(maps()))


class Hungry(DrawnModel):
    """Asks for more memory than there is, in the middle of the network or of the post-processing."""

    def __init__(self, *, later=False):
        super().__init__()
        self.later = later
        self.postprocessor = None

    def predict_maps(self, image):
        return super().predict_maps(image if self.later else torch.empty(1 << 60, dtype=torch.uint8))

    def postprocess(self, maps):
        return np.empty(1 << 60, np.uint8)


@pytest.mark.parametrize("later", [False, True], ids=["network", "post-processing"])
def test_what_does_not_fit_into_memory_says_what_would(tmp_path, later):
    words = r"not enough memory for tile_size=128 and batch_size=2; make one of them smaller"
    with pytest.raises(ConfigError, match=words):
        segment_image(np.zeros((256, 256, 3), np.uint8), model=Hungry(later=later), tile_size=128, batch_size=2)
    slide = drawn_slide(tmp_path, 300, 200)
    settings = {"tissue_filter": False, "tile_size": 128, "batch_size": 2, "workers": 0}
    with pytest.raises(ConfigError, match=words):
        segment_slide(slide, tmp_path / "out", model=Hungry(later=later), **settings)


def test_other_errors_are_not_taken_for_want_of_memory():
    for error in (RuntimeError("odd"), cv2.error("bad argument"), OutputError("full")):
        with pytest.raises(type(error)), memory_advice(tile_size=1, batch_size=1):
            raise error
    with pytest.raises(ConfigError), memory_advice(tile_size=1, batch_size=1):
        raise cv2.error("(-4:Insufficient memory) Failed to allocate 1 bytes in function 'OutOfMemoryError'")
