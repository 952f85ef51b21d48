import json
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from cohort_tasks import TILES, Recorder, jobs_in, resumable, starts, tiles_done, with_settings
from drawn_task import segment_drawn
from local_cluster import local_cluster
from slide_drawings import drawn_slide

from cellvit.errors import CellViTError, ConfigError
from cellvit.inference.cohort import dask as cluster
from cellvit.inference.cohort.dask import run_on_cluster
from cellvit.inference.cohort.run import SlideJob

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")


@pytest.fixture(scope="module")
def address():
    with local_cluster() as scheduler:
        yield scheduler


def test_paths_are_made_absolute_for_workers(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slide.svs").touch()
    Path("roi.geojson").touch()
    Path("run").mkdir()
    settings = {"roi": "roi.geojson", "model": "run", "mpp": 0.25}
    (outcome,) = run_on_cluster([SlideJob(Path("slide.svs"), Path("out"), settings)], address, task=resumable)
    assert (outcome.path, outcome.error) == (Path("slide.svs"), None)
    assert outcome.summary["settings"] == {
        "roi": tmp_path / "roi.geojson",
        "model": str(tmp_path / "run"),
        "mpp": 0.25,
        "workers": None,
    }
    assert (tmp_path / "out/summary.json").exists()


def test_the_file_of_a_scheduler_stands_for_its_address(address, tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": address}))
    assert run_on_cluster(jobs_in(tmp_path, 1), str(file), task=resumable)[0].error is None


def test_a_slide_that_workers_do_not_see_says_so(address, tmp_path):
    (outcome,) = run_on_cluster([SlideJob(tmp_path / "none.svs", tmp_path / "out")], address, task=resumable)
    assert "does not see '" in outcome.error
    assert "on a disk that all workers share" in outcome.error


def test_another_version_is_refused(address, tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path, 1)
    monkeypatch.setattr(cluster, "versions", lambda: {"cellvit": "99.0", "python": "3.11"})
    with pytest.raises(ConfigError, match=r"the scheduler at 'tcp://.*' has cellvit-lightning .*, here is 99\.0; inst"):
        run_on_cluster(jobs, address, task=resumable)
    monkeypatch.setattr(cluster, "PACKAGE", "no-such-package")
    with pytest.raises(ConfigError, match=r"the scheduler at .* has no no-such-package; install no-such-package==99"):
        run_on_cluster(jobs, address, task=resumable)


def test_interrupt_stops_the_workers_at_a_tile(address, tmp_path):
    jobs = jobs_in(tmp_path, 3, seconds=0.4)

    class Stop(Recorder):
        def started(self, job, device):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(jobs, address, task=resumable, report=Stop())
    # the workers are free for others before the slides could have been computed to their end
    again = [SlideJob(job.path, tmp_path / "again" / job.path.stem) for job in jobs]
    assert [outcome.error for outcome in run_on_cluster(again, address, task=resumable)] == [None] * 3
    begun = [job for job in jobs if (job.out / "log.txt").exists()]
    assert 1 <= len(begun) <= 2
    assert all(len(tiles_done(job.out)) < TILES for job in begun)


def test_a_killed_worker_is_replaced_and_its_slide_goes_on(address, tmp_path):
    jobs = jobs_in(tmp_path, 5, seconds=0.02)
    jobs[0] = with_settings(jobs[0], kill_at=3)
    jobs[1] = with_settings(jobs[1], refuse="slide 'slide1.svs' is broken; copy it again")
    jobs[2] = with_settings(jobs[2], fault="odd")
    jobs[3] = SlideJob(jobs[3].path, jobs[3].out, jobs[3].settings, {"case": "P4"})
    recorder = Recorder()
    outcomes = run_on_cluster(jobs, address, task=resumable, report=recorder)
    assert [(outcome.path, outcome.error) for outcome in outcomes] == [
        (jobs[0].path, None),
        (jobs[1].path, "slide 'slide1.svs' is broken; copy it again"),
        (jobs[2].path, "RuntimeError: odd"),
        (jobs[3].path, None),
        (jobs[4].path, None),
    ]
    # the killed slide was resumed in another process, not begun again; failed slides were not tried twice
    assert tiles_done(jobs[0].out) == list(range(TILES))
    first, second = starts(jobs[0].out)
    assert first[0] != second[0]
    assert [len(starts(job.out)) for job in jobs[1:]] == [1, 1, 1, 1]
    assert outcomes[0].summary["nuclei"]["total"] == 100
    assert "cohort_tasks.py" in outcomes[2].trace
    assert outcomes[3].extra == {"case": "P4"}
    assert outcomes[4].device.startswith("worker ")
    assert sorted(outcome.path for outcome in recorder.outcomes) == [job.path for job in jobs]
    assert [event[0] for event in recorder.events if event[1] == "slide0.svs"][:1] == ["started"]
    assert recorder.warnings == []


@pytest.mark.slow
def test_a_slide_that_kills_its_workers_fails_and_no_other(address, tmp_path):
    jobs = jobs_in(tmp_path, 3, seconds=0.2)
    jobs[0] = with_settings(jobs[0], kill_at=2, kills=99)
    outcomes = run_on_cluster(jobs, address, task=resumable)
    assert "the workers that did it died, perhaps for want of memory" in outcomes[0].error
    assert 2 <= len(starts(jobs[0].out)) <= 2 * cluster.SUBMISSIONS
    assert [outcome.error for outcome in outcomes[1:]] == [None] * 2


# Without workers.


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        ("nowhere", "no Dask scheduler answers at 'nowhere'"),
        ("none.json", r"no Dask scheduler answers at 'none.json' \(.*No such file or directory: 'none.json'\)"),
        ("list.json", "no Dask scheduler answers at 'list.json'"),
        ("empty.json", "no Dask scheduler answers at 'empty.json'"),
    ],
)
def test_an_address_without_a_scheduler_is_an_error_at_once(tmp_path, monkeypatch, address, reason):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    Path("list.json").write_text("[]")
    Path("empty.json").write_text("{}")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=f"{reason}.*start one with 'dask scheduler' and pass the address"):
        run_on_cluster(jobs_in(tmp_path, 1), address, task=resumable)
    assert time.monotonic() - started < 10


def test_a_missing_extra_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"from a checkout: pip install '\.\[cluster\]'"):
        run_on_cluster(jobs_in(tmp_path, 1), "tcp://127.0.0.1:9", task=resumable)


def test_what_cannot_be_sent_is_refused_before_anything_is_started(tmp_path):
    jobs = jobs_in(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"cannot be sent to workers .*pass plain data"):
        run_on_cluster([with_settings(jobs[0], hook=lambda: 0)], "tcp://127.0.0.1:9", task=resumable)
    with pytest.raises(ConfigError, match="folders belong to several slides"):
        run_on_cluster([*jobs, *jobs], "tcp://127.0.0.1:9", task=resumable)
    assert run_on_cluster([], "tcp://127.0.0.1:9", task=resumable) == []


SCHEDULER = """
import asyncio, sys
from distributed import Scheduler

async def main():
    async with Scheduler(port=0, dashboard=False, host="127.0.0.1") as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()

asyncio.run(main())
"""


def test_a_cluster_without_workers_is_waited_for_and_a_lost_scheduler_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RECONNECT_SECONDS", 1)
    monkeypatch.setattr(cluster, "NO_WORKER_WARNING_SECONDS", 0.5)
    command = [sys.executable, "-c", SCHEDULER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as scheduler:
        address = scheduler.stdout.readline().strip()

        class Lose(Recorder):
            def warned(self, text):
                super().warned(text)
                scheduler.kill()

        recorder = Lose()
        with pytest.raises(CellViTError, match="the connection to the Dask scheduler was lost; finished slides"):
            run_on_cluster(jobs_in(tmp_path, 1), address, task=resumable, report=recorder)
    assert recorder.warnings == [
        "the cluster has no workers; waiting for some: start them with 'dask worker ...'",
        "the connection to the Dask scheduler was lost; trying for 1 s",
    ]


def test_a_lost_connection_is_made_again_and_slides_go_on_where_they_were(address, tmp_path, monkeypatch):
    jobs, clients = jobs_in(tmp_path, 3, seconds=0.15), []  # long enough to be cut on a busy machine
    client = cluster._client

    @contextmanager
    def remember(*arguments):
        with client(*arguments) as found:
            clients.append(found)
            yield found

    class Cut(Recorder):
        def started(self, job, device):
            super().started(job, device)
            if len(self.events) == 1:
                comm = clients[0].scheduler_comm.comm
                clients[0].loop.add_callback(comm.abort)
                while not comm.closed():  # nothing is heard of the slides that is not lost with the connection
                    time.sleep(0.001)

    monkeypatch.setattr(cluster, "_client", remember)
    recorder = Cut()
    outcomes = run_on_cluster(jobs, address, task=resumable, report=recorder)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert recorder.warnings == ["the connection to the Dask scheduler was lost; trying for 120 s"]
    assert [sorted(set(tiles_done(job.out))) for job in jobs] == [list(range(TILES))] * 3


class Workers:
    """Answers like a client of a cluster whose workers have these versions and threads."""

    def __init__(self, found, threads):
        self.found, self.threads = found, threads

    def run_on_scheduler(self, function, *arguments):
        return function(*arguments)

    def run(self, function, *arguments, on_error):
        return self.found

    def nthreads(self):
        return self.threads


def test_workers_are_checked():
    ours, recorder = cluster.versions()["cellvit"], Recorder()
    fit = {"tcp://w1": ours, "tcp://w2": ours}
    cluster._check_cluster(Workers(fit, {"tcp://w1": 1, "tcp://w2": 1}), "tcp://s", recorder)
    assert recorder.warnings == []
    cluster._check_cluster(Workers(fit, {"tcp://w1": 1, "tcp://w2": 8}), "tcp://s", recorder)
    assert recorder.warnings == [
        "1 workers have several threads, such as tcp://w2, but do one slide at a time; "
        "start one worker per device with --nthreads 1"
    ]
    with pytest.raises(ConfigError, match=r"tcp://w2 at 'tcp://s' has cellvit-lightning 0\.0\.7, here is .*; install"):
        cluster._check_cluster(Workers(fit | {"tcp://w2": "0.0.7"}, {}), "tcp://s", recorder)
    lacking = PackageNotFoundError("cellvit-lightning")
    with pytest.raises(
        ConfigError, match=r"tcp://w2 at 'tcp://s' has no cellvit-lightning; install cellvit-lightning=="
    ):
        cluster._check_cluster(Workers(fit | {"tcp://w2": lacking}, {}), "tcp://s", recorder)


@pytest.mark.slow
def test_a_real_slide_survives_the_death_of_its_worker(address, tmp_path):
    """Its worker is killed after the first part; another goes on, and the bytes are those of an undisturbed run."""
    slides = [drawn_slide(tmp_path, 1300, 1200, name=f"slide{i}.tif") for i in range(2)]
    jobs = [
        SlideJob(path, tmp_path / "out" / path.stem, {"kill_at": 20 if not i else None})
        for i, path in enumerate(slides)
    ]
    outcomes = run_on_cluster(jobs, address, task=segment_drawn)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert (tmp_path / "out" / "slide0.killed").exists()
    # a worker of Dask may not have children of its own
    assert outcomes[0].summary["workers"]["kind"] == "threads"
    killed, undisturbed = ((job.out / "nuclei.parquet").read_bytes() for job in jobs)
    assert len(killed) == len(undisturbed)
    alone = segment_drawn(slides[0], tmp_path / "alone", workers=0)
    assert (alone.out / "nuclei.parquet").read_bytes() == killed
