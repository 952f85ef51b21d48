"""The script of ``make soak`` sees what survives and what does not, on work of a second."""

import signal
import sys

import pytest
import soak

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")

STEPS = """
import sys, time
from pathlib import Path

out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
for i in range(6):
    if not (out / f"{i}").exists():
        time.sleep(0.05)
        (out / "new").write_text({text})
        (out / "new").rename(out / f"{i}")
"""
SAME, TIMES = STEPS.replace("{text}", "str(i)"), STEPS.replace("{text}", "str(time.time())")


def work(name, program):
    return soak.Work(name, lambda out: [sys.executable, "-c", program, str(out)], soak.file_digests)


def test_what_is_the_same_is_told_from_what_differs(tmp_path, capsys):
    works = [work("same", SAME), work("times", TIMES), work("fails", "raise SystemExit(3)")]
    tallies = soak.soak(works, tmp_path, seconds=2.5, seed=3)
    same, times, fails = tallies.values()
    assert (same.different, same.faults) == (0, [])
    assert sum(same.kills.values()) == same.survived > 0
    assert same.compared > 0
    assert times.different == times.compared > 0
    assert fails.different == 1
    assert "fails: undisturbed it ended with 3" not in capsys.readouterr().out  # said in the table's faults
    assert "undisturbed it ended with 3" in fails.faults[0]
    lines = soak.table(tallies).splitlines()
    assert lines[0].split()[2:5] == ["SIGKILL", "SIGTERM", "SIGHUP"]
    assert [line.split()[0] for line in lines[1:]] == ["same", "times", "fails"]


def test_children_that_outlive_their_parent_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "LEFT_SECONDS", 0.2)
    program = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])"
    command = [sys.executable, "-c", f"{program}; time.sleep(30)"]
    life = soak.live(command, tmp_path / "log", after=1.0)
    assert (life.status, life.stopped, life.left) == (-signal.SIGKILL, True, 1)
