import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pannuke_samples import draw_arrays, tree_bytes, write_fold, write_folds

from cellvit.data.pannuke import convert as pannuke_convert
from cellvit.data.pannuke import convert as pannuke_patches
from cellvit.data.pannuke.prepare import prepare_pannuke
from cellvit.data.pannuke.storage import (
    PatchDataset,
    earlier_fold,
    find_prepared,
    finish_fold,
    finished_fold,
    finished_numbers,
    fold_stream,
    npy_stream,
    read_dataset,
    read_fold,
    write_dataset,
)
from cellvit.errors import DataError, OutputError

DATASET = PatchDataset("few", 0.5, ("None", "A", "B"), ("Skin", "Lung"), (2,), 6, {"licence": "CC0"})


class StoppedError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def do_not_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr("cellvit.io.atomic._sync", lambda path: None)


@pytest.fixture
def small_blocks(monkeypatch):
    """Two patches per block."""
    monkeypatch.setattr(pannuke_patches, "_BLOCK_BYTES", 2 * 8 * 16 * 16 * 9)


def stop_at(monkeypatch, patch):
    """Raise when a patch of all that are converted is reached."""
    seen = []
    real = pannuke_convert.merge_channels

    def merge(ids):
        seen.append(1)
        if len(seen) > patch:
            raise StoppedError
        return real(ids)

    monkeypatch.setattr(pannuke_convert, "merge_channels", merge)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "<U5"])
def test_a_stream_writes_what_numpy_reads(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 99, (7, 3, 2)).astype(dtype)
    with npy_stream(tmp_path / "a.npy", array.shape, dtype) as append:
        for rows in (slice(0, 3), slice(3, 3), slice(3, 7)):
            append(array[rows].swapaxes(1, 2).copy().swapaxes(1, 2))  # not contiguous
        assert not (tmp_path / "a.npy").exists()
    read = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    np.save(tmp_path / "b.npy", array)
    assert len((tmp_path / "a.npy").read_bytes()) == len((tmp_path / "b.npy").read_bytes())


def write_patches(out, *, rng, number=2):
    images = rng.integers(0, 255, (3, 6, 6, 3)).astype(np.uint8)
    maps = rng.integers(0, 300, (3, 6, 6))
    kinds = rng.integers(0, 3, (3, 6, 6))
    rows = [
        {"name": f"fold2/{i}", "source": 'slide, "7"', "tissue": ("Skin", "Lung")[i % 2], "A": i, "B": 3 * i}
        for i in range(3)
    ]
    with fold_stream(out, number, shape=(3, 6), class_names=DATASET.class_names) as append:
        append(images[:1], maps[:1], kinds[:1], rows[:1])
        append(images[1:], maps[1:], kinds[1:], rows[1:])
    return images, maps, kinds


def test_patches_are_read_as_they_were_written(tmp_path):
    images, maps, kinds = write_patches(tmp_path, rng=np.random.default_rng(3))
    write_dataset(tmp_path, DATASET)
    dataset = read_dataset(tmp_path)
    assert dataset == DATASET
    fold = read_fold(tmp_path, 2, dataset=dataset)
    np.testing.assert_array_equal(fold.images, images)
    np.testing.assert_array_equal(fold.instance_maps, maps)
    np.testing.assert_array_equal(fold.type_maps, kinds)
    assert fold.tissue.tolist() == [0, 1, 0]
    assert fold.counts.tolist() == [[0, 0], [1, 3], [2, 6]]
    assert fold.names == ("fold2/0", "fold2/1", "fold2/2")
    assert set(fold.sources) == {'slide, "7"'}


def test_a_fold_is_finished_only_when_it_says_so(tmp_path):
    made_with = {"mpp": 0.5, "images": {"bytes": 3}}
    write_patches(tmp_path, rng=np.random.default_rng(3))
    assert finished_fold(tmp_path, 2, made_with=made_with, dataset=DATASET) is None
    finish_fold(tmp_path, 2, {"made_with": made_with, "summary": {"number": 2}})
    assert finished_fold(tmp_path, 2, made_with=made_with, dataset=DATASET)["summary"] == {"number": 2}
    with pytest.raises(OutputError, match=r"mpp was 0\.5, is 0\.25"):
        finished_fold(tmp_path, 2, made_with={**made_with, "mpp": 0.25}, dataset=DATASET)
    with pytest.raises(OutputError, match=r"images was .*, is None"):
        finished_fold(tmp_path, 2, made_with={"mpp": 0.5}, dataset=DATASET)
    write_patches(tmp_path, rng=np.random.default_rng(4))  # writing again takes the mark away first
    assert finished_fold(tmp_path, 2, made_with=made_with, dataset=DATASET) is None
    (tmp_path / "fold2" / "source.json").write_text("{")
    with pytest.raises(OutputError, match="remove the folder"):
        finished_fold(tmp_path, 2, made_with=made_with, dataset=DATASET)


@pytest.mark.parametrize("damage", ["images.npy", "type_maps.npy", "patches.csv"])
def test_a_damaged_fold_is_not_finished(tmp_path, damage):
    write_patches(tmp_path, rng=np.random.default_rng(3))
    finish_fold(tmp_path, 2, {"made_with": {}})
    path = tmp_path / "fold2" / damage
    path.write_bytes(path.read_bytes()[:-20])
    assert finished_fold(tmp_path, 2, made_with={}, dataset=DATASET) is None


def test_finished_folds_are_listed_by_number(tmp_path):
    assert finished_numbers(tmp_path / "absent") == []
    for name in ("fold10", "fold2", "fold03", "folds", "fold1x", "fold0", "fold7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("source.json" if name != "fold7" else "images.npy")).write_text("{}")
    assert finished_numbers(tmp_path) == [2, 10]


def test_an_earlier_fold_is_held_against_the_settings_only(tmp_path):
    made_with = {"mpp": 0.5, "class_names": ["None", "A", "B"]}
    write_patches(tmp_path, rng=np.random.default_rng(3))
    with pytest.raises(OutputError, match=r"source\.json' is gone"):
        earlier_fold(tmp_path, 2, made_with=made_with, dataset=DATASET)
    finish_fold(tmp_path, 2, {"made_with": {**made_with, "images": {"bytes": 3}}, "digests": ["a"]})
    assert earlier_fold(tmp_path, 2, made_with=made_with, dataset=DATASET)["digests"] == ["a"]
    with pytest.raises(OutputError, match=r"mpp was 0\.5, is 0\.25"):
        earlier_fold(tmp_path, 2, made_with={**made_with, "mpp": 0.25}, dataset=DATASET)
    (tmp_path / "fold2" / "type_maps.npy").unlink()
    with pytest.raises(OutputError, match=r"fold2' was finished before but .*type_maps\.npy.*Put the source back"):
        earlier_fold(tmp_path, 2, made_with=made_with, dataset=DATASET)


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_fold_that_is_half_rewritten_cannot_be_opened(tmp_path, monkeypatch, renames):
    write_patches(tmp_path, rng=np.random.default_rng(3))
    finish_fold(tmp_path, 2, {"made_with": {}})
    write_dataset(tmp_path, DATASET)
    before = tree_bytes(tmp_path / "fold2")
    done = []
    real = pathlib.Path.replace

    def replace(path, target):
        if len(done) == renames:
            raise StoppedError
        done.append(target)
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "replace", replace)
        with pytest.raises(StoppedError):
            write_patches(tmp_path, rng=np.random.default_rng(4))
    after = tree_bytes(tmp_path / "fold2")
    arrays = [name for name in after if name.endswith(".npy")]
    assert sum(before[name] != after[name] for name in arrays) == max(0, renames - 1)  # the table is renamed first
    with pytest.raises(DataError, match=r"dataset\.json' cannot be read"):
        read_dataset(tmp_path)
    assert finished_numbers(tmp_path) == []


def test_a_fold_that_is_added_leaves_the_others_readable(tmp_path):
    write_patches(tmp_path, rng=np.random.default_rng(3))
    write_dataset(tmp_path, DATASET)
    write_patches(tmp_path, rng=np.random.default_rng(4), number=3)
    assert read_dataset(tmp_path) == DATASET
    (tmp_path / "dataset.json").write_text("[")  # nobody knows what it names
    write_patches(tmp_path, rng=np.random.default_rng(4), number=3)
    assert not (tmp_path / "dataset.json").exists()


def test_an_error_leaves_no_files(tmp_path):
    with (
        pytest.raises(StoppedError),
        fold_stream(tmp_path, 1, shape=(2, 4), class_names=DATASET.class_names),
    ):
        raise StoppedError
    assert list((tmp_path / "fold1").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another out="):
        write_patches(tmp_path / "file", rng=np.random.default_rng(0))


@pytest.mark.parametrize("patch", [0, 1, 3, 5, 9, 13])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path, monkeypatch, small_blocks, patch):
    """StoppedError within the first block, after a block, after a fold, within the last fold."""
    write_folds(tmp_path, count=5)
    prepare_pannuke(tmp_path, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, patch)
        with pytest.raises(StoppedError):
            prepare_pannuke(tmp_path, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "dataset.json").exists()
    finished = patch // 5
    written = {k: (tmp_path / "stopped" / f"fold{k + 1}" / "images.npy").stat().st_mtime_ns for k in range(finished)}
    result = prepare_pannuke(tmp_path, tmp_path / "stopped")
    assert result.kept == tuple(range(1, finished + 1))
    for k, stamp in written.items():
        assert (tmp_path / "stopped" / f"fold{k + 1}" / "images.npy").stat().st_mtime_ns == stamp
    assert tree_bytes(tmp_path / "stopped") == tree_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_hinders_the_next(tmp_path):
    """The process is really killed, so that it cannot clean up; it has written a block when that happens."""
    write_folds(tmp_path, count=5)
    code = (
        "import sys, time; from pathlib import Path; from cellvit.data.pannuke import convert as p\n"
        "from cellvit.data.pannuke.prepare import prepare_pannuke\n"
        "p._BLOCK_BYTES = 1\n"
        "def report(what, done, total):\n"
        "    if done == 7: print('seven', flush=True); time.sleep(60)\n"
        "prepare_pannuke(Path(sys.argv[1]), Path(sys.argv[2]), report=report)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"seven\n"
        process.send_signal(signal.SIGKILL)
    assert list((tmp_path / "killed" / "fold2").glob(".cellvit-*"))
    assert prepare_pannuke(tmp_path, tmp_path / "killed").kept == (1,)
    prepare_pannuke(tmp_path, tmp_path / "whole")
    assert tree_bytes(tmp_path / "killed") == tree_bytes(tmp_path / "whole")


def test_files_of_others_in_the_folder_stay(tmp_path):
    write_folds(tmp_path, count=2)
    out = tmp_path / "out"
    (out / "fold2").mkdir(parents=True)
    mine = {"dataset.json": "dataset.json.1", "fold2/.cellvit-notes": "fold2/.cellvit-notes", "fold2/a": "fold2/a"}
    for name in mine:
        (out / name).write_text(f"mine: {name}")
    (out / "fold2" / ".cellvit-0123456789abcdef.npy").symlink_to(out / "fold2" / "a")
    prepare_pannuke(tmp_path, out)
    for name, kept in mine.items():
        assert (out / kept).read_text() == f"mine: {name}"
    assert (out / "fold2" / ".cellvit-0123456789abcdef.npy").is_symlink()


def test_blocks_do_not_change_the_result(tmp_path, monkeypatch):
    write_folds(tmp_path, count=5)
    for name, size in (("one", 1), ("two", 2 * 8 * 16 * 16 * 9), ("all", 2**30)):
        monkeypatch.setattr(pannuke_patches, "_BLOCK_BYTES", size)
        prepare_pannuke(tmp_path, tmp_path / name, mpp=0.5)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two") == tree_bytes(tmp_path / "all")


def test_a_second_run_keeps_everything(tmp_path):
    write_folds(tmp_path)
    first = prepare_pannuke(tmp_path)
    before = tree_bytes(first.out)
    seen = []
    second = prepare_pannuke(tmp_path, report=lambda what, done, total: seen.append((done, total)))
    assert (second.kept, second.folds, second.dataset) == ((1, 2, 3), first.folds, first.dataset)
    assert seen == [(4, 12), (8, 12), (12, 12)]
    assert tree_bytes(first.out) == before


def test_another_fold_is_added_to_those_that_are_finished(tmp_path):
    write_folds(tmp_path)
    prepare_pannuke(tmp_path, folds=[1, 3])
    result = prepare_pannuke(tmp_path)
    assert result.kept == (1, 3)
    assert read_dataset(result.out).folds == (1, 2, 3)
    prepare_pannuke(tmp_path, tmp_path / "whole")
    assert tree_bytes(result.out) == tree_bytes(tmp_path / "whole")


def forget_source(root, number):
    shutil.rmtree(root / f"Fold {number}")


@pytest.mark.parametrize("mpp", [0.25, 0.5])
@pytest.mark.parametrize("calls", [([1, 2], [3]), ([3], [2, 1]), ([2], [1], [3])])
@pytest.mark.parametrize("source_is_gone", [False, True])
def test_several_calls_give_the_bytes_of_one(tmp_path, mpp, calls, source_is_gone):
    write_folds(tmp_path)
    whole = prepare_pannuke(tmp_path, tmp_path / "whole", mpp=mpp)
    seen = []
    for folds in calls:
        done = []
        result = prepare_pannuke(
            tmp_path, tmp_path / "parts", mpp=mpp, folds=folds, report=lambda what, *n, done=done: done.append(n)
        )
        assert result.kept == tuple(sorted(seen))
        seen += folds
        assert result.dataset.folds == tuple(sorted(seen))
        assert done[-1] == (4 * len(seen), 4 * len(seen))
        if source_is_gone:
            for number in folds:
                forget_source(tmp_path, number)
    assert (result.dataset, result.folds) == (whole.dataset, whole.folds)
    assert tree_bytes(tmp_path / "parts") == tree_bytes(tmp_path / "whole")


@pytest.mark.parametrize("mpp", [0.25, 0.5])
@pytest.mark.parametrize("source_is_gone", [False, True])
def test_an_image_shared_with_a_fold_of_an_earlier_call_is_an_error(tmp_path, mpp, source_is_gone):
    folds = write_folds(tmp_path)
    folds[3]["images"][1] = folds[1]["images"][2]
    write_fold(tmp_path, 3, folds[3])
    out = prepare_pannuke(tmp_path, mpp=mpp, folds=[1, 2]).out
    if source_is_gone:
        forget_source(tmp_path, 1)
    with pytest.raises(DataError, match=r"Fold 3/images/fold3/images\.npy: patch 1 has the same image as fold1/0002"):
        prepare_pannuke(tmp_path, mpp=mpp, folds=[3])
    assert read_dataset(out).folds == (1, 2)
    assert finished_numbers(out) == [1, 2]
    result = prepare_pannuke(tmp_path, mpp=mpp, folds=[3], accept=["shared-images"])
    assert (result.dataset.folds, result.folds[2].accepted) == ((1, 2, 3), {"shared-images": 1})
    assert result.dataset.about["accepted"] == ["shared-images"]


def test_what_an_earlier_call_accepted_is_asked_for_again(tmp_path):
    folds = write_folds(tmp_path)
    folds[1]["masks"][2] = 0
    write_fold(tmp_path, 1, folds[1])
    prepare_pannuke(tmp_path, folds=[1], accept=["empty-masks"])
    forget_source(tmp_path, 1)
    with pytest.raises(
        DataError, match=r"Fold 1/masks/fold1/masks\.npy: accepted before, 1 patch.*accept=\['empty-masks'\]"
    ):
        prepare_pannuke(tmp_path, folds=[2])
    result = prepare_pannuke(tmp_path, folds=[2], accept=["empty-masks"])
    assert (result.dataset.folds, result.dataset.about["accepted"]) == ((1, 2), ["empty-masks"])


def test_folds_of_earlier_calls_that_do_not_fit_are_refused(tmp_path):
    write_folds(tmp_path)
    out = prepare_pannuke(tmp_path, folds=[1]).out
    before = tree_bytes(out)
    path = tmp_path / "Fold 1" / "images" / "fold1" / "images.npy"
    os.utime(path, ns=(path.stat().st_atime_ns, time.time_ns() + 10**9))
    with pytest.raises(OutputError, match=r"fold1' was made .*images modified_ns was .*Remove the folder"):
        prepare_pannuke(tmp_path, folds=[2])
    forget_source(tmp_path, 1)
    with pytest.raises(OutputError, match=r"fold1' was made .*mpp was 0\.25, is 0\.5.*choose another out="):
        prepare_pannuke(tmp_path, out, mpp=0.5, folds=[2])
    names = {"name": "mine", "mpp": 0.25, "class_names": [*"ABCDEF"], "tissue_names": ["Breast", "Colon", "Bile-duct"]}
    (tmp_path / "names.json").write_text(json.dumps(names))
    with pytest.raises(OutputError, match=r'class_names was .*"Neoplastic".* is \["A", "B"'):
        prepare_pannuke(tmp_path, folds=[2])
    (tmp_path / "names.json").unlink()
    assert tree_bytes(out) == before
    (out / "fold1" / "images.npy").unlink()
    with pytest.raises(OutputError, match=r"images\.npy' cannot be read.*Put the source back, remove the folder"):
        prepare_pannuke(tmp_path, folds=[2])
    shutil.rmtree(out / "fold1")
    assert prepare_pannuke(tmp_path, folds=[2]).dataset.folds == (2,)


def test_a_fold_that_was_repaired_joins_those_that_are_finished(tmp_path):
    folds = write_folds(tmp_path)
    write_fold(tmp_path, 2, {**folds[2], "images": folds[2]["images"] - 1000})
    with pytest.raises(DataError):
        prepare_pannuke(tmp_path)
    write_fold(tmp_path, 2, folds[2])
    assert prepare_pannuke(tmp_path).kept == (1, 3)


def test_other_settings_and_sources_are_refused(tmp_path):
    write_folds(tmp_path)
    out = tmp_path / "prepared"
    prepare_pannuke(tmp_path)
    before = tree_bytes(out)
    with pytest.raises(OutputError, match=r"fold1' was made with other settings .*mpp was 0\.25, is 0\.5"):
        prepare_pannuke(tmp_path, out, mpp=0.5)
    (tmp_path / "sources.csv").write_text(
        "\n".join(["fold,index,source", *(f"{k},{i},s" for k in (1, 2, 3) for i in range(4))])
    )
    with pytest.raises(OutputError, match="sources was"):
        prepare_pannuke(tmp_path)
    (tmp_path / "sources.csv").unlink()
    path = tmp_path / "Fold 3" / "images" / "fold3" / "images.npy"
    os.utime(path, ns=(path.stat().st_atime_ns, time.time_ns() + 10**9))
    with pytest.raises(OutputError, match=r"fold3' was made .*images modified_ns was"):
        prepare_pannuke(tmp_path)
    assert tree_bytes(out) == before
    shutil.rmtree(out / "fold3")
    assert prepare_pannuke(tmp_path).kept == (1, 2)


def test_a_removed_array_is_written_again(tmp_path):
    write_folds(tmp_path)
    out = prepare_pannuke(tmp_path).out
    before = tree_bytes(out)
    (out / "fold2" / "type_maps.npy").unlink()
    assert prepare_pannuke(tmp_path).kept == (1, 3)
    assert tree_bytes(out) == before


def test_a_source_that_vanishes_is_an_error(tmp_path, small_blocks):
    write_folds(tmp_path)

    def remove(what, done, total):
        (tmp_path / "Fold 1/masks/fold1/masks.npy").unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"masks\.npy' cannot be read any more"):
        prepare_pannuke(tmp_path, report=remove)
    assert list((tmp_path / "prepared" / "fold1").iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    write_folds(tmp_path)
    real = np.ascontiguousarray

    def full(array, dtype=None):
        if dtype is not None and np.dtype(dtype) == np.uint16:
            raise OSError(28, "No space left on device")
        return real(array, dtype)

    monkeypatch.setattr(np, "ascontiguousarray", full)
    with pytest.raises(OutputError, match="the disk is full"):
        prepare_pannuke(tmp_path)
    assert list((tmp_path / "prepared" / "fold1").iterdir()) == []


def test_prepared_folders_are_found(tmp_path):
    write_folds(tmp_path, count=2)
    with pytest.raises(DataError, match="run 'cellvit prepare pannuke"):
        find_prepared(tmp_path)
    prepare_pannuke(tmp_path, mpp=0.5)
    with pytest.raises(DataError, match=r"give '.*prepared-mpp0\.5'"):
        find_prepared(tmp_path)
    assert find_prepared(tmp_path / "prepared-mpp0.5") == tmp_path / "prepared-mpp0.5"
    prepare_pannuke(tmp_path)
    assert find_prepared(tmp_path) == tmp_path / "prepared"


# The reader, on folders that are damaged.


@pytest.fixture
def prepared(tmp_path):
    for number in (1, 2):
        write_fold(tmp_path, number, draw_arrays(number))
    return prepare_pannuke(tmp_path, folds=[1, 2]).out


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"folds": None},
        {"mpp": "x"},
        {"about": 3},
    ],
)
def test_descriptions_that_cannot_be_read(prepared, change):
    path = prepared / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_dataset(prepared)
    path.write_text("[")
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_dataset(prepared)


def test_folds_that_cannot_be_read(prepared):
    dataset = read_dataset(prepared)
    with pytest.raises(DataError, match=r"has no fold 3; it has \[1, 2\]"):
        read_fold(prepared, 3, dataset=dataset)
    np.save(prepared / "fold1" / "images.npy", np.zeros((4, 16, 16, 3)))
    with pytest.raises(DataError, match="float64 where"):
        read_fold(prepared, 1, dataset=dataset)
    table = prepared / "fold2" / "patches.csv"
    rows = table.read_text()
    first = rows.splitlines()[1]
    name, source, tissue, *counts = first.split(",")
    for old, new, match in (
        ("Dead", "Undead", r"lacks the columns \['Dead'\]"),
        (first, ",".join([name, source, "Moon", *counts]), "'Moon' where it should not"),
        (first, ",".join([name, source, tissue, "x", *counts[1:]]), "'x' where it should not"),
        (first, ",".join([name, source, tissue, *counts[1:]]), "where it should not"),
        (first, name, "where it should not"),
        (first + "\n", "", "where .* is due"),
    ):
        table.write_text(rows.replace(old, new))
        with pytest.raises(DataError, match=match):
            read_fold(prepared, 2, dataset=dataset)
    table.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_fold(prepared, 2, dataset=dataset)
