"""The published protocol written down literally: one mask per nucleus, every assignment tried, plain lists. Slow."""

import itertools
import math

import numpy as np
from support.reference_postprocess import literal_contour

EPSILON = 1e-6
NAN = math.nan


def mean(values):
    """Return the mean of the values that are not nan; nan of none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NAN


def ratio(part, whole):
    return part / whole if whole else NAN


def masks(instance_map, types, wanted):
    """Return one mask per nucleus whose type is wanted."""
    labels = [label for label in np.unique(instance_map).tolist() if label and wanted(types[label - 1])]
    return [instance_map == label for label in labels]


def qualities(pred, target):
    """Return PQ, DQ and SQ of two lists of masks; nan where nothing is there."""
    if not target:
        return NAN, NAN, NAN
    ious = [(p & t).sum() / (p | t).sum() for p in pred for t in target]
    matched = [iou for iou in ious if iou > 0.5]
    tp = len(matched)
    dq = tp / (tp + 0.5 * (len(pred) - tp) + 0.5 * (len(target) - tp) + EPSILON)
    sq = sum(matched) / (tp + EPSILON)
    return dq * sq, dq, sq


def panoptic_of_image(sample, classes, *, ignore_background):
    """Return the qualities of all nuclei, of every type, and their mean over the types."""
    pred, target = sample.pred, sample.target
    types = target.nuclei.type
    untyped = (types == -1).any()
    found = masks(pred.instance_map, pred.nuclei.type, lambda t: t != 0 or untyped or not ignore_background)
    binary = qualities(found, masks(target.instance_map, types, lambda t: True))
    if untyped:
        return binary, (NAN, NAN, NAN), [NAN] * (len(classes) - 1)
    per_type = [
        qualities(
            masks(pred.instance_map, pred.nuclei.type, lambda t, kind=kind: t == kind),
            masks(target.instance_map, types, lambda t, kind=kind: t == kind),
        )
        for kind in range(1, len(classes))
    ]
    return binary, tuple(mean(column) for column in zip(*per_type, strict=True)), [pq for pq, _, _ in per_type]


def panoptic(samples, classes, tissues, *, ignore_background=True):
    images = [panoptic_of_image(s, classes, ignore_background=ignore_background) for s in samples]
    result = {}
    for index, quality in enumerate(("PQ", "DQ", "SQ")):
        result[f"b{quality}"] = mean([binary[index] for binary, _, _ in images])
        result[f"m{quality}"] = mean([multi[index] for _, multi, _ in images])
    for index, name in enumerate(classes[1:]):
        result[f"PQ/{name}"] = mean([per_type[index] for _, _, per_type in images])
    for column, quality in enumerate(("bPQ", "mPQ")):
        for number, tissue in enumerate(tissues):
            of_tissue = [image for image, s in zip(images, samples, strict=True) if s.tissue == number]
            result[f"{quality}/{tissue}"] = mean([image[column][0] for image in of_tissue])
        if tissues:
            result[f"{quality}_tissue_mean"] = mean([result[f"{quality}/{tissue}"] for tissue in tissues])
    return result


def points(nuclei, keep):
    """Return centroid and type of the nuclei to keep, by row."""
    return [(nuclei.centroid[i], int(nuclei.type[i])) for i in range(len(nuclei)) if keep(i)]


def assign(pred, target, radius):
    """Return the pairs of the assignment of least total distance among all, those too far apart dropped."""
    few, many = sorted((pred, target), key=len)
    best, best_total = (), math.inf
    for chosen in itertools.permutations(range(len(many)), len(few)):
        total = sum(math.dist(few[i][0], many[j][0]) for i, j in enumerate(chosen))
        if total < best_total:
            best, best_total = chosen, total
    pairs = [(i, j) if few is pred else (j, i) for i, j in enumerate(best)]
    return [(i, j) for i, j in pairs if math.dist(pred[i][0], target[j][0]) <= radius]


def most_near(one, other, radius):
    """The most pairs within the radius: each point of one set is tried with each left of the other, and alone."""
    if not one or not other:
        return 0
    (point, _), *rest = one
    found = [most_near(rest, other, radius)]
    for j, (near, _) in enumerate(other):
        if math.dist(point, near) <= radius:
            found.append(1 + most_near(rest, other[:j] + other[j + 1 :], radius))
    return max(found)


def scores(tp, wrong, missed):
    return ratio(2 * tp, 2 * tp + wrong + missed), ratio(tp, tp + wrong), ratio(tp, tp + missed)


def detection(samples, classes, radius, *, ignore_background=False):
    within, within_per_image = np.zeros(3, int), []
    counts, per_image, typed = np.zeros(3, int), [], {name: np.zeros(5, int) for name in classes[1:]}
    for sample in samples:
        truth = sample.target.nuclei
        found = points(sample.pred.nuclei, lambda i, n=sample.pred.nuclei: n.type[i] != 0 or not ignore_background)
        true = points(truth, lambda i, s=sample: len(literal_contour(s.target.instance_map == i + 1)) >= 3)
        pairs = assign(found, true, radius)
        here = len(pairs), len(found) - len(pairs), len(true) - len(pairs)
        counts += here
        per_image.append(scores(*here))
        near = most_near(found, true, radius)
        near = near, len(found) - near, len(true) - near
        within += near
        within_per_image.append(scores(*near)[0])
        if any(kind == -1 for _, kind in true):
            continue
        lone_found = [kind for i, (_, kind) in enumerate(found) if i not in [p for p, _ in pairs]]
        lone_true = [kind for j, (_, kind) in enumerate(true) if j not in [t for _, t in pairs]]
        for c, name in enumerate(classes[1:], start=1):
            for i, j in pairs:
                one, other = found[i][1] == c, true[j][1] == c
                typed[name] += (one and other, one and not other, other and not one, 0, 0)
            typed[name] += (0, 0, 0, lone_found.count(c), lone_true.count(c))
    keys = ("F1_d", "P_d", "R_d")
    result = dict(zip(keys, scores(*counts.tolist()), strict=True))
    result |= {
        f"{key}_image_mean": mean(column) for key, column in zip(keys, zip(*per_image, strict=True), strict=True)
    }
    result |= {"F1_d_within": scores(*within.tolist())[0], "F1_d_within_image_mean": mean(within_per_image)}
    for name, (tp, fp, fn, fp_d, fn_d) in typed.items():
        result[f"F1/{name}"] = ratio(2 * tp, 2 * tp + 2 * fp + 2 * fn + fp_d + fn_d)
        result[f"P/{name}"] = ratio(tp, tp + 2 * fp + fp_d)
        result[f"R/{name}"] = ratio(tp, tp + 2 * fn + fn_d)
    return result


def aji_of_image(pred, target):
    """Every true nucleus takes the prediction of the largest IoU; what no one took adds to the union."""
    shared, union, taken = 0, 0, set()
    for t in target:
        best = max(range(len(pred)), key=lambda i: (pred[i] & t).sum() / (pred[i] | t).sum(), default=None)
        if best is None or not (pred[best] & t).any():
            union += t.sum()
        else:
            shared, union = shared + (pred[best] & t).sum(), union + (pred[best] | t).sum()
            taken.add(best)
    return ratio(shared, union + sum(p.sum() for i, p in enumerate(pred) if i not in taken))


def overlap(samples):
    aji, dice, jaccard = [], [], []
    for sample in samples:
        maps = sample.pred.instance_map, sample.target.instance_map
        lists = [[m == label for label in range(1, m.max() + 1)] for m in maps]
        aji.append(aji_of_image(*lists))
        found, true = (m > 0 for m in maps)
        dice.append(ratio(2 * (found & true).sum(), found.sum() + true.sum()))
        jaccard.append(ratio((found & true).sum(), (found | true).sum()))
    return {"AJI": mean(aji)}, {"Dice": mean(dice), "Jaccard": mean(jaccard)}
