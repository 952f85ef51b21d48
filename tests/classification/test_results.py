"""Labels of slides to a classifier, its types in all files of results, back again, and what to label next."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.drawn_slides import CLASSES, DrawnModel, drawn_block, write_drawn_slide

from cellvit import io
from cellvit.classification import TypeClassifier, apply_types, suggest_nuclei, train_classifier, undo_types
from cellvit.classification import apply as apply_module
from cellvit.classification.table import TypedTable
from cellvit.cli import main
from cellvit.errors import DataError, ImageError, OutputError
from cellvit.inference.assemble import TABLE
from cellvit.inference.cohort.job import SlideOutcome
from cellvit.inference.cohort.summary import write_summary
from cellvit.inference.slide import segment_slide
from cellvit.inference.verify import verify_results
from cellvit.io.anndata import read_anndata
from cellvit.labels import Labels, nuclei_digest, write_labels
from cellvit.measurement.neighbors import nearest_of_types

FORMATS = ("geojson", "json", "h5ad", "overlay")
SETTINGS = {"device": "cpu", "workers": 0, "tissue_filter": False, "formats": FORMATS, "tile_size": 512}
TRUE = np.array([None, "Warm", "Warm", "Cold", "Gold"], object)
pytestmark = pytest.mark.filterwarnings("ignore:.*published vectors")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return a result folder, and the slide beside it; neither is changed."""
    root = tmp_path_factory.mktemp("slides")
    path = write_drawn_slide(root / "drawn.tif", 640, 600, block=drawn_block(1024, seed=3), mpp=0.25)
    segment_slide(path, root / "first", model=DrawnModel(), **SETTINGS)
    label(root / "first", range(0, 400, 2))
    return root / "first"


def label(folder, rows, names=TRUE):
    nuclei = io.read_parquet(folder / TABLE)
    rows = np.array([row for row in rows if row < len(nuclei)])
    given = names[nuclei.type[rows]]
    x, y = nuclei.centroid[rows].T
    found = Labels.of(nucleus=rows, x=x, y=y, class_name=given, matched_to=nuclei_digest(nuclei.centroid))
    write_labels(folder / "labels.parquet", found)


@pytest.fixture(scope="module")
def types(first, tmp_path_factory):
    """Return the folder of a classifier trained on two slides."""
    second = tmp_path_factory.mktemp("second") / "second"
    shutil.copytree(first, second)
    label(second, range(1, 400, 2))
    out = tmp_path_factory.mktemp("types") / "my-types"
    train_classifier([first, second], out, unsure_below=0.4)
    return out


@pytest.fixture
def results(first, tmp_path):
    shutil.copytree(first, tmp_path / "results" / "first")
    return tmp_path / "results" / "first"


def same(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("cells.json.gz", "overlay.png"))


def test_training_writes_a_classifier_and_a_report(types):
    found = json.loads((types / "report.json").read_text())
    assert [kind["name"] for kind in found["types"]] == ["Cold", "Gold", "Warm"]
    assert found["macro_f1"] > 0.9
    assert found["labels"] == np.sum(found["confusion"]["counts"])
    assert "whole slides" in found["held_out"]
    page = (types / "report.html").read_text()
    assert 'src="http' not in page
    assert page.count("data:image/png") == 3 + 6  # charts; the most and the least sure of three types
    assert TypeClassifier.load(types).embedding_model_["model"] == "DrawnModel"


def test_types_are_applied_to_every_file_and_brought_back(first, types, results, capsys):
    write_summary(
        [SlideOutcome(first.parent / "drawn.tif", results, None, "x", 0.0, "", {})], results.parent / "summary.csv"
    )
    label_before = (results / "labels.parquet").read_bytes()
    assert main(["classify", "apply", str(types), str(results)]) == 0
    printed = capsys.readouterr().out
    nuclei, old = io.read_parquet(results / TABLE), io.read_parquet(first / TABLE)
    assert nuclei.classes.names == ("Background", "Cold", "Gold", "Warm", "unsure")
    names = np.array(nuclei.classes.names, object)[nuclei.type]
    assert (names == TRUE[old.type]).mean() > 0.9
    assert f"{(names == 'Cold').sum():,} Cold" in printed
    columns = pq.read_table(results / TABLE)
    assert columns["type_before"].to_pylist() == old.type.tolist()
    assert columns["classification_before"].to_pylist() == [CLASSES.names[kind] for kind in old.type]
    assert np.allclose(np.array(columns["type_probabilities"].to_pylist()).max(axis=1), nuclei.type_prob)
    expected = nearest_of_types(nuclei.centroid, nuclei.type, classes=nuclei.classes, mpp=(0.25, 0.25))
    assert np.allclose(nuclei.measurements["nearest_cold_um"], expected["nearest_cold_um"], equal_nan=True)
    assert "nearest_red_um" not in nuclei.measurements
    assert "nearest_unsure_um" not in nuclei.measurements
    assert io.read_geojson(results / "nuclei.geojson.gz").counts() == nuclei.counts()
    assert read_anndata(results / "nuclei.h5ad").counts() == nuclei.counts()
    assert not same(results, first)
    summary = json.loads((results / "summary.json").read_text())
    assert summary["nuclei"]["by_type"]["Warm"] == (names == "Warm").sum()
    assert summary["classification"]["classifier"]["name"] == "my-types"
    assert verify_results(results).status == "ok"
    assert "nuclei_Warm" in (results.parent / "summary.csv").read_text()
    assert "Warm" in (results.parent / "report.html").read_text()
    assert (results / "labels.parquet").read_bytes() == label_before

    # segmenting again finds nothing to do, and keeps the types; so does the same classifier
    again = segment_slide(first.parent / "drawn.tif", results, model=DrawnModel(), **{**SETTINGS, "formats": ("csv",)})
    assert again.nuclei().counts() == nuclei.counts()
    assert io.read_nuclei(results / "nuclei.csv").counts() == nuclei.counts()
    assert not apply_types(types, results).changed

    assert main(["classify", "apply", "--undo", str(results)]) == 0
    was, now = pq.read_table(first / TABLE), pq.read_table(results / TABLE)
    assert now.schema.equals(was.schema, check_metadata=True)
    for name in ("type", "type_prob", "embedding", "geometry", "nearest_red_um"):
        assert now[name].combine_chunks().equals(was[name].combine_chunks()), name
    assert now["classification"].to_pylist() == was["classification"].to_pylist()
    assert same(results, first)
    assert "classification" not in json.loads((results / "summary.json").read_text())
    assert verify_results(results).status == "ok"
    assert not undo_types(results).changed


def test_a_call_that_was_stopped_is_finished_by_the_next(first, types, results, monkeypatch):
    def stop(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(apply_module, "write_formats", stop)
        with pytest.raises(KeyboardInterrupt):
            apply_types(types, results)
    assert verify_results(results).status == "damaged"
    with pytest.raises(OutputError, match=r"types in .* are being changed.*classify apply"):
        segment_slide(first.parent / "drawn.tif", results, model=DrawnModel(), **SETTINGS)
    assert apply_types(types, results).changed
    assert verify_results(results).status == "ok"
    other = TypeClassifier().fit(io.read_parquet(first / TABLE), TRUE[io.read_parquet(first / TABLE).type])
    assert apply_types(other, results).counts.keys() == {"Cold", "Gold", "Warm"}
    undo_types(results)  # to the types of the model, whatever lay between
    assert same(results, first)


def test_without_the_slide_pictures_are_refused_or_removed(types, results):
    summary = json.loads((results / "summary.json").read_text())
    summary["slide"]["path"] = "/nowhere/drawn.tif"
    (results / "summary.json").write_text(json.dumps(summary))
    table = (results / TABLE).read_bytes()
    with pytest.raises(ImageError, match=r"'/nowhere/drawn.tif' is not there, and overlay"):
        apply_types(types, results)
    assert (results / TABLE).read_bytes() == table
    notes = apply_types(types, results, pictures=False).notes
    assert "overlay showed other types" in notes[-1]
    assert not (results / "overlay.png").exists()
    assert verify_results(results).status == "ok"
    found = suggest_nuclei(results, count=3, out=results / "next")
    assert [path.name for path in found.files] == ["suggestions.geojson"]


def test_embeddings_of_another_model_and_none_are_refused(types, results, tmp_path, capsys):
    nuclei, facts = io.read_parquet(results / TABLE), io.ParquetStream(results / TABLE).metadata
    for name, changes, found, message in (
        ("model", {"model": "other", "weights_hash": "0" * 64}, nuclei, r"model 'other' \(weights 0{12}.*'DrawnModel'"),
        ("width", {}, replace(nuclei, embedding=nuclei.embedding[:, :4]), "4 numbers.*8 numbers"),
        ("none", {}, replace(nuclei, embedding=None), "holds no embeddings"),
    ):
        path = tmp_path / f"{name}.parquet"
        io.write_parquet(found, path, metadata={**facts, **changes})
        before = path.read_bytes()
        with pytest.raises(DataError, match=message):
            apply_types(types, path)
        assert path.read_bytes() == before
    path = tmp_path / "damaged.parquet"
    whole = bytearray((results / TABLE).read_bytes())
    whole[1000 : len(whole) // 2] = bytes(len(whole) // 2 - 1000)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"'.*damaged.parquet' is damaged"):
        apply_types(types, path)
    assert path.read_bytes() == whole
    capsys.readouterr()
    path = tmp_path / "nan.parquet"
    broken = nuclei.embedding.copy()
    broken[7] = np.nan
    io.write_parquet(replace(nuclei, embedding=broken), path, metadata=facts)
    assert main(["classify", "apply", str(types), str(tmp_path / "none.parquet"), str(path)]) == 1
    printed = capsys.readouterr()
    assert "holds no embeddings" in printed.err
    assert "1 nuclei have no type" in printed.err
    assert "nan.parquet: 1 No type" in printed.out
    (tmp_path / "nan.geojson").touch()
    assert "'nan.geojson' keeps other types" in undo_types(path).notes[0]
    assert io.read_parquet(path).type.tolist() == nuclei.type.tolist()
    assert TypedTable(path).classifier is None


def test_labels_that_teach_nothing_are_refused(first, results, tmp_path, capsys):
    for names, message in (
        (["Warm"] * 4, "all 4 labels are of one class, 'Warm'"),
        (["Warm", "Warm", "Cold", "Gold"], "single label: 'Cold', 'Gold'.*--without Cold Gold"),
    ):
        nuclei = io.read_parquet(results / TABLE)[:4]
        given = Labels.of(
            nucleus=range(4),
            x=nuclei.centroid[:, 0],
            y=nuclei.centroid[:, 1],
            class_name=names,
            matched_to=nuclei_digest(io.read_parquet(results / TABLE).centroid),
        )
        write_labels(results / "labels.parquet", given)
        assert main(["classify", "train", "--labels", str(results), "--out", str(tmp_path / "out")]) == 1
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "out").exists()
    write_labels(results / "labels.parquet", Labels.empty())
    with pytest.raises(DataError, match=r"no labelled nucleus.*label import"):
        train_classifier([results], tmp_path / "out")
    with pytest.raises(DataError, match=r"no table of nuclei"):
        train_classifier([tmp_path], tmp_path / "out")
    assert main(["classify", "apply", str(results)]) == 2
    assert "name the classifier and results" in capsys.readouterr().err


def test_one_slide_is_held_out_in_parts_and_neighbourhoods_are_read_from_the_table(first, results, tmp_path):
    features = ["embedding", "neighborhood", "area_um2"]
    found = train_classifier([results / "labels.parquet"], tmp_path / "types", features=features, estimator="knn")
    assert found.validation.macro_f1 > 0.4  # neighbours of drawn nuclei tell nothing
    assert "parts of the one slide" in json.loads((tmp_path / "types" / "report.json").read_text())["held_out"]
    assert any("takes no class weights" in note for note in found.notes)
    nuclei = io.read_parquet(first / TABLE)
    expected = found.classifier.assign(nuclei)
    apply_types(tmp_path / "types", results, pictures=False)
    assert io.read_parquet(results / TABLE).type.tolist() == expected.type.tolist()


def test_the_python_of_the_page_runs(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results.rename(results.with_name("slide1"))
    page = Path(__file__).parents[2] / "docs/pages/how-to/your-own-types.md"
    (piece,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(piece, str(page), "exec"), {})
    assert "Warm" in capsys.readouterr().out
    assert TypeClassifier.load("my-types").unsure_below == 0.5


def test_suggestions_are_points_without_a_class_and_crops(first, types, results, capsys):
    assert main(["classify", "suggest", str(results), "-n", "12", "--classifier", str(types), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    labelled = np.arange(0, 400, 2)
    assert len(set(found["nuclei"])) == 12
    assert not set(found["nuclei"]) & set(labelled.tolist())
    points = json.loads((results / "suggestions.geojson").read_text())["features"]
    assert {point["geometry"]["type"] for point in points} == {"Point"}
    assert not any("classification" in point["properties"] for point in points)
    assert (results / "suggestions.html").read_text().count("data:image/jpeg") == 12
    assert Path(results, "suggestions.png").stat().st_size > 1000
    assert verify_results(results).status == "ok"
    one, other = (suggest_nuclei(results, count=5, seed=3).nucleus.tolist() for _ in range(2))
    assert one == other
