"""Labels: the table, which nucleus each means, and what is said of those that mean none."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from label_samples import CENTRES, SIZE, box, feature, point, squares, write_geojson, write_result

from cellvit.cli import main
from cellvit.errors import ConfigError, DataError
from cellvit.inference.run import make_room, remove_results
from cellvit.io.annotations.base import read_annotations
from cellvit.io.stream import TableStream
from cellvit.labels import (
    LABELS_FILE,
    Labels,
    import_labels,
    labels_of,
    nuclei_digest,
    read_labels,
    rematch,
    write_labels,
)
from cellvit.labels import table as labels_table
from cellvit.labels.match import match
from cellvit.types import NucleiClasses


def by_nucleus(labels):
    current = labels.current()
    return dict(zip(current.nucleus.tolist(), current.class_name.tolist(), strict=True))


def table(path, *rows, heading="x,y,class"):
    path.write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
    return path


class TestTable:
    def labels(self):
        stamps = np.array(["2026-01-02", "2026-01-01", "2026-01-03", "2026-01-03", "2026-01-04"], "datetime64[s]")
        labels = Labels.of(
            nucleus=[3, 3, 5, -1, 5], x=[1, 1.5, 2, 3, 2], y=[0, 0, 0, 0, 0], class_name=["A", "B", "A", "A", ""],
            who="Ö", source="a.csv", matched_to="0f",
        )  # fmt: skip
        return replace(labels, when=stamps)

    def test_the_last_label_counts_and_an_empty_one_withdraws(self):
        labels = self.labels()
        assert by_nucleus(labels) == {3: "A"}  # the B was earlier; 5 was withdrawn; -1 is no nucleus
        assert by_nucleus(labels[:3]) == {3: "A", 5: "A"}
        assert len(Labels.empty().current()) == 0

    def test_what_is_written_is_read(self, tmp_path):
        labels = self.labels()
        write_labels(tmp_path / LABELS_FILE, labels)
        for found in (read_labels(tmp_path), read_labels(tmp_path / LABELS_FILE)):
            for name in ("nucleus", "x", "y", "class_name", "who", "when", "source"):
                assert (getattr(found, name) == getattr(labels, name)).all()
            assert found.matched_to == "0f"
        assert pq.read_schema(tmp_path / LABELS_FILE).names == ["nucleus", "x", "y", "class", "who", "when", "source"]
        write_labels(tmp_path / LABELS_FILE, Labels.empty())
        assert len(read_labels(tmp_path)) == 0

    def test_parts_are_joined(self):
        labels = self.labels()
        both = Labels.concatenate([labels, labels[:1]])
        assert (len(both), both.matched_to) == (6, "0f")
        assert Labels.concatenate([labels, replace(labels, matched_to="1e")]).matched_to == ""
        with pytest.raises(DataError, match="different lengths"):
            replace(labels, x=np.zeros(2))

    def test_a_writer_that_dies_leaves_the_table_as_it_was(self, tmp_path, monkeypatch):
        write_labels(tmp_path / LABELS_FILE, self.labels())

        def die(*args, **settings):
            raise KeyboardInterrupt

        monkeypatch.setattr(labels_table.pq, "write_table", die)
        with pytest.raises(KeyboardInterrupt):
            write_labels(tmp_path / LABELS_FILE, Labels.empty())
        assert len(read_labels(tmp_path)) == 5
        assert [path.name for path in tmp_path.iterdir()] == [LABELS_FILE]

    def test_what_is_no_table_of_labels_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            read_labels(tmp_path)
        write_result(tmp_path)
        with pytest.raises(DataError, match="no table of labels"):
            read_labels(tmp_path / "nuclei.parquet")
        (tmp_path / LABELS_FILE).write_bytes(b"PAR1")
        with pytest.raises(DataError, match="no readable table of labels"):
            read_labels(tmp_path)
        with pytest.raises(DataError, match="no numbers"):
            write_labels(tmp_path / LABELS_FILE, replace(self.labels(), x=np.full(5, np.nan)))


class TestMatch:
    def test_points_mean_the_nucleus_around_them_or_the_nearest(self):
        geometry = shapely.points([(20, 20), (24.9, 15.1), (27, 20), (30, 20), (36, 20), (140, 140)])
        found = match(geometry, squares(), radius=4)
        assert found.geometry.tolist() == [0, 1, 2, 5]
        assert found.nucleus.tolist() == [0, 0, 0, 24]
        assert not found.around.any()

    def test_one_by_one_the_same(self):
        rng = np.random.default_rng(0)
        nuclei = squares(rng.uniform(0, 100, (60, 2)), side=6)
        places = rng.uniform(0, 100, (200, 2))
        matches = match(shapely.points(places), nuclei, radius=3)
        found = dict(zip(matches.geometry.tolist(), matches.nucleus.tolist(), strict=True))
        outlines = [shapely.box(*one) for one in nuclei.bbox]
        for i, (x, y) in enumerate(places):
            distance = [outline.distance(shapely.Point(x, y)) for outline in outlines]
            ranked = sorted(
                (d, np.hypot(*(c - (x, y))), row)
                for row, (d, c) in enumerate(zip(distance, nuclei.centroid, strict=True))
            )
            assert found.get(i) == (ranked[0][2] if ranked[0][0] <= 3 else None)

    def test_areas_mean_all_centroids_inside_and_small_ones_the_nucleus_they_lie_in(self):
        areas = [shapely.box(0, 0, 60, 60), shapely.box(22, 22, 24, 24), shapely.box(30, 30, 40, 40)]
        found = match(np.array(areas, object), squares(), radius=2)
        assert found.geometry.tolist() == [0, 0, 0, 0, 1]
        assert sorted(found.nucleus[:4].tolist()) == [0, 1, 5, 6]
        assert found.nucleus[4] == 0
        assert found.around.tolist() == [True] * 4 + [False]
        assert found.place[found.nucleus == 6].tolist() == [[50, 50]]

    def test_chunks_do_not_matter_nor_do_nuclei_without_outline_or_place(self):
        class Chunks(TableStream):
            def __iter__(self):
                yield from (self.nuclei[start : start + 7] for start in range(0, len(self.nuclei), 7))

        nuclei = squares()
        bare = replace(nuclei, contour_offsets=np.zeros(26, np.int64), contour_points=np.zeros((0, 2)))
        nowhere = replace(nuclei, centroid=np.where(np.arange(25)[:, None] == 3, np.nan, nuclei.centroid))
        geometry = np.array([*shapely.points(CENTRES + 1), shapely.box(0, 0, 60, 60)], object)
        whole = match(geometry, nuclei, radius=4)
        parts = match(geometry, Chunks(nuclei), radius=4)
        assert (whole.nucleus == parts.nucleus).all()
        assert (match(shapely.points(CENTRES + 1), bare, radius=4).nucleus == np.arange(25)).all()
        assert 3 not in match(shapely.points(CENTRES), nowhere, radius=4).nucleus
        assert len(match(geometry, squares([]), radius=4).nucleus) == 0


class TestImport:
    def test_points_areas_and_detections_of_qupath(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        file = write_geojson(
            tmp_path / "a.geojson",
            feature(point(20, 20), "Tumor: Positive"),
            feature({"type": "MultiPoint", "coordinates": [[50, 20], [80, 20]]}, "Stroma"),
            feature(box(0, 100, 160, 160), "Immune"),
            feature(point(20, 140), "Tumor: Positive"),  # in the area: it names one nucleus, the area many
            feature(point(1, 1), "Tumor: Positive"),
            feature(box(0, 0, 160, 160), "Region*"),
            feature(box(75, 45, 85, 55), "Noise", kind="detection"),
            feature(point(110, 20), None),
        )
        done = import_labels([file], folder, who="Ann")
        assert by_nucleus(done.labels) == {
            **{0: "Tumor: Positive", 1: "Stroma", 2: "Stroma", 20: "Tumor: Positive"},
            **dict.fromkeys([15, 16, 17, 18, 19, 21, 22, 23, 24], "Immune"),
        }
        assert (done.added, done.outranked, done.reasons()) == (13, 1, {"no nucleus there": 1})
        assert "1 detections with a class were left out" in " ".join(done.notes)
        assert "no class" in " ".join(done.notes)
        assert "ends in '*'" in " ".join(done.notes)
        assert set(done.labels.who) == {"Ann"}
        assert set(done.labels.source) == {"a.geojson"}
        assert "no nucleus there" in (folder / "labels-left-out.csv").read_text()
        only = import_labels([file], folder, objects="found")
        assert by_nucleus(only.labels)[7] == "Noise"

    def test_the_same_file_twice_adds_nothing_and_another_class_is_history(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        first = import_labels([table(tmp_path / "a.csv", "20,20,A", "50,20,A")], folder, who="Ann")
        again = import_labels([tmp_path / "a.csv"], folder, who="Ann")
        assert (first.added, again.added, again.known) == (2, 0, 2)
        other = import_labels([table(tmp_path / "b.csv", "20,20,B", "50,20,A")], folder, who="Bob")
        assert (other.added, other.changed, len(other.labels)) == (2, 1, 4)
        assert by_nucleus(other.labels) == {0: "B", 1: "A"}
        gone = import_labels([table(tmp_path / "c.csv", "20,20,none", "80,20,none")], folder, class_map={"none": ""})
        assert by_nucleus(gone.labels) == {1: "A"}
        assert gone.added == 1  # nothing was said of the third nucleus, so nothing is withdrawn

    def test_contradictions_misses_and_places_off_the_slide_are_listed(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        rows = ["20,20,A", "21,21,B", "50,20,A", "51,20,A", "35,35,A", "500,20,A", "nan,3,A", ",,A", "80,20,A"]
        done = import_labels([table(tmp_path / "a.csv", *rows)], folder)
        assert by_nucleus(done.labels) == {1: "A", 2: "A"}
        assert done.reasons() == {"the nucleus is called two things": 2, "no nucleus there": 1, "off the slide": 1}
        assert "2 places that are no numbers" in " ".join(done.notes)
        lines = (folder / "labels-left-out.csv").read_text().splitlines()
        assert lines[0] == "source,x,y,class_name,reason,nucleus"
        assert "a.csv,500.0,20.0,A,off the slide,-1" in lines
        import_labels([table(tmp_path / "b.csv", "110,20,A")], folder)
        assert not (folder / "labels-left-out.csv").exists()

    def test_spellings_are_told_with_the_way_out(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        file = table(tmp_path / "a.csv", "20,20,Tumor", "50,20, tumor ", "80,20,Other")
        done = import_labels([file], folder)
        assert any("differ in case or blanks only" in note and "class_map=" in note for note in done.notes)
        done = import_labels([file], folder, class_map={" tumor ": "Tumor"})
        assert by_nucleus(done.labels) == {0: "Tumor", 1: "Tumor", 2: "Other"}
        assert not [note for note in done.notes if "differ in case" in note]

    def test_the_model_s_own_types_are_no_labels_of_people(self, tmp_path):
        named = replace(squares(), classes=NucleiClasses(("Background", "A"), ((0, 0, 0), (1, 1, 1))))
        folder = write_result(tmp_path / "slide", named)
        done = import_labels([folder / "nuclei.parquet"], folder)
        assert (done.added, len(done.notes)) == (25, 1)
        assert "25 of 25 detections have the type that the nuclei have already" in done.notes[0]
        other = import_labels([folder / "nuclei.parquet"], folder, class_map={"A": "B"})
        assert other.notes == ()

    def test_labels_lie_beside_any_file_of_nuclei(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        (folder / "nuclei.parquet").rename(folder / "roi.7.parquet")
        done = import_labels([table(tmp_path / "a.csv", "20,20,A")], folder / "roi.7.parquet")
        assert done.path == folder / "roi.7.labels.parquet"
        assert by_nucleus(labels_of(folder / "roi.7.parquet")) == {0: "A"}

    def test_micrometres_by_name_of_the_column_or_by_option(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        file = table(
            tmp_path / "a.tsv", "10\t10\tA", "25,0\t10\tB", heading="Centroid X \u00b5m\tCentroid Y \u00b5m\tClass"
        )
        assert by_nucleus(import_labels([file], folder).labels) == {0: "A", 1: "B"}
        plain = table(tmp_path / "b.csv", "40;10;C", "55;10;C", heading="x;y;type")
        assert by_nucleus(import_labels([plain], folder, unit="um").labels)[2] == "C"
        unknown = write_result(tmp_path / "other", squares(mpp=None))
        with pytest.raises(DataError, match="state no resolution; pass mpp"):
            import_labels([file], unknown)
        assert len(import_labels([file], unknown, mpp=0.5).labels) == 2
        with pytest.raises(ConfigError, match="radius_px"):
            import_labels([plain], unknown, radius=2)
        with pytest.raises(ConfigError, match="no distance"):
            import_labels([plain], folder, radius=-1)

    @pytest.mark.parametrize(
        ("change", "advice"),
        [
            (lambda places: places * 0.5, "unit='um'"),
            (lambda places: places / 8, "scale=8"),
            (lambda places: places + np.array([4000, 300]), "shift=(-4000,-300)"),
            (lambda places: places + 100_000, "the same slide"),
        ],
    )
    def test_labels_of_another_frame_are_refused_with_the_likely_reason(self, tmp_path, change, advice):
        # far from the corner, where no frame looks like another
        nuclei = squares(CENTRES * (1, 2) + (700, 1300))
        folder = write_result(tmp_path / "slide", nuclei, width=9000, height=9000, bounds=[4000, 300, 900, 900])
        rows = [f"{x},{y},A" for x, y in change(nuclei.centroid[::3])]
        with pytest.raises(DataError, match="none of 9 labels meets a nucleus: labels span x") as caught:
            import_labels([table(tmp_path / "a.csv", *rows)], folder)
        assert advice in str(caught.value)
        assert not (folder / LABELS_FILE).exists()

    def test_in_dense_tissue_chance_is_not_taken_for_a_match(self, tmp_path):
        centres = np.random.default_rng(0).uniform(5, 295, (600, 2))
        folder = write_result(tmp_path / "slide", squares(centres, side=8), width=300, height=300)
        half = table(tmp_path / "a.csv", *(f"{x},{y},A" for x, y in centres[::12] * 0.5))
        with pytest.raises(DataError, match=r"only \d+% of the labels lie on nuclei: .*pass unit='um'.*pass unit='px'"):
            import_labels([half], folder)
        assert not (folder / LABELS_FILE).exists()
        assert any("only" in note for note in import_labels([half], folder, unit="px").notes)
        right = table(tmp_path / "b.csv", *(f"{x},{y},A" for x, y in centres[::12]))
        assert import_labels([right], folder).notes == ()
        with pytest.raises(DataError, match="there are no nuclei"):
            import_labels([right], write_result(tmp_path / "empty", squares([])))

    def test_one_bad_file_does_not_cost_the_others(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        (tmp_path / "bad.geojson").write_text("{")
        good = table(tmp_path / "a.csv", "20,20,A")
        done = import_labels([tmp_path / "bad.geojson", good, tmp_path / "gone.csv"], folder)
        assert by_nucleus(done.labels) == {0: "A"}
        assert sorted(done.failed) == ["bad.geojson", "gone.csv"]
        with pytest.raises(DataError, match=r"no labels: .*is not JSON"):
            import_labels([tmp_path / "bad.geojson"], folder)
        with pytest.raises(DataError, match="none of which is a class"):
            import_labels([table(tmp_path / "b.csv", "20,20", heading="x,y")], folder)
        assert by_nucleus(import_labels([tmp_path / "b.csv"], folder, class_name="B").labels) == {0: "B"}


class TestSegmentedAgain:
    def test_labels_are_matched_again_and_the_lost_are_told(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        import_labels([table(tmp_path / "a.csv", "20,20,A", "50,20,B", "80,20,A")], folder)
        assert labels_of(folder).matched_to == nuclei_digest(CENTRES)
        # another order, the second nucleus is gone, the third has moved a little
        moved = squares([(110, 20), (82, 21), (20, 20)])
        write_result(folder, moved)
        with pytest.warns(UserWarning, match="2 of 3 labels were matched again, 1 have no nucleus any more"):
            found = labels_of(folder)
        assert by_nucleus(found) == {2: "A", 1: "A"}
        assert len(found) == 3  # none is forgotten
        assert (rematch(found, squares()).nucleus == [0, 1, 2]).all()
        done = import_labels([table(tmp_path / "b.csv", "110,20,B")], folder)
        assert by_nucleus(done.labels) == {0: "B", 1: "A", 2: "A"}
        assert any("matched again" in note for note in done.notes)
        assert by_nucleus(labels_of(folder)) == by_nucleus(done.labels)  # and nothing is warned of

    def test_types_that_are_written_anew_change_nothing(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        done = import_labels([table(tmp_path / "a.csv", "20,20,A")], folder)
        write_result(folder, replace(squares(), type=np.full(25, 3, np.int32)))
        assert labels_of(folder / "nuclei.parquet").matched_to == done.labels.matched_to

    def test_nuclei_that_became_one_are_told(self, tmp_path):
        folder = write_result(tmp_path / "slide")
        import_labels([table(tmp_path / "a.csv", "20,20,A", "50,20,B")], folder)
        write_result(folder, squares([(35, 20)], side=60))
        with pytest.warns(UserWarning, match="1 contradict another one"):
            assert by_nucleus(labels_of(folder)) == {0: "B"}

    def test_a_run_that_overwrites_keeps_the_labels(self, tmp_path):
        class Resume:
            begun = False

            def discard(self):
                pass

        folder = write_result(tmp_path / "slide")
        import_labels([table(tmp_path / "a.csv", "20,20,A")], folder)
        before = (folder / LABELS_FILE).read_bytes()
        summary = {"files": {"parquet": "nuclei.parquet"}, "fingerprints": {}}
        (folder / "summary.json").write_text(json.dumps(summary))
        remove_results(folder, Resume())
        make_room(folder)
        assert not (folder / "nuclei.parquet").exists()
        assert (folder / LABELS_FILE).read_bytes() == before


class TestVerb:
    def test_import_list_export_and_back(self, tmp_path, capsys):
        folder = write_result(tmp_path / "slide")
        file = table(tmp_path / "a.csv", "20,20,A", "50,20,A", "80,20, a", "35,35,A")
        assert main(["label", "import", str(file), "--nuclei", str(folder), "--who", "Ann"]) == 0
        out, err = capsys.readouterr()
        assert "3 labels added" in out
        assert "1 left out: no nucleus there" in out
        assert "one label is too few" in out
        assert "pass --class-map ' a=A'" in " ".join(err.split())
        assert main(["label", "list", "--nuclei", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == {"A": 2, " a": 1}
        write_result(folder, squares(CENTRES[1:]))
        assert main(["label", "list", "--nuclei", str(folder)]) == 0
        out, err = capsys.readouterr()
        assert "2 nuclei have a label; 3 labels in all, 1 without a nucleus" in out
        assert "2 of 3 labels were matched again" in " ".join(err.split())
        write_result(folder)
        target = tmp_path / "points.geojson"
        assert main(["label", "export", "--nuclei", str(folder), "--out", str(target)]) == 0
        back = read_annotations(target)
        assert back.class_name.tolist() == ["A", "A", " a"]
        assert shapely.get_coordinates(back.geometry).tolist() == [[20, 20], [50, 20], [80, 20]]
        assert import_labels([target], folder, who="Ann").added == 0

    def test_what_fails_is_told(self, tmp_path, capsys):
        folder = write_result(tmp_path / "slide")
        (tmp_path / "bad.geojson").write_text("{")
        good = table(tmp_path / "a.csv", "20,20,A")
        arguments = ["--nuclei", str(folder)]
        assert main(["label", "import", str(tmp_path / "bad.geojson"), str(good), *arguments]) == 1
        assert "'bad.geojson' was not used" in capsys.readouterr().err
        assert main(["label", "import", str(good), "--class", "A", *arguments]) == 2
        assert main(["label", "list", "--nuclei", str(tmp_path)]) == 1
        assert "does not exist" in capsys.readouterr().err


def test_the_grid_is_what_the_tests_think():
    assert len(CENTRES) == 25
    assert (CENTRES < SIZE).all()
