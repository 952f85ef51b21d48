"""SIGKILL at any moment, then the same call again, gives what an uninterrupted run gives."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from slide_drawings import drawn_slide

FILES = ("nuclei.parquet", "nuclei.geojson.gz", "nuclei.h5ad", "tissue.png")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(("workers", "kills", "size"), [(0, 20, (1300, 1200)), (1, 1, (700, 600))])
def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(tmp_path, workers, kills, size):
    path = drawn_slide(tmp_path, *size)
    nursery = Path(__file__).with_name("kill_nursery.py")
    command = [sys.executable, str(nursery), str(path), str(tmp_path), str(kills), str(workers), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    statuses = Counter(life["status"] for life in lives)
    assert set(statuses) == {0, -signal.SIGKILL}, done.stderr[-3000:]
    assert statuses[-signal.SIGKILL] >= kills
    finished = {life["out"] for life in lives if life["status"] == 0}
    assert len(finished) > 1
    whole = tmp_path / "whole"
    for name in finished - {"whole"}:
        for file in FILES:
            assert (tmp_path / name / file).read_bytes() == (whole / file).read_bytes(), (name, file)
        counts = [json.loads((tmp_path / out / "summary.json").read_text())["nuclei"] for out in (name, "whole")]
        assert counts[0] == counts[1]
        left = {path.name for path in (tmp_path / name).iterdir()}
        assert left == {path.name for path in whole.iterdir()}  # nothing temporary stays behind
