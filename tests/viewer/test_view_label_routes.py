"""What the page asks of labels: classes, clicks, lassos, undo, training, types, suggestions; and what is refused."""

import json
import shutil
import time

import numpy as np
import pytest
from starlette.testclient import TestClient
from view_samples import STEP, drawn_nuclei, write_table

from cellvit.classes import PALETTE
from cellvit.errors import DataError, OutputError
from cellvit.io.parquet import read_parquet
from cellvit.labels import read_labels
from cellvit.viewer import labeling, tasks
from cellvit.viewer.app import create_app
from cellvit.viewer.gallery import Gallery
from cellvit.viewer.label_routes import LabelExtension

NAMES = np.array(["", "Round <b>", "Long"], object)


class Viewer:
    """A viewer of some tables, and the first of its slides."""

    def __init__(self, *tables):
        gallery = Gallery(tables)
        self.labels = LabelExtension(gallery)
        app = create_app(gallery, token="secret", extensions=[lambda gallery: self.labels])
        self.client = TestClient(app, base_url="http://127.0.0.1:8000")
        self.slide = f"/t/secret/api/slides/{next(iter(gallery.slides))}"

    def get(self, path="", status=200):
        found = self.client.get(self.slide + path if not path.startswith("/t/") else path)
        assert found.status_code == status, found.text
        return found.json()

    def post(self, path, data, status=200):
        found = self.client.post(self.slide + path if path.startswith("/labels") else f"/t/secret/api{path}", json=data)
        assert found.status_code == status, found.text
        return found.json()

    def finished(self, job):
        for _ in range(2000):
            facts = self.get(f"/t/secret/api/jobs/{job['job']}")
            if facts["state"] != "running":
                return facts
            time.sleep(0.01)
        raise AssertionError(facts)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "results" / "slide")


@pytest.fixture
def viewer(table):
    viewer = Viewer(table)
    yield viewer
    viewer.labels.labeling.close()


def test_classes_clicks_lassos_and_undo(viewer, table):
    about = viewer.get()
    assert about["labels"]["editable"]
    assert about["labels"]["classes"] == []
    assert about["labels"]["palette"][0] == "#{:02x}{:02x}{:02x}".format(*PALETTE[0])
    assert about["classifier"] is False
    added = viewer.post("/labels/classes", {"name": NAMES[1], "color": "#112233"})
    assert added["classes"] == [{"name": "Round <b>", "color": "#112233", "count": 0}]
    done = viewer.post("/labels", {"class": NAMES[1], "rows": [0, 1]})
    assert done == {"changed": 2, "count": 2, "revision": 1, "can_undo": True}
    lasso = [[0, 0], [6 * STEP, 0], [6 * STEP, 2 * STEP], [0, 2 * STEP]]  # twelve nuclei, of which four are long
    assert viewer.post("/labels", {"class": "Long", "polygon": lasso, "filter": {"classes": "2"}})["changed"] == 4
    least = {"classes": "2", "min_prob": "0.31", "region": f"0,0,{3 * STEP},{9 * STEP}"}
    assert viewer.post("/labels", {"class": "Other", "polygon": lasso, "filter": least})["changed"] == 1
    found = viewer.get("/labels")
    assert {one["row"]: one["class"] for one in found["labels"]} == {
        **{0: "Round <b>", 1: "Round <b>", 2: "Long", 3: "Long"},
        **{18: "Other", 19: "Long"},
    }
    assert [one["name"] for one in found["classes"]] == ["Round <b>", "Long", "Other"]
    assert found["classes"][1]["color"] == "#1e50c8"  # as the type of that name
    assert read_labels(table.parent).current().class_name.tolist() == [one["class"] for one in found["labels"]]
    assert viewer.post("/labels/undo", {})["changed"] == 1
    assert viewer.get("/labels")["labels"][4] == {"row": 18, "class": "Long"}
    assert viewer.post("/labels", {"class": None, "rows": [0, 200]})["changed"] == 1
    assert viewer.post("/labels/classes", {"rename": "Long", "to": "Thin"})["changed"] == 4
    assert viewer.post("/labels/classes", {"remove": "Other"})["changed"] == 0
    assert [one["name"] for one in viewer.get("/labels")["classes"]] == ["Round <b>", "Thin"]
    assert viewer.get("/t/secret/api/slides")["slides"][0]["labels"] == 5
    points = viewer.get("/labels.geojson")["features"]
    assert len(points) == 5
    assert points[0]["properties"]["classification"] == {"name": "Round <b>", "color": [17, 34, 51]}
    assert points[0]["geometry"] == {"type": "Point", "coordinates": [1.5 * STEP, 0.5 * STEP]}


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("/labels", {"class": "A", "rows": [0, -1]}, "name nuclei by rows"),
        ("/labels", {"class": "A", "rows": [True]}, "name nuclei by rows"),
        ("/labels", {"class": "A", "rows": [256]}, "row 256 of 256"),
        ("/labels", {"class": "A"}, "name nuclei by rows"),
        ("/labels", {"class": " ", "rows": [0]}, "class name"),
        ("/labels", {"class": {"a": 1}, "rows": [0]}, "class name"),
        ("/labels", {"class": "A", "polygon": [[0, 0], [1, 1]]}, "polygon of shape"),
        ("/labels", {"class": "A", "polygon": [[0, 0], ["x", 1], [1, 2]]}, "no list of points"),
        ("/labels", {"class": "A", "polygon": [[0, 0], [None, 1], [1, 2]]}, "polygon of shape"),
        ("/labels", {"class": "A", "polygon": [[0, 0], [9, 1], [1, 2]], "filter": [1]}, "filter is no object"),
        ("/labels", {"class": "A", "polygon": [[0, 0], [9, 1], [1, 2]], "filter": {"nothing.min": 1}}, "no column"),
        ("/labels", [1], "no JSON object"),
        ("/labels/classes", {"name": "A", "color": "red"}, "colour 'red'"),
        ("/labels/classes", {"rename": "A", "to": ""}, "class name"),
        ("/apply", {"slides": "all"}, "name them in a list"),
        ("/apply", {}, "no classifier yet"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(viewer, table, path, data, words):
    assert words in "; ".join(viewer.post(path, data, 422).values())
    assert not table.with_name("labels.parquet").exists()
    assert not (table.parent / "viewer").exists()


def test_answers_of_labels_that_are_not_there_or_busy(viewer, table, tmp_path):
    assert "nothing to undo" in viewer.post("/labels/undo", {}, 409)["error"]
    assert "no such job" in viewer.get("/t/secret/api/jobs/none", 404)["error"]
    assert "no report" in viewer.get("/t/secret/api/classifier/report.html", 404)["error"]
    assert "no slide" in viewer.post("/apply", {"slides": ["none"]}, 404)["error"]
    text = viewer.client.post(viewer.slide + "/labels", content=b"{", headers={"content-type": "application/json"})
    assert (text.status_code, "no JSON" in text.json()["error"]) == (422, True)
    large = b" " * ((16 << 20) + 1)
    text = viewer.client.post(viewer.slide + "/labels", content=large, headers={"content-type": "application/json"})
    assert (text.status_code, "16 MB" in text.json()["error"]) == (422, True)
    assert viewer.client.post(viewer.slide + "/labels", data={"rows": "1"}).status_code == 415
    viewer.get()  # takes the labels
    second = Viewer(table)
    assert "another viewer" in second.get()["labels"]["reason"]
    assert not second.get()["labels"]["editable"]
    assert "another viewer" in second.post("/labels", {"class": "A", "rows": [0]}, 409)["error"]
    assert "another viewer" in second.post("/labels/classes", {"name": "A"}, 409)["error"]
    failed = viewer.finished(viewer.post("/train", {}))
    assert (failed["state"], failed["text"].partition(";")[0]) == ("failed", "there are no labels to learn from")


@pytest.fixture
def in_this_process(monkeypatch):
    def run(task, say, **settings):
        return tasks.TASKS[task](say, **json.loads(json.dumps(settings, default=str)))

    monkeypatch.setattr(labeling, "run_apart", run)  # to start another one takes seconds


def test_work_in_another_process_returns_what_came_of_it_or_why_nothing_did(table, monkeypatch):
    table.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        tasks.run_apart("suggest", print, table=table, classifier=None, count=3)
    monkeypatch.setattr(tasks.sys, "executable", shutil.which("false"))
    with pytest.raises(OutputError, match="'suggest' ended with code 1 "):
        tasks.run_apart("suggest", print, table=table, classifier=None, count=3)


def test_types_of_ones_own_are_learnt_and_applied_and_tell_what_to_label_next(viewer, table, in_this_process):
    kind = drawn_nuclei().type
    assert viewer.get()["suggestions"] == 50
    assert {one["why"] for one in viewer.get("/suggestions")["rows"]} == {"unlike those labelled"}
    viewer.post("/labels/classes", {"name": NAMES[1], "color": "#112233"})
    for code in (1, 2):
        viewer.post("/labels", {"class": NAMES[code], "rows": np.flatnonzero(kind == code)[::4].tolist()})
    trained = viewer.finished(viewer.post("/train", {}))
    assert trained["state"] == "done", trained["text"]
    assert "macro F1 1.00" in trained["text"]
    page = viewer.client.get(f"/t/secret/{trained['report']}")
    assert "Round &lt;b&gt;" in page.text
    before = viewer.get()
    assert before["classifier"]
    applied = viewer.finished(viewer.post("/apply", {"slides": [before["id"]]}))
    assert applied["state"] == "done", applied["text"]
    assert "128 Long" in applied["text"]
    after = viewer.get()
    assert after["revision"] > before["revision"]
    assert [(one["name"], one["color"]) for one in after["nuclei"]["classes"]][1] == ("Round <b>", "#112233")
    found = read_parquet(table)
    assert (np.array(found.classes.names, object)[found.type] == NAMES[kind]).mean() > 0.99
    assert after["labels"]["count"] == 64  # labels stay
    first = viewer.get("/suggestions")["rows"]
    assert len(first) == 50
    assert first[0]["why"].split(" 0.")[0] in ("Round <b>", "Long")
    assert viewer.get("/suggestions")["rows"] == first
    viewer.post("/labels", {"class": "Long", "rows": [first[0]["row"]]})
    assert viewer.get("/suggestions")["rows"] == first[1:]
    assert viewer.get()["suggestions"] == 49
    assert viewer.get(f"/nuclei/{first[0]['row']}")["label"] == "Long"
    assert viewer.get(f"/nuclei/{first[1]['row']}")["label"] is None
    viewer.post("/labels", {"class": "Long", "rows": [one["row"] for one in first]})
    assert len(viewer.get("/suggestions")["rows"]) == 50  # chosen anew
    assert json.loads((table.parent / "viewer" / "my-types" / "report.json").read_text())["labels"] == 64
