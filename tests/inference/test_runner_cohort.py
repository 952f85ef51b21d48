import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cohort_tasks import (
    TILES,
    Recorder,
    Result,
    is_running,
    jobs_in,
    resumable,
    starts,
    summary_of,
    tiles_done,
    unpicklable_summary,
    wait_until,
    with_settings,
)

from cellvit.cli.segment import build_parser
from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.inference.cohort.job import seldom
from cellvit.inference.cohort.report import write_report
from cellvit.inference.cohort.run import CohortFiles, SlideJob, SlideOutcome, choose_devices, run_cohort, write_summary
from cellvit.inference.cohort.sheet import CohortRow, cohort_jobs, read_cohort
from cellvit.inference.cohort.summary import read_summary, with_earlier

TWO = ("cpu", "cpu")


def write_list(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    for name in ("a.svs", "b, c.svs", "sub/d.svs", "roi.geojson"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    path = folder / "slides.csv"
    path.write_bytes(text.encode(encoding))
    return path


# The list.


def test_read_cohort_takes_known_columns_and_keeps_the_others(tmp_path):
    source = write_list(
        tmp_path,
        'path,case,mpp,magnification,roi\na.svs,P1,0.25,,\n\n"b, c.svs","P ""2""",,40x,roi.geojson\nsub/d.svs,,,,\n',
    )
    assert read_cohort(source) == [
        CohortRow(tmp_path / "a.svs", {"mpp": 0.25}, {"case": "P1"}, 2),
        CohortRow(
            tmp_path / "b, c.svs", {"magnification": 40.0, "roi": tmp_path / "roi.geojson"}, {"case": 'P "2"'}, 4
        ),
        CohortRow(tmp_path / "sub/d.svs", {}, {"case": ""}, 5),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_read_cohort_understands_what_spreadsheets_write(tmp_path, mark, ending, encoding):
    lines = [["Slide", "MPP", "Größe"], ["a.svs", '"0,25"', "groß"]]
    source = write_list(tmp_path, ending.join(mark.join(line) for line in lines), encoding=encoding)
    assert read_cohort(source) == [CohortRow(tmp_path / "a.svs", {"mpp": 0.25}, {"Größe": "groß"}, 2)]


def test_read_cohort_reads_one_column_and_a_line_break_in_quotes(tmp_path):
    assert [row.path.name for row in read_cohort(write_list(tmp_path, "path\na.svs\n"))] == ["a.svs"]
    source = write_list(tmp_path, 'path,note\na.svs,"two\nlines"\nsub/d.svs,x\n')
    assert [(row.line, row.extra["note"]) for row in read_cohort(source)] == [(2, "two\nlines"), (4, "x")]


def test_read_cohort_reads_lists_of_the_released_tool(tmp_path):
    source = write_list(tmp_path, "path,wsi_mpp,wsi_magnification\na.svs,0.25,40\n")
    assert read_cohort(source)[0].settings == {"mpp": 0.25, "magnification": 40.0}


def test_read_cohort_expands_variables_and_keeps_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("COHORT_SLIDES", str(tmp_path))
    other = tmp_path / "lists"
    other.mkdir()
    write_list(tmp_path, "")
    source = other / "list.csv"
    source.write_text(f"path\n${{COHORT_SLIDES}}/a.svs\n{tmp_path}/sub/d.svs\n")
    assert [row.path for row in read_cohort(source)] == [tmp_path / "a.svs", tmp_path / "sub/d.svs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; write a line of column names with 'path'"),
        ("path\n", "names no slides"),
        ("file,mpp\na.svs,1\n", "has the columns file, mpp; name the one with the slides 'path'"),
        ("path,case,CASE\na.svs,1,2\n", "two columns 'case'|two columns 'CASE'"),
        ("path,mpp\na.svs,fast\n", "line 2, column 'mpp': 'fast' is no number greater than 0; write 0.25"),
        ("path,mpp\na.svs,-1\n", "line 2, column 'mpp': '-1' is no number"),
        ("path,mpp\na.svs,inf\n", "line 2, column 'mpp': 'inf' is no number"),
        ("path,magnification\na.svs,0\n", "line 2, column 'magnification': '0' is no number greater than 0; write 40"),
        ("path,roi\na.svs,none.geojson\n", "line 2, column 'roi': '.*none.geojson' does not exist"),
        ("path\nx.svs\n", "line 2, column 'path': '.*x.svs' does not exist; paths are relative to the folder"),
        ("path,mpp\n,1\n", "line 2, column 'path': no slide is named"),
        ("path\na.svs\n./sub/../a.svs\n", "line 3, column 'path': slide '.*' stands in line 2 already"),
        ("path\na.svs,1\n", "line 2, column 2: 2 values for 1 columns; put quotes"),
        ("path,\na.svs,1\n", "line 2, column 2: '1' stands below no column name"),
        ("path\n${NO_SUCH_VARIABLE}/a.svs\n", "line 2, column 'path': .*NO_SUCH_VARIABLE"),
        ('path,x\na.svs,"un\n', "line 2: .*check the quotes"),
    ],
)
def test_read_cohort_says_what_is_wrong_and_where(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_cohort(write_list(tmp_path, text))


def test_read_cohort_lists_faults_at_once_but_not_hundreds(tmp_path):
    source = write_list(tmp_path, "path\n" + "".join(f"x{i}.svs\n" for i in range(25)))
    with pytest.raises(DataError, match=r"line 2, .*; line 11, .*; and 15 more$"):
        read_cohort(source)


def test_read_cohort_refuses_other_files(tmp_path):
    with pytest.raises(DataError, match="is no UTF-8 text; save it as 'CSV UTF-8'"):
        read_cohort(write_list(tmp_path, "path,ä\na.svs,ü\n", encoding="latin-1"))
    with pytest.raises(DataError, match=r"cannot be read: .*check the path"):
        read_cohort(tmp_path / "none.csv")


def test_cohort_jobs_give_each_slide_a_folder_and_its_settings(tmp_path):
    rows = [
        CohortRow(tmp_path / "a/x.svs", {"mpp": 0.25}, {"case": "1"}),
        CohortRow(tmp_path / "b/x.svs"),
        CohortRow(tmp_path / "b/report.html"),
    ]
    jobs = cohort_jobs(rows, tmp_path / "out", model="nano", magnification=40, tile_size=512)
    assert [job.out.name for job in jobs] == ["a_x", "b_x", "report"]
    assert jobs[0].settings == {"model": "nano", "mpp": 0.25, "tile_size": 512}
    assert jobs[1].settings == {"model": "nano", "magnification": 40, "tile_size": 512}
    assert jobs[0].extra == {"case": "1"}


def test_cohort_jobs_leave_the_names_of_the_cohorts_own_files(tmp_path):
    (job,) = cohort_jobs([CohortRow(tmp_path / "Summary.csv.svs")], tmp_path / "out")
    assert job.out.name == "Summary.csv_slide"


# Devices.


def test_choose_devices_takes_all_cards_for_several_slides_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_devices("auto", 10) == ("cuda:0", "cuda:1", "cuda:2")
    assert choose_devices("auto", 2) == ("cuda:0", "cuda:1")
    assert choose_devices("auto", 1) == ("auto",)
    assert choose_devices("cuda:2, cuda:0", 10) == ("cuda:2", "cuda:0")
    with pytest.raises(ConfigError, match="'cuda:3' is not available"):
        choose_devices("cuda:0,cuda:3", 10)


def test_choose_devices_without_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_devices("auto", 10) == ("auto",)
    assert choose_devices("cpu,cpu", 10) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match="'cpu,' holds an empty name"):
        choose_devices("cpu,", 10)
    with pytest.raises(ConfigError, match="device 'tpu' is unknown"):
        choose_devices("cpu,tpu", 10)


# One device: in this process.


def test_one_device_works_here_and_failures_do_not_stop_the_others(tmp_path):
    jobs = jobs_in(tmp_path, 4)
    jobs[1] = with_settings(jobs[1], refuse="slide 'slide1.svs' is broken; copy it again")
    jobs[2] = with_settings(jobs[2], fault="odd")
    recorder = Recorder()
    outcomes = run_cohort(jobs, task=resumable, report=recorder)
    assert [outcome.error for outcome in outcomes] == [
        None,
        "slide 'slide1.svs' is broken; copy it again",
        "RuntimeError: odd",
        None,
    ]
    assert outcomes == recorder.outcomes
    assert outcomes[0].summary["slide"] == {"name": "slide0.svs"}
    assert outcomes[1].trace is None
    assert "cohort_tasks.py" in outcomes[2].trace
    assert {start[0] for job in jobs for start in starts(job.out)} == {str(os.getpid())}
    assert recorder.events[:3] == [
        ("started", "slide0.svs", "cpu"),
        ("advanced", "slide0.svs", 1, TILES),
        ("advanced", "slide0.svs", 2, TILES),
    ]


def test_a_task_that_exits_is_a_failed_slide(tmp_path):
    def leave(path, out, *, device, progress, **settings):
        sys.exit(3)

    assert run_cohort(jobs_in(tmp_path, 1), task=leave)[0].error == "SystemExit: 3"


def test_interrupt_here_keeps_what_is_finished(tmp_path):
    jobs = jobs_in(tmp_path, 3)
    files = CohortFiles(jobs, tmp_path / "summary.csv")

    def task(path, out, *, device, progress, **settings):
        if path == jobs[1].path:
            raise KeyboardInterrupt
        return Result(summary_of(path.name))

    with pytest.raises(KeyboardInterrupt):
        run_cohort(jobs, task=task, report=files)
    assert [row["slide"] for row in rows_of(files.path)] == [str(jobs[0].path)]


def test_run_cohort_refuses_what_cannot_work(tmp_path):
    job = SlideJob(tmp_path / "a.svs", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"1 folders belong to several slides, such as '.*out'; give each its own"):
        run_cohort([job, SlideJob(tmp_path / "b.svs", tmp_path / "x/../out")], task=resumable)
    with pytest.raises(ConfigError, match="no device is named"):
        run_cohort([job], task=resumable, devices=())
    assert run_cohort([], task=resumable) == []


# Several devices: a process for each.


def test_several_devices_share_the_slides_and_a_killed_process_is_replaced(tmp_path):
    jobs = jobs_in(tmp_path, 5, seconds=0.01)
    jobs[0] = with_settings(jobs[0], kill_at=3)
    jobs[1] = with_settings(jobs[1], fault="sticky")
    jobs[2] = with_settings(jobs[2], kill_at=2, kills=9)
    recorder = Recorder()
    outcomes = run_cohort(jobs, task=resumable, devices=TWO, report=recorder)
    assert [outcome.path for outcome in outcomes] == [job.path for job in jobs]
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, True, True]
    # resumed in another process, not begun again
    assert tiles_done(jobs[0].out) == list(range(TILES))
    assert len({start[0] for start in starts(jobs[0].out)}) == len(starts(jobs[0].out)) == 2
    assert outcomes[1].error == "RuntimeError: sticky"
    assert "was killed by SIGKILL, perhaps for want of memory, 2 times" in outcomes[2].error
    assert len(starts(jobs[2].out)) == 2
    assert len([text for text in recorder.warnings if "is tried once more after the others" in text]) == 2
    # each slide is reported once, in the order of completion
    assert sorted(outcome.path for outcome in recorder.outcomes) == [job.path for job in jobs]
    assert ("advanced", "slide4.svs", TILES, TILES) in recorder.events
    processes = {start[0] for job in jobs for start in starts(job.out)}
    assert str(os.getpid()) not in processes
    assert not any(is_running(int(pid)) for pid in processes)
    assert {start[2] for job in jobs for start in starts(job.out)} == {"1"}  # a share of the cores


def test_processes_say_what_cannot_be_sent(tmp_path):
    def local(path, out, **settings):
        raise AssertionError

    jobs = jobs_in(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"cannot be sent to another process .*define it at the top of a module"):
        run_cohort(jobs, task=local, devices=TWO)
    with pytest.raises(ConfigError, match=r"settings of slide '.*' cannot be sent .*pass plain data"):
        run_cohort([with_settings(job, hook=lambda: 0) for job in jobs], task=resumable, devices=TWO)
    outcomes = run_cohort(jobs, task=unpicklable_summary, devices=TWO)
    assert all("its summary is no plain data" in outcome.error for outcome in outcomes)


SCRIPT = """
import signal, sys, time
from dataclasses import replace
from pathlib import Path
from cohort_tasks import jobs_in, resumable
from cellvit.inference.cohort.run import run_cohort

{guard}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    jobs = jobs_in(Path(sys.argv[1]), 2, seconds=60)
    run_cohort(jobs, task=resumable, devices=("cpu", "cpu"))
"""


def run_script(folder: Path, guard: str) -> subprocess.Popen:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(guard=guard))
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path, number):
    logs = [tmp_path / f"out/slide{i}/log.txt" for i in range(2)]
    with run_script(tmp_path, 'if __name__ == "__main__":') as parent:
        wait_until(lambda: all(log.exists() and log.read_text() for log in logs))
        children = [int(starts(log.parent)[0][0]) for log in logs]
        assert all(map(is_running, children))
        parent.send_signal(number)
        output, _ = parent.communicate(timeout=200)
    assert parent.returncode in (-number, 130)
    wait_until(lambda: not any(map(is_running, children)))  # their slides would take 360 s
    if number == signal.SIGINT:
        assert output.count("Traceback") == 1  # that of the parent


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path):
    with run_script(tmp_path, "if True:") as parent:
        output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "ConfigError: no process can be started: the last one ended with exit code 1 before it was ready" in output
    assert "if __name__ ==" in output


# The table.


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def done(folder: Path, name: str, extra=None, **changes) -> SlideOutcome:
    summary = summary_of(name, **changes)
    return SlideOutcome(folder / name, folder / "out" / Path(name).stem, summary, None, 3.0, "cpu", extra or {})


def test_write_summary_has_one_row_per_slide(tmp_path):
    failed = SlideOutcome(tmp_path / "b.svs", tmp_path / "out/b", None, 'no;\n good, "x"', 0.5, "cpu", {"tiles": "7"})
    outcomes = [done(tmp_path, "ä, a.svs", {"case": "P1", "tiles": "9"}), failed]
    path = tmp_path / "out/summary.csv"
    path.parent.mkdir()
    write_summary(outcomes, path)
    first, second = rows_of(path)
    assert list(first) == [
        *("slide", "status", "error", "nuclei", "nuclei_Neoplastic", "nuclei_Inflammatory", "nuclei_Connective"),
        *("nuclei_Dead", "nuclei_Epithelial", "tissue_mm2", "nuclei_per_mm2", "mpp", "mpp_source", "tiles"),
        *("seconds", "types_learnt_on", "folder", "case", "list_tiles"),
    ]
    assert first == {
        **{"slide": str(tmp_path / "ä, a.svs"), "status": "done", "error": "", "nuclei": "100"},
        **{"nuclei_Neoplastic": "50", "nuclei_Inflammatory": "50", "nuclei_Connective": "0", "nuclei_Dead": "0"},
        **{"nuclei_Epithelial": "0", "tissue_mm2": "2", "nuclei_per_mm2": "50", "mpp": "0.5", "mpp_source": "slide"},
        **{"tiles": "6", "seconds": "1.5", "types_learnt_on": "", "folder": "ä, a", "case": "P1", "list_tiles": "9"},
    }
    assert {key: value for key, value in second.items() if value} == {
        **{"slide": str(tmp_path / "b.svs"), "status": "failed", "error": 'no; good, "x"', "seconds": "0.5"},
        **{"folder": "b", "list_tiles": "7"},
    }


def test_the_summary_says_what_types_were_learnt_on_and_reads_it_back(tmp_path):
    path = tmp_path / "summary.csv"
    outcome = done(tmp_path, "a.svs")
    outcome.summary["model"]["types_learnt_on"] = "colon (CoNSeP)"
    write_summary([outcome], path)
    assert rows_of(path)[0]["types_learnt_on"] == "colon (CoNSeP)"
    write_summary(read_summary(path), path)
    assert rows_of(path)[0]["types_learnt_on"] == "colon (CoNSeP)"
    outcome.summary["classification"] = {"classifier": {}, "classes": ["Background", "Mine"]}
    write_summary([outcome], path)
    assert rows_of(path)[0]["types_learnt_on"] == ""  # those of a classifier of one's own


def test_write_summary_joins_the_types_of_different_models(tmp_path):
    other = summary_of("b.svs")
    other["model"] = {"name": "x", "classes": ["Background", "Tumour"]}
    other["nuclei"] = {"total": 3, "by_type": {"No type": 1, "Tumour": 2}}
    outcome = SlideOutcome(tmp_path / "b.svs", tmp_path / "b", other, None, 1, "cpu")
    write_summary([done(tmp_path, "a.svs"), outcome], tmp_path / "summary.csv")
    first, second = rows_of(tmp_path / "summary.csv")
    assert (first["nuclei_Tumour"], first["nuclei_No type"]) == ("0", "0")
    assert (second["nuclei_Tumour"], second["nuclei_No type"], second["nuclei_Neoplastic"]) == ("2", "1", "0")


def test_write_summary_of_nothing_and_of_a_bare_summary(tmp_path):
    write_summary([], tmp_path / "summary.csv")
    assert rows_of(tmp_path / "summary.csv") == []
    write_summary([SlideOutcome(tmp_path / "a", tmp_path / "o", {}, None, 2.0, "cpu")], tmp_path / "summary.csv")
    (row,) = rows_of(tmp_path / "summary.csv")
    assert (row["status"], row["nuclei"], row["mpp"], row["seconds"]) == ("done", "", "", "2")


def test_a_summary_can_be_read_as_a_list_again(tmp_path):
    (tmp_path / "a.svs").touch()
    write_summary([done(tmp_path, "a.svs")], tmp_path / "summary.csv")
    (row,) = read_cohort(tmp_path / "summary.csv")
    assert row.path == tmp_path / "a.svs"
    assert row.settings == {"mpp": 0.5}
    assert json.loads(row.extra["nuclei"]) == 100


def test_the_table_grows_in_input_order_and_survives_a_disk_that_refuses(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path, 3)
    files = CohortFiles(jobs, tmp_path / "summary.csv")
    said = []
    monkeypatch.setattr(files, "warned", said.append)
    outcomes = run_cohort(jobs, task=resumable)
    files.finished(outcomes[2])
    files.finished(outcomes[0])
    assert [Path(row["slide"]).name for row in rows_of(files.path)] == ["slide0.svs", "slide2.svs"]
    files.path.unlink()
    files.path.mkdir()
    files.finished(outcomes[1])
    assert len(said) == 1
    assert "it is tried again after the next slide" in said[0]
    with pytest.raises(OutputError):
        files.write()
    files.path.rmdir()
    files.write()
    assert [Path(row["slide"]).name for row in rows_of(files.path)] == ["slide0.svs", "slide1.svs", "slide2.svs"]


def test_progress_is_told_seldom_and_at_the_end():
    said = []
    progress = seldom(lambda done, total: said.append((done, total)), seconds=60)
    for done in range(1, 5):
        progress(done, 4)
    assert said == [(4, 4)]
    progress = seldom(lambda done, total: said.append((done, total)), seconds=0)
    progress(1, 4)
    assert said[1:] == [(1, 4)]


def test_slides_of_earlier_calls_stay_until_they_are_done_again(tmp_path):
    path = tmp_path / "out" / "summary.csv"
    path.parent.mkdir()
    failed = SlideOutcome(tmp_path / "c.svs", tmp_path / "out/c", None, "no <b>disk</b>", 0.5, "cpu", {"tiles": "7"})
    before = [done(tmp_path, "a.svs", {"case": "P1", "tiles": "9"}), done(tmp_path, "b.svs", nuclei=8), failed]
    write_summary(before, path)
    first = path.read_text()
    files = CohortFiles([SlideJob(tmp_path / "b.svs", tmp_path / "out/b")], path)
    files.write()
    assert path.read_text() == first  # nothing is done yet, nothing is lost
    files.finished(done(tmp_path, "b.svs", {"case": "P2"}, nuclei=6))
    rows = rows_of(path)
    assert [Path(row["slide"]).name for row in rows] == ["a.svs", "c.svs", "b.svs"]
    assert [row["nuclei"] for row in rows] == ["100", "", "6"]
    assert [row["case"] for row in rows] == ["P1", "", "P2"]
    assert [row["list_tiles"] for row in rows] == ["9", "7", ""]
    write_report(files.outcomes, path.with_name("report.html"), title="All")
    page = path.with_name("report.html").read_text()
    assert all(name in page for name in ("a.svs", "b.svs", "no &lt;b&gt;disk"))
    assert "<dt>nuclei</dt><dd>106</dd>" in page


def test_numbers_of_an_earlier_slide_come_from_its_folder_while_it_is_there(tmp_path):
    path = tmp_path / "summary.csv"
    write_summary([replace(done(tmp_path, "a.svs"), out=tmp_path / "a")], path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary_of("a.svs", nuclei=42)))
    (earlier,) = read_summary(path)
    assert earlier.summary["nuclei"]["total"] == 42
    assert with_earlier([done(tmp_path, "b.svs")], [earlier])[0] is earlier
    elsewhere = replace(earlier, path=Path("other") / "a.svs")  # the same slide, seen from another folder
    assert with_earlier([elsewhere], [earlier]) == [elsewhere]


@pytest.mark.parametrize("damage", ["slide,status\na,done\n", "\0\xff", "{cut}", "path,mpp\na.svs,0.25\n"])
def test_a_damaged_table_is_told_and_kept_aside(tmp_path, damage):
    path, said = tmp_path / "summary.csv", []
    write_summary([done(tmp_path, "a.svs")], path)
    text = path.read_text()[:-20] if damage == "{cut}" else damage
    path.write_text(text, encoding="latin-1")
    (tmp_path / "summary.csv.1").write_text("of another accident")
    files = CohortFiles([SlideJob(tmp_path / "b.svs", tmp_path / "out/b")], path, say=said.append)
    files.finished(done(tmp_path, "b.svs"))
    assert len(said) == 1
    assert "is damaged" in said[0]
    assert "kept as" in said[0]
    assert (tmp_path / "summary.csv.2").read_text(encoding="latin-1") == text
    assert [Path(row["slide"]).name for row in rows_of(path)] == ["b.svs"]


# The page about cohorts.

PAGE = (Path(__file__).parents[2] / "docs/pages/how-to/cohorts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_list_on_the_page_can_be_read(tmp_path):
    (text,) = blocks("csv")
    text = text.replace("/mnt/archive", str(tmp_path))
    for name in ("scans/a.svs", "scans/b.tif", "regions/b.geojson", "c.ndpi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "slides.csv").write_text(text)
    rows = read_cohort(tmp_path / "slides.csv")
    assert rows[1].settings == {"mpp": 0.25, "roi": tmp_path / "regions/b.geojson"}
    assert [row.extra for row in rows] == [{"case": f"P{i}", "stain": "HE"} for i in (1, 2, 3)]


def test_the_scripts_on_the_page_name_what_there_is():
    for script in blocks("python"):
        imports = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.ImportFrom)]
        for node in imports:
            module = pytest.importorskip(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
    options = {option for action in build_parser()._actions for option in action.option_strings}
    used = [word for line in PAGE.splitlines() if line.startswith("$ cellvit segment") for word in line.split()]
    assert {word for word in used if word.startswith("--")} <= options
