#!/usr/bin/env bash
# What one would guess: a categorical column may have categories that no cell has (a model of five nucleus types, tissue
# with two of them), and squidpy.gr.co_occurrence gives the types that occur the same scores as without the empty one.
# What happens: where an unused category stands before a used one, the scores of the used types are other numbers, for
# the middle category here zero although the type lies in a dense cluster. No error, no warning; the result has a row per
# used type, so that nothing looks missing. With the unused category last all is right.
# Versions: squidpy 1.8.2, anndata 0.12.19, pandas 2.3.3, numba 0.68.1, Python 3.11.
# Why it matters: models type nuclei by a fixed list, and most tissues lack one type ("Dead", "Neoplastic"). Which slides
# get wrong co-occurrence then depends on the order of the list. Way out: .cat.remove_unused_categories() before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check squidpy==1.8.2 anndata==0.12.19 pandas==2.3.3 numba==0.68.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import sys
from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import squidpy as sq

logging.disable(logging.INFO)
print(", ".join(f"{name} {version(name)}" for name in ("squidpy", "anndata", "pandas", "numba")), sys.version.split()[0])

rng = np.random.default_rng(0)
kinds = np.array(["Epithelial"] * 270 + ["Inflammatory"] * 30)
places = rng.uniform(0, 500, (300, 2))
places[270:] = rng.uniform(0, 50, (30, 2))  # a dense cluster


def scores(categories):
    obs = pd.DataFrame({"type": pd.Categorical(kinds, categories=categories)}, index=[str(i) for i in range(300)])
    table = anndata.AnnData(np.zeros((300, 1), np.float32), obs=obs, obsm={"spatial": places.copy()})
    found, _ = sq.gr.co_occurrence(table, "type", interval=np.array([0.0, 100.0, 200.0]), copy=True, show_progress_bar=False)
    return found[:, :, 0]


plain = scores(["Epithelial", "Inflammatory"])
last = scores(["Epithelial", "Inflammatory", "Dead"])
middle = scores(["Epithelial", "Dead", "Inflammatory"])
first = scores(["Dead", "Epithelial", "Inflammatory"])
for name, found in (("no unused category", plain), ("unused last", last), ("middle", middle), ("first", first)):
    print(f"{name}, within 100:", np.round(found, 3).tolist())
assert plain.shape == last.shape == middle.shape == first.shape == (2, 2)
assert np.allclose(plain, last)
assert plain[1, 1] > 1, "the cluster is seen"
assert not np.allclose(plain, middle), "changed: an unused category in the middle no longer matters"
assert not np.allclose(plain, first), "changed: an unused category in front no longer matters"
print("as described: the scores depend on where an unused category stands")
PYTHON
