"""Run an exported model as QuPath does, without cellvit, and compare what it finds with ``cellvit segment``.

``python tests/benchmarks/agreement_qupath.py DATA [--model nano] [--python OTHER ...]`` exports the model and prints
tables in Markdown: agreement by tile size, scores of the ``val`` images, processor seconds of one thread. With
``--python`` the script also runs in the interpreters named, such as one with torch 2.7 and numpy and nothing else.

``python agreement_qupath.py --run MODEL_FOLDER IN.npz OUT.npz [--tile 512] [--raw]`` is the part that needs numpy and
torch only. Each image of IN is a region that a user has chosen: it is stretched by its percentiles, cut into
overlapping tiles, and a nucleus counts in the tile in whose inner part its centre lies. ``--raw`` tells the model the
percentiles, which QuPath does not, to show what guessing them costs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

PADDING = 40
SIZES = [(64, 64), (333, 517), (384, 640), (512, 512), (1024, 1024), (2048, 2048)]


def scaled(pixels):
    """Return an image as QuPath gives it to a model, and its percentiles; ``(H, W, 3)`` float32."""
    low, high = np.percentile(pixels.reshape(-1, 3), (0.1, 99.9), axis=0)
    return np.clip((pixels - low) / (high - low + 1e-6), -0.5, 1.5).astype(np.float32), low, high


def steps(length, tile):
    """Return the inner parts of tiles along one side as ``(start of the tile, start, end)``."""
    if length <= tile:
        return [(0, 0, length)]
    inner = tile - 2 * PADDING
    starts = [min(start, length - tile) for start in range(0, length - 2 * PADDING, inner)]
    cuts = [0, *(start + PADDING for start in starts[1:]), length]
    return list(zip(starts, cuts, cuts[1:], strict=False))


def run_region(script, pixels, *, tile, raw):
    """Return labels ``(H, W)`` and the class of each nucleus of a region."""
    values, low, high = scaled(pixels)
    if raw:
        script.undo.guess.zero_()
        script.undo.guess[0] = torch.from_numpy(np.concatenate([low, high]) / 255)
    labels, classes = np.zeros(pixels.shape[:2], np.int32), []
    for y, top, bottom in steps(len(labels), tile):
        for x, left, right in steps(labels.shape[1], tile):
            part = np.ascontiguousarray(values[y : y + tile, x : x + tile].transpose(2, 0, 1)[None])
            with torch.inference_mode():
                found, types = script(torch.from_numpy(part))
            found, types = found[0, 0].numpy().astype(np.int64), types[:, 0].numpy().astype(int)
            rows, columns = np.nonzero(found)
            number = np.bincount(found[rows, columns], minlength=len(types) + 1)[1:]
            assert (number > 0).all()  # labels are 1..N without gaps
            middle_y = np.bincount(found[rows, columns], rows, len(types) + 1)[1:] / number + y
            middle_x = np.bincount(found[rows, columns], columns, len(types) + 1)[1:] / number + x
            ours = (middle_y >= top) & (middle_y < bottom) & (middle_x >= left) & (middle_x < right)
            new = np.concatenate([[0], np.where(ours, len(classes) + np.cumsum(ours), 0)])
            view = labels[y : y + tile, x : x + tile]
            view[new[found] > 0] = new[found][new[found] > 0]
            classes += types[ours].tolist()
    return labels, classes


def run(folder, source, target, *, tile, raw):
    """Run a script on the images of a file and write labels, classes and seconds into another; no cellvit."""
    torch.set_num_threads(1)
    script = torch.jit.load(str(Path(folder) / "instanseg.pt"))
    images, result = np.load(source), {}
    for warm_up in (False, True, True):  # the first runs of a script are spent on making it fast
        script(torch.zeros(1, 3, 64 + 16 * warm_up, 64))
    start = time.process_time()
    for name in images.files:
        labels, classes = run_region(script, images[name], tile=tile, raw=raw)
        result |= {f"labels/{name}": labels, f"classes/{name}": np.array(classes, np.int64)}
    assert "cellvit" not in sys.modules
    np.savez(target, seconds=time.process_time() - start, torch=torch.__version__, **result)


def elsewhere(python, folder, images, *, tile=4096, raw=False):
    """Return what an interpreter finds in images, by name: labels and types from 1; its torch, and its seconds."""
    with tempfile.TemporaryDirectory() as place:
        np.savez(f"{place}/in.npz", **{str(number): image for number, image in enumerate(images.values())})
        more = ["--tile", str(tile), *(["--raw"] if raw else [])]
        command = [python, __file__, "--run", folder, f"{place}/in.npz", f"{place}/out.npz", *more]
        subprocess.run(command, check=True, cwd=place, env={"OMP_NUM_THREADS": "1"})
        out = np.load(f"{place}/out.npz")
        found = {name: (out[f"labels/{number}"], out[f"classes/{number}"] + 1) for number, name in enumerate(images)}
        return found, str(out["torch"]), float(out["seconds"])


def agreement(expected, found):
    """Return nuclei of ours, theirs, matched at an IoU above 0.5, and matched of the same type."""
    from cellvit.metrics.functional.panoptic import match_instances  # not where the script runs without cellvit

    (ours, our_types), (theirs, their_types) = expected, found
    a, b = (match_instances(ours, theirs).pairs - 1).T
    return np.array([len(our_types), len(their_types), len(a), (our_types[a] == their_types[b]).sum()])


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells):
    print()
    row(*cells)
    row(*["---"] * len(cells))


def compare(options):
    """Print the tables."""
    from cellvit.export import export_qupath
    from cellvit.inference.protocol import evaluation_mode
    from cellvit.model.network import CellViTNetwork

    torch.set_num_threads(1)
    model = CellViTNetwork.from_pretrained(options.model)
    folder = str(Path(tempfile.mkdtemp()) / "exported")
    for remark in export_qupath(model, folder):
        print(remark)
    with evaluation_mode(model):
        size_table(model, folder, options)
        val_table(model, folder, options)


def segmented(model, images):
    """Return what the model finds in images, by name: labels and types; and processor seconds."""
    from cellvit.evaluation.model_card.images import predict_image

    start = time.process_time()
    found = {name: predict_image(model, image).nuclei for name, image in images.items()}
    return {n: (f.instance_map, f.nuclei.type) for n, f in found.items()}, time.process_time() - start


def labelled(model, options):
    """Return the images of ``val`` with their truth."""
    from cellvit.evaluation.model_card.images import read_labelled
    from cellvit.evaluation.model_card.measure import CardSettings, find_images

    return [read_labelled(record) for record in find_images(CardSettings(Path(options.data), mpp=(0.25,)), model)]


def size_table(model, folder, options):
    """Print how the script agrees with the model on one image of each size, with the percentiles told."""
    names = "tile", "torch", "nuclei of segment", "of the script", "matched", "types equal", "CPU s of segment"
    header(*names, "of the script")
    typed = next(image.pixels for image in labelled(model, options) if image.types is not None)
    for height, width in SIZES:
        crop = {"typed": fitted(typed, height, width)}
        here, took_here = segmented(model, crop)
        for python in (sys.executable, *options.python):
            found, torch_version, took = elsewhere(python, folder, crop, raw=True)
            total = agreement(here["typed"], found["typed"])
            cells = *total[:2], f"{total[2] / max(*total[:2], 1):.4f}", f"{total[3] / max(total[2], 1):.4f}"
            row(f"{height}x{width}", torch_version, *cells, f"{took_here:.2f}", f"{took:.2f}")


def val_table(model, folder, options):
    """Print scores and agreement on the images of ``val``."""
    from cellvit.evaluation.image_scores import ScoreSettings, pooled_scores, score_nuclei
    from cellvit.evaluation.model_card.measure import RADIUS
    from cellvit.evaluation.rasterize import nuclei_from_labels

    images = labelled(model, options)
    pixels = {image.record.name: image.pixels for image in images}
    scoring = ScoreSettings(class_names=model.classes.names, radius=RADIUS / model.mpp)
    expected, seconds = segmented(model, pixels)

    def scores(found):
        """Return all scores by data set and for all."""
        parts = defaultdict(list)
        for image in images:
            labels, types = found[image.record.name]
            pred = nuclei_from_labels(labels, np.concatenate([[0], types]))
            target = image.truth(labels.shape, model.classes)
            for group in (image.record.dataset, "all"):
                parts[group].append(score_nuclei(pred, target, scoring, name=image.record.name))
        return {group: pooled_scores(part) for group, part in parts.items()}

    base = scores(expected)
    shown = "F1_d_within", "bPQ", "mPQ"
    header("run", *(f"F1_d {group}" for group in base), *shown, "matched", "types equal", "CPU s")

    def report(name, found, took):
        got = scores(found)
        total = sum(agreement(expected[name], found[name]) for name in pixels)
        cells = [f"{got[group]['F1_d']:.4f} ({got[group]['F1_d'] - base[group]['F1_d']:+.4f})" for group in base]
        cells += [*(f"{got['all'][k]:.4f}" for k in shown), f"{total[2] / max(total[:2]):.4f}"]
        row(name, *cells, f"{total[3] / total[2]:.4f}", f"{took:.1f}")

    report("cellvit segment, one tile", expected, seconds)
    runs = [
        *((python, "as QuPath, one tile", {}) for python in (*options.python, sys.executable)),
        (sys.executable, "as QuPath, tiles of 512 px", {"tile": 512}),
        (sys.executable, "percentiles told, one tile", {"raw": True}),
    ]
    for python, name, settings in runs:
        found, torch_version, took = elsewhere(python, folder, pixels, **settings)
        report(f"{name}, torch {torch_version}", found, took)


def fitted(image, height, width):
    """Return the middle of an image, or the image continued by its mirror, of a size."""
    beyond = [(0, max(side - length, 0)) for side, length in zip((height, width), image.shape[:2], strict=True)]
    image = np.pad(image, [*beyond, (0, 0)], mode="symmetric")
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help="folder of data; with --run: model folder, input, output")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--python", nargs="+", default=[], help="other interpreters that have torch and numpy")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--raw", action="store_true")
    options = parser.parse_args()
    if options.run:
        run(*options.data, tile=options.tile, raw=options.raw)
    else:
        (options.data,) = options.data
        compare(options)


if __name__ == "__main__":
    main()
