"""Measurements for a model card: a model on the images of a data folder, seen at one or several resolutions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellvit.data.folder import FolderDataset
from cellvit.errors import ConfigError
from cellvit.evaluation.calibration import Calibration, TypeSample, calibrate, sample_types
from cellvit.evaluation.model_card.images import LabelledImage, predict_image, read_labelled, resample_via_mpp
from cellvit.evaluation.model_card.pictures import Window, choose_windows, worst_window
from cellvit.evaluation.model_card.probe import PlaceProbe, PlaceSample, probe_places, sample_places
from cellvit.evaluation.scoring import ImageScores, ScoreSettings, score_nuclei
from cellvit.geometry.symmetry import symmetries
from cellvit.inference.protocol import NucleiModel, evaluation_mode
from cellvit.inference.tta import unwrap_tta, with_tta
from cellvit.io.labels import SPLITS as DATA_SPLITS
from cellvit.io.labels import ImageRecord
from cellvit.slide.view import MAX_SCALE, MIN_SCALE

RADIUS = 3.0
"""Largest distance of a detected centroid in microns: 12 pixels at 0.25 microns per pixel."""

FINER = 4.0
"""How many times finer than an image a resolution asked for may be; the image is then given as it is."""

SPLITS = (*DATA_SPLITS, "all")

MAX_PICTURES = 99
"""Failures that can be drawn; the names of the files have two digits."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CardSettings:
    """What is measured.

    Attributes:
        root: Data folder; see :class:`cellvit.data.folder.FolderDataset`.
        split: One of :data:`SPLITS`.
        datasets: Names of data sets; None takes all.
        mpp: Resolutions in microns per pixel that the images are given at.
        tta: Mirrored and turned views to average; one of :data:`cellvit.geometry.symmetry.VIEWS`, 1 is none.
        resamples: Number of resamples of the bootstrap, at least 1.
        seed: Seed of everything that is drawn, from 0.
        pictures: Number of failures to draw, 0 to :data:`MAX_PICTURES`.
        tissue: Draw them on the tissue; without it, pictures hold outlines only.

    Raises:
        ConfigError: If a setting cannot work.
    """

    root: Path
    split: str = "val"
    datasets: tuple[str, ...] | None = None
    mpp: tuple[float, ...] = (0.25, 0.5)
    tta: int = 1
    resamples: int = 2000
    seed: int = 0
    pictures: int = 4
    tissue: bool = True

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"split {self.split!r} is unknown; use one of {', '.join(SPLITS)}")
        if not self.mpp or not all(0 < m < float("inf") for m in self.mpp) or len(set(self.mpp)) < len(self.mpp):
            raise ConfigError(f"mpp {list(self.mpp)} must be different numbers above 0, such as 0.25 and 0.5")
        symmetries(self.tta)  # refuses other numbers
        if self.resamples < 1 or self.seed < 0:
            raise ConfigError(f"resamples {self.resamples} and seed {self.seed} cannot work; give at least 1 and 0")
        if not 0 <= self.pictures <= MAX_PICTURES:
            raise ConfigError(f"pictures {self.pictures} cannot be drawn; give 0 to {MAX_PICTURES}")


@dataclass(frozen=True)
class CardImage:
    """Scores of one image.

    Attributes:
        record: Its files.
        typed: Whether the types of all its nuclei are known.
        types: ``(C,)`` true nuclei per type; index 0 counts those of unknown type.
        scores: Per resolution it was given at; they hold sums, no nuclei.
    """

    record: ImageRecord
    typed: bool
    types: tuple[int, ...]
    scores: dict[float, ImageScores]


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured.

    Attributes:
        images: One per image, in the order of the data.
        calibration: None where no predicted nucleus meets a true one of known type, or the model knows one type only.
        windows: Where most goes wrong.
        main: The resolution of calibration and windows: the one nearest to the model's.
        type_rule: Rule by which the model chooses the type of a nucleus.
        places: What embeddings say of the place in the image, at the main resolution; None where that cannot be told.
    """

    images: tuple[CardImage, ...]
    calibration: Calibration | None
    windows: tuple[Window, ...]
    main: float
    type_rule: str
    places: PlaceProbe | None = None


def find_images(settings: CardSettings, model: NucleiModel) -> list[ImageRecord]:
    """Check all images and labels, and return where they lie.

    Args:
        settings: Data, resolutions and what to draw.
        model: The model that will see them.

    Raises:
        DataError: If there are none or some cannot be used; one error lists all.
        ConfigError: If a resolution is too far from the images' or from the model's, or the model cannot average views.
    """
    with_tta(*unwrap_tta(model, settings.tta))
    finest, coarsest = MIN_SCALE * model.mpp, MAX_SCALE * model.mpp
    for mpp in settings.mpp:
        if not finest <= mpp <= coarsest:
            message = f"mpp {mpp:g} is too far from the model's {model.mpp:g}"
            raise ConfigError(f"{message}; give {finest:.3g} to {coarsest:g}")
    data = FolderDataset(
        settings.root,
        split=None if settings.split == "all" else settings.split,
        datasets=None if settings.datasets is None else list(settings.datasets),
        num_nuclei_classes=len(model.classes),
        cache=False,
    )
    limit = min(FINER * min(settings.mpp), coarsest)
    for record in data.records:
        known = mpp_of(record, model)
        if known > limit:
            message = f"image '{record.image}' has {known:g} microns per pixel, but at mpp {min(settings.mpp):g}"
            raise ConfigError(f"{message} and a model of {model.mpp:g} at most {limit:g} will do; choose other data")
    return data.records


def mpp_of(record: ImageRecord, model: NucleiModel) -> float:
    """Return the microns per pixel of an image; the model's where they are unknown."""
    return model.mpp if record.mpp is None else record.mpp


def measure(
    model: NucleiModel,
    records: Sequence[ImageRecord],
    settings: CardSettings,
    *,
    progress: Progress | None = None,
) -> Measurements:
    """Run a model on every image at every resolution, and score what it finds.

    One image is in memory at a time.

    Args:
        model: The model.
        records: At least one; see :func:`find_images`.
        settings: Data, resolutions and what to draw.
        progress: Called with the name of an image, and how many are done and of how many.

    Raises:
        DataError: If a file cannot be read any more.
    """
    network, views = unwrap_tta(model, settings.tta)
    job = _Job(with_tta(network, views), settings)
    images: list[CardImage] = []
    with evaluation_mode(network):
        for number, record in enumerate(records):
            if progress is not None:
                progress(record.name, number, len(records))
            images.append(job.measure(number, read_labelled(record)))
    sample = TypeSample.concatenate(job.samples) if job.samples else None
    return Measurements(
        images=tuple(images),
        calibration=calibrate(sample, seed=settings.seed) if sample is not None and len(sample) else None,
        windows=job.windows,
        main=job.main,
        type_rule=str(getattr(getattr(network, "postprocessor", None), "type_rule", "majority")),
        places=probe_places(job.places),
    )


class _Job:
    """What is the same for all images, and what they leave behind beside their scores."""

    def __init__(self, model: NucleiModel, settings: CardSettings) -> None:
        self.model, self.settings = model, settings
        self.scoring = ScoreSettings(class_names=model.classes.names, radius=RADIUS / model.mpp)
        self.main = min(settings.mpp, key=lambda m: abs(np.log(m / model.mpp)))
        self.samples: list[TypeSample] = []
        self.windows: tuple[Window, ...] = ()
        self.places: list[PlaceSample] = []

    def measure(self, number: int, image: LabelledImage) -> CardImage:
        """Measure one image at every resolution."""
        types = image.true_types()
        counts = np.bincount(np.maximum(types, 0), minlength=len(self.model.classes))
        return CardImage(
            record=image.record,
            typed=image.types is not None and bool((types >= 0).all()),
            types=tuple(counts.tolist()),
            scores={m: self._score(number, image, m) for m in self.settings.mpp},
        )

    def _score(self, number: int, image: LabelledImage, given_mpp: float) -> ImageScores:
        model, radius = self.model, self.scoring.radius
        seen = resample_via_mpp(
            image.pixels, image_mpp=mpp_of(image.record, model), given_mpp=given_mpp, model_mpp=model.mpp
        )
        target = image.truth((seen.shape[0], seen.shape[1]), model.classes)
        found = predict_image(model, seen)
        if given_mpp == self.main:
            window = worst_window(image.record, seen, target.nuclei, found.nuclei.nuclei, radius=radius)
            if window is not None:  # chosen at once, so that few are in memory
                self.windows = choose_windows([*self.windows, window], self.settings.pictures)
            seed = self.settings.seed + number
            places = sample_places(found.nuclei.nuclei, (seen.shape[0], seen.shape[1]), seed=seed)
            self.places += [] if places is None else [places]
            if found.type_map is not None and len(found.type_map) > 2:
                self.samples.append(
                    sample_types(found.nuclei, target, found.type_map, radius=radius, image=number, seed=seed)
                )
        return score_nuclei(found.nuclei, target, self.scoring, name=image.record.name, foreground=found.foreground)
