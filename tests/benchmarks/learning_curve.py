"""What few labels are worth: types taught on the embeddings of nano, against those that its own head predicts.

Images of CoNSeP are segmented; found nuclei meet true ones at an IoU above 0.5, whose types are the labels. So many per
type are drawn from the ``train`` images, five times, a logistic regression is fitted, and macro F1 is measured on the
matched nuclei of ``val``. How strongly it is held back (C) is what does best on held-out ``train`` images with 50
labels per type. nano itself learnt from all labels of the same ``train`` images. Prints JSON, and draws the curves.

    python tests/benchmarks/learning_curve.py $CELLVIT_TEST_DATA/nuclei --picture curve.png
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import KDTree
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellvit import segment_image
from cellvit.geometry.raster import draw_rings
from cellvit.inference.protocol import load_model
from cellvit.io.images import read_image
from cellvit.io.labels import find_records
from cellvit.metrics.functional.panoptic import match_instances
from cellvit.plotting.charts import COLORS, new_axes, to_picture

LABELS = (10, 25, 50, 100, 400)
DRAWS = 5
NEAR_UM = 50.0
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
FOLDS, CHOSEN_AT = 5, 50
SETS = {
    "embedding": ("embedding",),
    "+ measurements": ("embedding", "measured"),
    "+ measurements, neighbours": ("embedding", "measured", "around"),
}


def features(record, model):
    """Return true type, predicted type and features of the found nuclei of an image that meet true ones."""
    pixels = read_image(record.image)
    nuclei = segment_image(pixels, model=model, mpp=record.mpp or model.mpp)
    with np.load(record.label) as label:
        truth, types = label["inst_map"].astype(np.int32), label["inst_type"]
    found = draw_rings(nuclei.contour_points, nuclei.contour_offsets, truth.shape)
    row, true = match_instances(found, truth).pairs.T
    measured = np.nan_to_num(np.stack([*nuclei.measurements.values()], axis=1), posinf=0, neginf=0)
    tree = KDTree(nuclei.centroid)
    pairs = tree.query_pairs(NEAR_UM / model.mpp, output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    around = np.zeros_like(nuclei.embedding)
    np.add.at(around, pairs[:, 0], nuclei.embedding[pairs[:, 1]])
    count = np.bincount(pairs[:, 0], minlength=len(nuclei))[:, None]
    around = np.where(count > 0, around / np.maximum(count, 1), nuclei.embedding)
    columns = {
        "embedding": nuclei.embedding,
        "measured": np.sign(measured) * np.log1p(np.abs(measured)),
        "around": around,
        "own": nuclei.type,
    }
    print(f"{record.name}: {len(row)} of {len(nuclei)} nuclei meet true ones", file=sys.stderr, flush=True)
    return {"true": types[true].astype(int)} | {name: values[row - 1] for name, values in columns.items()}


def split_features(root, split, model):
    """Return the same of all images of a split."""
    records = find_records(root, split=split, datasets=["consep"])
    parts = [features(record, model) | {"image": number} for number, record in enumerate(records)]
    for part in parts:
        part["image"] = np.full(len(part["true"]), part["image"])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def draw(types, number, seed):
    """Return rows: so many of each type, or all where there are fewer."""
    rng = np.random.default_rng(seed)
    rows = (np.flatnonzero(types == kind) for kind in np.unique(types))
    return np.concatenate([rng.permutation(of)[:number] for of in rows])


def taught(known, types, rows, strength):
    """Return a classifier that has learnt the labels of some rows."""
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
    return make_pipeline(StandardScaler(), model).fit(known[rows], types[rows])


def chosen_strength(known, types, image):
    """Return the C that does best on images that the labels are not of."""
    scores = dict.fromkeys(STRENGTHS, 0.0)
    for fold in range(FOLDS):
        asked = image % FOLDS == fold
        rows = np.flatnonzero(~asked)
        rows = rows[draw(types[rows], CHOSEN_AT, fold)]
        for strength in STRENGTHS:
            said = taught(known, types, rows, strength).predict(known[asked])
            scores[strength] += f1_score(types[asked], said, average="macro", labels=np.unique(types), zero_division=0)
    return max(scores, key=scores.get)


def curve(train, val, columns, labels, *, of=None):
    """Return macro F1 by number of labels: mean, least and most of the draws."""
    known, asked = (np.concatenate([part[name] for name in columns], axis=1) for part in (train, val))
    types, truth = ((part["true"] == of).astype(int) if of else part["true"] for part in (train, val))
    strength, result = chosen_strength(known, types, train["image"]), []
    for number in labels:
        said = [taught(known, types, draw(types, number, seed), strength).predict(asked) for seed in range(DRAWS)]
        scores = [float(f1_score(truth, one, average="macro")) for one in said]
        by_type = np.mean([f1_score(truth, one, average=None) for one in said], axis=0).round(3).tolist()
        spread = {"mean": np.mean(scores), "least": min(scores), "most": max(scores)}
        result.append({"labels": number, "C": strength, **spread, "by_type": by_type})
    return result


def own_score(val):
    """Return macro F1 of the types that the model predicts, and the middle 95 % of resamples of the nuclei."""
    rng, truth, own = np.random.default_rng(0), val["true"], val["own"]
    resamples = (rng.integers(0, len(truth), len(truth)) for _ in range(500))
    drawn = [f1_score(truth[rows], own[rows], average="macro") for rows in resamples]
    low, high = np.percentile(drawn, [2.5, 97.5])
    by_type = f1_score(truth, own, average=None).round(3).tolist()
    return {"mean": f1_score(truth, own, average="macro"), "low": low, "high": high, "by_type": by_type}


def picture(found, path, before):
    """Draw the curves, and the model's own score as a line."""
    figure, axes = new_axes(900, 600)
    for color, (name, points) in zip(COLORS, found["curves"].items(), strict=True):
        x = [point["labels"] for point in points]
        axes.fill_between(x, [p["least"] for p in points], [p["most"] for p in points], color=color, alpha=0.15, lw=0)
        axes.plot(x, [p["mean"] for p in points], "o-", color=color, label=name)
    if before:
        points = before["curves"]["embedding"]
        label = "embedding of 16 px tokens, as before"
        axes.plot([p["labels"] for p in points], [p["mean"] for p in points], "o:", color="gray", label=label)
    axes.axhline(found["own"]["mean"], color="black", ls="--", label="types of nano's own head")
    axes.axhspan(found["own"]["low"], found["own"]["high"], color="black", alpha=0.06, lw=0)
    axes.set(xscale="log", xlabel="labels per type", ylabel="macro F1, matched nuclei of val")
    axes.set_xticks(LABELS, [str(number) for number in LABELS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.6))
    Image.fromarray(to_picture(figure)).save(path)


def main():
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--before", type=Path, help="what a call with --coarse printed, to draw it too")
    parser.add_argument("--features", type=Path, help="where features are kept for the next call")
    parser.add_argument("--coarse", action="store_true", help="the mean of tokens 16 px wide, as older models store it")
    options = parser.parse_args()
    if options.features and options.features.exists():
        with np.load(options.features) as kept:
            splits = {name: kept[name] for name in kept.files}
    else:
        model = load_model("nano")
        model.decoder.embedding = not options.coarse
        found = {split: split_features(options.root, split, model) for split in ("train", "val")}
        splits = {f"{split}/{name}": values for split, one in found.items() for name, values in one.items()}
        if options.features:
            np.savez(options.features, **splits)
    train, val = (
        {name.partition("/")[2]: values for name, values in splits.items() if name.startswith(split)}
        for split in ("train", "val")
    )
    found = {
        "labels": np.bincount(train["true"])[1:].tolist(),
        "asked": np.bincount(val["true"])[1:].tolist(),
        "own": own_score(val),
        "curves": {name: curve(train, val, columns, LABELS) for name, columns in SETS.items()},
        "inflammatory": {
            "own": f1_score(val["true"] == 2, val["own"] == 2, average="macro"),
            **curve(train, val, SETS["embedding"], [20], of=2)[0],
        },
    }
    print(json.dumps(found, indent=1))
    if options.picture:
        picture(found, options.picture, json.loads(options.before.read_text()) if options.before else None)


if __name__ == "__main__":
    main()
