"""Classifiers in a folder: ``config.json`` and the estimator in skops' format; nothing in it is a pickle."""

import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cellvit.classification.base import CLASSIFIERS
from cellvit.errors import DataError, PluginError
from cellvit.io.atomic import atomic_path, make_folder
from cellvit.io.format import write_json
from cellvit.io.provenance import content_of, read_record
from cellvit.io.spatial import require
from cellvit.plugins.components import normalise_spec
from cellvit.plugins.trust import TRUST_VARIABLE, loading_file, refuse_foreign, trusted_packages

CONFIG, ESTIMATOR = "config.json", "estimator.skops"
FORMAT, VERSION = "cellvit-classifier", 1

# What our own estimators are made of beside the classes of scikit-learn that skops knows: plain tables and numbers.
_OURS = frozenset(
    {
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.EuclideanDistance32",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neighbors._ball_tree.BallTree",
    }
)


def write_estimator(folder: str | Path, estimator: Any, facts: Mapping[str, Any]) -> Path:
    """Write a fitted estimator and what is known of it into a folder.

    Args:
        folder: Made if missing; a classifier in it is replaced.
        estimator: Of scikit-learn.
        facts: Plain data.

    Returns:
        The folder.

    Raises:
        ConfigError: If the extra ``classify`` is missing.
        OutputError: If it cannot be written.
    """
    skops_io, out = require("skops.io", extra="classify"), Path(folder)
    make_folder(out)
    with atomic_path(out / ESTIMATOR) as temporary:
        skops_io.dump(estimator, temporary)
    versions = {name: version(name) for name in ("cellvit-lightning", "scikit-learn", "skops", "numpy")}
    head = {"format": FORMAT, "version": VERSION, "estimator": content_of(out / ESTIMATOR), "versions": versions}
    write_json(out / CONFIG, {**head, **facts})
    return out


def read_estimator(folder: str | Path, *, trust: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """Return what :func:`write_estimator` has written: the estimator, and the facts.

    A file may only name classes of scikit-learn that hold plain data, those that installed plug-ins register as
    classifiers, and those of packages that the user trusts; whatever else it names is not imported.

    Args:
        folder: The folder.
        trust: Packages whose classes it may name, as Python imports them; ``CELLVIT_TRUST`` adds to them.

    Raises:
        DataError: If there is no classifier, or it is damaged or of a newer version.
        PluginError: If it names classes of other packages.
        ConfigError: If the extra ``classify`` is missing.
    """
    skops_io, path = require("skops.io", extra="classify"), Path(folder)
    facts = read_config(path)
    if not (path / ESTIMATOR).is_file() or content_of(path / ESTIMATOR) != facts["estimator"]:
        raise DataError(f"{str(path / ESTIMATOR)!r} is missing or is not what was written; train the classifier again")
    _refuse_path(facts["settings"]["estimator"], trust)
    try:
        foreign = skops_io.get_untrusted_types(file=path / ESTIMATOR)
        _refuse_foreign(foreign, trust, path)
        return skops_io.load(path / ESTIMATOR, trusted=foreign), facts
    except PluginError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{str(path / ESTIMATOR)!r} cannot be read ({reason}); train the classifier again") from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return what ``config.json`` of a classifier holds.

    Raises:
        DataError: If there is none, or it is of another kind or of a newer version.
    """
    path = Path(folder) / CONFIG
    facts = read_record(path, advice="train the classifier again")
    if facts is None or facts.get("format") != FORMAT:
        raise DataError(f"{str(folder)!r} holds no classifier; give a folder that `cellvit classify train` has written")
    if facts["version"] > VERSION:
        raise DataError(f"{str(folder)!r} has version {facts['version']}, this is {VERSION}; update cellvit")
    return facts


def _refuse_foreign(names: Sequence[str], trust: Sequence[str], folder: Path) -> None:
    """Refuse types that neither cellvit, its plug-ins nor the user vouches for; nothing of them was imported."""
    packages = trusted_packages(trust)
    plugins = {entry.class_path for entry in CLASSIFIERS.entries()}
    for name in names:
        is_trusted = any(name.startswith(f"{package}.") for package in packages)
        if name in _OURS or name in plugins or is_trusted:
            continue
        package = name.partition(".")[0]
        raise PluginError(
            f"classifier {str(folder)!r} names {name!r}, which a loaded file may not have imported; if you trust this "
            f"package, pass trust=[{package!r}] or set the environment variable {TRUST_VARIABLE}={package}"
        )


def _refuse_path(spec: Any, trust: Sequence[str]) -> None:
    """Refuse, as for files of models, a class by whose dotted path fitting again would build the estimator."""
    path = normalise_spec(spec, what="classifier")["class_path"]
    if "." in path and path not in CLASSIFIERS and not path.startswith("sklearn."):
        with loading_file(trust):
            refuse_foreign(path, what="classifier")


def fingerprint(folder: str | Path) -> str:
    """Return a short digest of a saved classifier, by which results know it.

    Args:
        folder: Of a classifier.
    """
    return str(content_of(Path(folder) / CONFIG)["sha256"][:16])
