"""SIGKILL at any moment, then the same call again, gives what an uninterrupted run gives."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from slide_drawings import drawn_slide

from cellvit.inference.verify import verify_results

FILES = ("nuclei.parquet", "nuclei.geojson.gz", "nuclei.h5ad", "tissue.png")


KILLS = 20


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    path = drawn_slide(tmp_path, 700, 600)
    nursery = Path(__file__).with_name("kill_nursery.py")
    command = [sys.executable, str(nursery), str(path), str(tmp_path), str(KILLS), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    statuses = Counter(life["status"] for life in lives)
    assert set(statuses) == {0, -signal.SIGKILL}, done.stderr[-3000:]
    assert statuses[-signal.SIGKILL] >= KILLS
    finished = {life["out"] for life in lives if life["status"] == 0}
    assert len(finished) > 2
    whole = tmp_path / "whole"
    for name in finished - {"whole"}:
        for file in FILES:
            assert (tmp_path / name / file).read_bytes() == (whole / file).read_bytes(), (name, file)
        facts = [json.loads((tmp_path / out / "summary.json").read_text()) for out in (name, "whole")]
        assert all(facts[0][key] == facts[1][key] for key in ("nuclei", "digests", "warnings"))
        assert verify_results(tmp_path / name).status == "ok"
        left = {path.name for path in (tmp_path / name).iterdir()}
        assert left == {path.name for path in whole.iterdir()}  # nothing temporary stays behind
    # the one with workers had some when it was killed, and they are gone
    killed, done = (life for life in lives if life["out"] == "killed-with-workers")
    assert (killed["status"], done["status"]) == (-signal.SIGKILL, 0)
    assert killed["family"] > 0
