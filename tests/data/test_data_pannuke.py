import csv
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule, Trainer
from torch import nn

from cellvit.data import (
    Draw,
    PanNukeDataModule,
    PanNukeDataset,
    Repeat,
    ShuffledDraws,
    balanced_weights,
)
from cellvit.data.targets import make_targets
from cellvit.errors import ConfigError, DataError
from cellvit.types import Batch

CLASSES = ["Background", "Round", "Long"]
TISSUES = ["Lung", "Skin", "Uterus"]
SIZES = {1: 7, 2: 5, 3: 4}
COLOUR, GROUND = np.array([90, 60, 140], np.uint8), np.array([200, 200, 200], np.uint8)
SIZE = 32


def draw_patch(rng):
    """A few boxes: image, instance map, type map, nuclei per type."""
    instance_map, type_map = np.zeros((SIZE, SIZE), np.uint16), np.zeros((SIZE, SIZE), np.uint8)
    counts = [0, 0]
    for corner in rng.permutation(9)[: rng.integers(0, 5)]:
        top, left, kind = *(10 * (corner // 3), 10 * (corner % 3)), int(rng.integers(1, 3))
        window = (slice(top + 1, top + 5 + 3 * kind), slice(left + 1, left + 8))
        instance_map[window], type_map[window] = instance_map.max() + 1, kind
        counts[kind - 1] += 1
    image = np.where(instance_map[..., None] > 0, COLOUR, GROUND)
    image[..., 2] -= rng.integers(0, 50, 1, np.uint8)  # no two patches are alike
    return image, instance_map, type_map, counts


def write_prepared(root, *, sizes=SIZES, mpp=0.25):
    """Write the compact form; return its arrays by fold."""
    rng = np.random.default_rng(0)
    written = {}
    for number, size in sizes.items():
        folder = root / f"fold{number}"
        folder.mkdir(parents=True)
        patches = [draw_patch(rng) for _ in range(size)]
        tissues = [TISSUES[min(int(rng.integers(0, 4)), 2)] for _ in range(size)]
        shape = (size, SIZE, SIZE)
        arrays = {
            "images": np.array([p[0] for p in patches], np.uint8).reshape(*shape, 3),
            "instance_maps": np.array([p[1] for p in patches], np.uint16).reshape(shape),
            "type_maps": np.array([p[2] for p in patches], np.uint8).reshape(shape),
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        with (folder / "patches.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "source", "tissue", *CLASSES[1:]])
            for i, (tissue, patch) in enumerate(zip(tissues, patches, strict=True)):
                writer.writerow([f"fold{number}_{i:04d}", f"slide{i}", tissue, *patch[3]])
        written[number] = arrays | {"tissue": tissues}
    facts = {"format": "cellvit-patches", "version": 1, "name": "boxes", "mpp": mpp, "class_names": CLASSES}
    facts |= {"tissue_names": TISSUES, "folds": sorted(sizes), "patch_size": SIZE, "about": {}}
    (root / "dataset.json").write_text(json.dumps(facts))
    return written


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes") / "prepared"
    return SimpleNamespace(root=root, written=write_prepared(root))


def module(prepared, **settings):
    return PanNukeDataModule(str(prepared.root), **{"batch_size": 3, "num_workers": 0, "seed": 1, **settings})


def ready(prepared, stage="fit", *, model=None, **settings):
    data = module(prepared, **settings)
    data.trainer = SimpleNamespace(lightning_module=model)
    data.setup(stage)
    return data


def items_of(loader, epoch=0):
    """Return the items of an epoch, one by one."""
    loader.sampler.set_epoch(epoch)
    items = []
    for batch in loader:
        items += [{k: v[i] for k, v in batch.items()} for i in range(len(batch["name"]))]
    return items


def same(first, second):
    return first["name"] == second["name"] and all(
        torch.equal(first[k], second[k]) for k in first if isinstance(first[k], torch.Tensor)
    )


def test_items_are_what_the_folds_hold_in_the_order_given(prepared):
    data = PanNukeDataset(prepared.root, [2, 1])
    assert len(data) == 12
    assert [item["name"] for item in data] == [f"fold2_{i:04d}" for i in range(5)] + [
        f"fold1_{i:04d}" for i in range(7)
    ]
    for position, (fold, row) in enumerate([(2, i) for i in range(5)] + [(1, i) for i in range(7)]):
        item, truth = data[position], prepared.written[fold]
        assert set(item) == set(Batch.__annotations__)
        assert item["image"].dtype == torch.float32
        np.testing.assert_array_equal((item["image"] * 255).round().numpy().transpose(1, 2, 0), truth["images"][row])
        tissue = TISSUES.index(truth["tissue"][row])
        targets = make_targets(truth["instance_maps"][row], truth["type_maps"][row], tissue_type=tissue)
        assert all(torch.equal(item[k], v) for k, v in targets.items())
        assert item["valid"].item() is True


def test_a_repeat_is_the_same_item_but_not_counted(prepared):
    data = PanNukeDataset(prepared.root, [1])
    repeat = data[Repeat(2)]
    assert repeat.pop("valid").item() is False
    assert same(repeat, data[2])


def test_numbers_beyond_the_end_are_errors_and_negative_ones_count_from_it(prepared):
    data = PanNukeDataset(prepared.root, [1, 2])
    assert data[-1]["name"] == "fold2_0004"
    with pytest.raises(IndexError):
        data[12]


def test_training_items_are_augmented_by_the_seed_and_aligned(prepared):
    data = PanNukeDataset(prepared.root, [1], train=True)
    for image in range(7):
        assert same(data[Draw(image, 5)], data[Draw(image, 5)])
    assert not all(same(data[Draw(i, 5)], data[Draw(i, 6)]) for i in range(7))
    flips = PanNukeDataset(prepared.root, [1], train=True, augmentation={"vertical_flip": {}, "rotate90": {}})
    plain = PanNukeDataset(prepared.root, [1])
    moved = 0
    for image in range(7):
        for seed in range(4):
            item, original = flips[Draw(image, seed)], plain[image]
            assert torch.equal((item["image"][0] < 0.5).long(), item["nuclei_binary_map"])
            assert torch.equal(item["instance_map"] > 0, item["nuclei_type_map"] > 0)
            assert item["tissue_types"] == original["tissue_types"]
            assert torch.equal(item["nuclei_type_map"].unique(), original["nuclei_type_map"].unique())
            moved += not torch.equal(item["image"], original["image"])
    assert moved > 7


def test_without_a_seed_torch_decides(prepared):
    data = PanNukeDataset(prepared.root, [1], train=True)
    torch.manual_seed(3)
    first = data[0]
    torch.manual_seed(3)
    assert same(first, data[0])


def test_no_augmentation_leaves_training_items_alone(prepared):
    plain, train = PanNukeDataset(prepared.root, [1]), PanNukeDataset(prepared.root, [1], train=True, augmentation={})
    assert all(same(plain[i], train[Draw(i, 9)]) for i in range(7))


def test_a_copy_for_another_process_is_small_and_opens_the_files_again(prepared):
    data = PanNukeDataset(prepared.root, [2, 1], train=True, augmentation={"hed_jitter": {"p": 1.0}})
    sent = pickle.dumps(data)
    assert len(sent) < 1000
    assert prepared.written[1]["images"].nbytes > 20_000
    again = pickle.loads(sent)
    assert all(same(again[Draw(i, i)], data[Draw(i, i)]) for i in range(12))
    assert isinstance(again._folds[0].images, np.memmap)


def test_a_root_may_hold_the_prepared_folder(prepared):
    assert len(PanNukeDataset(prepared.root.parent, [3])) == 4


def test_wrong_folds_are_explained(prepared, tmp_path):
    with pytest.raises(DataError, match=r"has no fold 4; it has \[1, 2, 3\].*has no fold 0"):
        PanNukeDataset(prepared.root, [4, 1, 0])
    write_prepared(tmp_path / "empty", sizes={1: 0})
    with pytest.raises(DataError, match=r"folds \[1\] of .* hold no patch"):
        PanNukeDataset(tmp_path / "empty", [1])
    with pytest.raises(DataError, match="hold no patch"):
        PanNukeDataset(prepared.root, [])


def test_loaders_give_all_patches_in_batches(prepared):
    data = ready(prepared, val_batch_size=4)
    sizes = [len(b["name"]) for b in data.train_dataloader()]
    assert sizes == [3, 3, 1]
    batches = list(data.val_dataloader())
    assert [b["name"] for b in batches] == [[f"fold2_{i:04d}" for i in range(4)], ["fold2_0004"]]
    assert batches[0]["image"].shape == (4, 3, SIZE, SIZE)
    assert batches[0]["valid"].tolist() == [True] * 4
    data.setup("test")
    assert [n for b in data.test_dataloader() for n in b["name"]] == [f"fold3_{i:04d}" for i in range(4)]
    data.setup("predict")
    assert [n for b in data.predict_dataloader() for n in b["name"]] == [f"fold3_{i:04d}" for i in range(4)]


def test_a_stage_opens_only_its_folds(prepared):
    assert set(ready(prepared, "validate", train_folds=[77])._sets) == {"val"}
    with pytest.raises(DataError, match="has no fold 77"):
        ready(prepared, train_folds=[77])


def test_draws_follow_the_balanced_weights_of_the_training_folds(prepared):
    data = ready(prepared, train_folds=[1, 3], test_folds=[], sampling_gamma=0.85, samples_per_epoch=3000)
    tissue = [TISSUES.index(t) for k in (1, 3) for t in prepared.written[k]["tissue"]]
    maps = np.concatenate([prepared.written[k]["type_maps"] for k in (1, 3)])
    presence = np.stack([(maps == kind).any(axis=(1, 2)) for kind in (1, 2)], axis=1)
    weights = balanced_weights(tissue, presence, gamma=0.85)
    assert len(set(weights.round(6))) > 3
    drawn = np.bincount([d.image for d in data.train_dataloader().sampler], minlength=11)
    np.testing.assert_allclose(drawn / 3000, weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize("gamma", [0.85, None])
def test_workers_do_not_change_the_items(prepared, gamma):
    runs = []
    for workers in (0, 2):
        data = ready(prepared, num_workers=workers, sampling_gamma=gamma)
        loader, val = data.train_dataloader(), data.val_dataloader()
        runs.append((items_of(loader, 0), items_of(loader, 1), items_of(val)))
    for one, two in zip(*runs, strict=True):
        assert len(one) == len(two) > 0
        assert all(map(same, one, two))
    first, second = runs[0][:2]
    assert not all(map(same, first, second))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("gamma", [0.85, None])
def test_processes_together_see_what_one_would(prepared, as_rank, ranks, gamma):
    alone = items_of(ready(prepared, sampling_gamma=gamma, samples_per_epoch=6).train_dataloader(), 4)
    parts = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        parts.append(items_of(ready(prepared, sampling_gamma=gamma, samples_per_epoch=6).train_dataloader(), 4))
    assert [len(p) for p in parts] == [6 // ranks] * ranks
    together = [item for group in zip(*parts, strict=True) for item in group]
    assert all(map(same, together, alone))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_processes_together_count_every_patch_once(prepared, as_rank, ranks):
    valid, lengths, all_items = [], set(), 0
    for rank in range(ranks):
        as_rank(rank, ranks)
        data = ready(prepared, "validate", val_batch_size=2)
        lengths.add(len(data.val_dataloader()))
        items = items_of(data.val_dataloader())
        all_items += len(items)
        valid += [item["name"] for item in items if item["valid"]]
    assert len(lengths) == 1
    assert sorted(valid) == [f"fold2_{i:04d}" for i in range(5)]
    assert all_items == -(-5 // ranks) * ranks


def test_without_balancing_every_patch_is_drawn_once_in_a_new_order(prepared):
    data = ready(prepared, sampling_gamma=None, train_folds=[1, 3], test_folds=[])
    loader = data.train_dataloader()
    assert type(loader.sampler) is ShuffledDraws
    first, second = ([item["name"] for item in items_of(loader, epoch)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(PanNukeDataset(prepared.root, [1, 3]).names)
    assert first != second


def test_the_seed_of_everything_is_the_base(prepared, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "23")
    a, b, c = (list(ready(prepared, seed=s).train_dataloader().sampler) for s in (None, 23, 24))
    assert a == b != c


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_folds": [1, 2]}, r"folds \[2\] are given more than once: train_folds \[1, 2\], val_folds \[2\]"),
        ({"test_folds": [3, 3]}, r"folds \[3\] are given more than once"),
        ({"val_folds": [3]}, r"folds \[3\] are given more than once"),
        ({"sampling_gamma": 1.5}, "sampling gamma is 1.5"),
        ({"samples_per_epoch": 0}, "samples_per_epoch is 0; give a positive number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"val_batch_size": -1}, "val_batch_size is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(prepared, settings, message):
    with pytest.raises(ConfigError, match=message):
        module(prepared, **settings)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_stage_needs_folds(prepared, stage):
    names = {"fit": "train_folds", "validate": "val_folds", "test": "test_folds"}
    with pytest.raises(ConfigError, match=rf"{names[stage]} is empty; give at least one fold of \[1, 2, 3\]"):
        ready(prepared, stage, **{names[stage]: []})


def test_data_that_are_not_prepared_say_how_to(tmp_path, monkeypatch):
    (tmp_path / "fold1").mkdir()
    np.save(tmp_path / "fold1" / "images.npy", np.zeros(3))
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    with pytest.raises(DataError, match=rf"'{tmp_path}' holds no prepared data set.*cellvit prepare"):
        PanNukeDataModule("${SOME_FOLDER}").setup("fit")


def test_the_module_tells_what_the_data_are(prepared):
    data = module(prepared)
    assert (data.class_names, data.tissue_names, data.mpp) == (tuple(CLASSES), tuple(TISSUES), 0.25)


def model_like(*, mpp=0.25, classes=CLASSES, tissues=(), heads=()):
    names = SimpleNamespace(names=tuple(classes))
    return SimpleNamespace(mpp=mpp, classes=names, tissue_names=tuple(tissues), heads=dict.fromkeys(heads))


@pytest.mark.parametrize(
    "model",
    [
        None,
        SimpleNamespace(),
        model_like(),
        model_like(mpp=0.2524),
        model_like(tissues=TISSUES),
        model_like(tissues=TISSUES, heads=["tissue_types"]),
    ],
)
def test_models_that_fit_pass(prepared, model):
    for stage in ("fit", "validate", "test", "predict"):
        ready(prepared, stage, model=model)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_like(mpp=0.5), r"made for 0.5 microns per pixel but the data have 0.25: set model.mpp"),
        (model_like(classes=["Background", "Long", "Round"]), r"'Long', 'Round'\] but the data have .*'Round', 'Long'"),
        (model_like(tissues=TISSUES[::-1]), r"tissue_names are \['Uterus', .* but the data have \['Lung'"),
        (model_like(heads=["tissue_types"]), r"tissue_names are \[\] but the data have \['Lung', 'Skin', 'Uterus'\]"),
        (model_like(mpp=1, classes=["a"], tissues=["b"]), r"set model.mpp; .*class_names.*; .*tissue_names"),
    ],
)
def test_models_that_do_not_fit_are_refused(prepared, stage, model, message):
    with pytest.raises(ConfigError, match=message):
        ready(prepared, stage, model=model)


def test_predict_takes_models_of_other_classes(prepared):
    assert len(ready(prepared, "predict", model=model_like(classes=["a"])).predict_dataloader()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer versions of jsonargparse rename instantiate_classes
def test_yaml_spells_it_as_python_does(prepared):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    settings = {"root": str(prepared.root), "train_folds": [2, 3], "val_folds": [], "test_folds": [1]}
    settings |= {"sampling_gamma": None, "augmentation": {"blur": {"p": 0.5}}, "samples_per_epoch": 9}
    config = {"data": {"class_path": "cellvit.data.PanNukeDataModule", "init_args": settings}}
    data = parser.instantiate_classes(parser.parse_string(json.dumps(config))).data
    assert isinstance(data, PanNukeDataModule)
    assert data.folds == {"train": (2, 3), "val": (), "test": (1,)}
    assert (data.sampling_gamma, data.augmentation, data.samples_per_epoch) == (None, {"blur": {"p": 0.5}}, 9)
    plain = parser.parse_args(["--data=cellvit.data.PanNukeDataModule", "--data.root=x", "--data.train_folds=[3]",
                               "--data.test_folds=[1]"])  # fmt: skip
    assert parser.instantiate_classes(plain).data.folds == {"train": (3,), "val": (2,), "test": (1,)}


class Recorder(LightningModule):
    """Keeps the names of what it was given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch):
        self.seen["train"].append((self.current_epoch, batch["name"]))
        return self.layer(batch["image"].mean()[None]).sum()

    def validation_step(self, batch):
        self.seen["val"] += batch["name"]

    def test_step(self, batch):
        self.seen["test"] += batch["name"]

    def predict_step(self, batch):
        return batch["name"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **{**quiet, "num_sanity_val_steps": 0, **settings})


def test_the_trainer_runs_every_stage(prepared, tmp_path):
    recorder, data = Recorder(), module(prepared, sampling_gamma=None)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(recorder, datamodule=data)
    epochs = [[n for e, names in recorder.seen["train"] if e == epoch for n in names] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [f"fold1_{i:04d}" for i in range(7)]
    assert epochs[0] != epochs[1]
    assert recorder.seen["val"] == [f"fold2_{i:04d}" for i in range(5)] * 2
    run.test(recorder, datamodule=data, verbose=False)
    assert recorder.seen["test"] == [f"fold3_{i:04d}" for i in range(4)]
    assert [n for names in run.predict(recorder, datamodule=data) for n in names] == recorder.seen["test"]


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero. Please make sure this was your int")
def test_training_without_validation_folds(prepared, tmp_path):
    recorder = Recorder()
    data = module(prepared, train_folds=[1, 2, 3], val_folds=[], test_folds=[], sampling_gamma=None)
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=data)
    assert sum(len(names) for _, names in recorder.seen["train"]) == 16
    assert recorder.seen["val"] == []
