"""The viewer in a notebook: a frame on a server of this process, or a picture where a frame would stay empty."""

import atexit
import base64
import io
import os
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellvit.classes import NucleiClasses, standard_colors
from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.io.loaded import LoadedNuclei
from cellvit.io.parquet import ParquetStream, write_parquet
from cellvit.labels.table import Labels
from cellvit.plotting.overlay import write_picture
from cellvit.plotting.slides import write_slide_overlay
from cellvit.types import Nuclei, NucleiPrediction
from cellvit.viewer.gallery import Gallery, ViewedSlide
from cellvit.viewer.image import TILE
from cellvit.viewer.serve import ServedView, ViewServer, check_page

PICTURE = 1024
"""Most pixels along a side of a picture in place of the viewer."""

_ELSEWHERE = {  # where a browser cannot reach this process by 127.0.0.1, or frames of it are refused
    "JUPYTERHUB_USER": "the notebook runs on a JupyterHub",
    "COLAB_RELEASE_TAG": "the notebook runs on Colab",
    "KAGGLE_KERNEL_RUN_TYPE": "the notebook runs on Kaggle",
    "BINDER_SERVICE_HOST": "the notebook runs on Binder",
    "CODESPACES": "the notebook runs in a codespace",
    "SSH_CONNECTION": "the notebook runs on another machine",
    "VSCODE_PID": "this editor shows no frames of other servers",
}

_LOCK = threading.RLock()
_SHOWN: "dict[tuple[str, ...], NotebookView]" = {}


@dataclass
class _Process:
    """The server of this process, as long as something is shown."""

    server: ViewServer | None = None


_PROCESS = _Process()


@dataclass(eq=False)
class NotebookView:
    """What notebooks show: the viewer in a frame, or a picture.

    Attributes:
        gallery: The slides.
        served: The viewer and its address; None where it is not served.
        reason: Why there is a picture in place of the viewer; empty if there is none.
        height: Of the frame in CSS pixels.
    """

    gallery: Gallery
    served: ServedView | None
    reason: str = ""
    height: int = 640
    _folder: Any = field(default=None, repr=False)
    _key: tuple[str, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return f"<cellvit.view of {self.gallery.title!r}{f' at {self.address}' if self.address else ''}>"

    @property
    def address(self) -> str | None:
        """What a browser on this machine opens; None where the viewer is not served."""
        return None if self.served is None else self.served.address

    @property
    def labels(self) -> Labels:
        """The labels of the first slide, one per nucleus, as they are now.

        Raises:
            ConfigError: If the viewer is not served.
        """
        if self.served is None:
            raise ConfigError(f"there are no labels: {self.reason or 'the viewer was closed'}")
        return self.served.labeling.session(next(iter(self.gallery.slides.values()))).current

    @cached_property
    def picture(self) -> Image.Image:
        """The first slide and its nuclei as a picture."""
        return _picture(next(iter(self.gallery.slides.values())))

    def close(self) -> None:
        """Serve it no more; labels of results stay in their folder, those of a table in memory are gone."""
        with _LOCK:
            _SHOWN.pop(self._key, None)
            if self.served is not None and _PROCESS.server is not None:
                _PROCESS.server.hide(self.served)
            self.served, self.reason = None, self.reason or "the viewer was closed"
            if self._folder is not None:
                with self._folder:
                    _ = self.picture  # while its table is there

    def _repr_html_(self) -> str:
        if self.served is not None and not self.reason:
            style = f"width:100%;height:{self.height}px;border:1px solid #8884;border-radius:6px"
            return f'<iframe src="{escape(self.served.address)}" style="{style}" title="cellvit"></iframe>'
        said = escape(f"A picture, as {self.reason}.")
        if self.served is not None:
            said += f' The viewer is at <a href="{escape(self.served.address)}">this address</a> of that machine.'
        data = base64.b64encode(self._png()).decode()
        return f'<img src="data:image/png;base64,{data}" style="max-width:100%" alt="nuclei"><p>{said}</p>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Mapping[str, Any]:
        """Return what front ends choose from; one that shows no HTML gets the picture."""
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if self.served is None or self.reason:
            bundle["image/png"] = base64.b64encode(self._png()).decode()
        return bundle

    def _png(self) -> bytes:
        buffer = io.BytesIO()
        self.picture.save(buffer, format="PNG")
        return buffer.getvalue()


def view(
    nuclei_or_result: Any,
    *,
    image: str | Path | NDArray[np.uint8] | None = None,
    slides: str | Path | None = None,
    height: int = 640,
    inline: bool | None = None,
) -> NotebookView:
    """Show slides and their nuclei in a notebook, as ``cellvit view`` does in a browser.

    A server on 127.0.0.1 is started in a thread of this process, once, and ends with it. Where the viewer cannot be
    shown, a picture is, with the reason: the extra ``view`` is missing, or the browser is on another machine.

    Args:
        nuclei_or_result: What :func:`~cellvit.segment_slide` or :func:`~cellvit.segment_image` returns, a result
            folder, a slide, a table of nuclei or what was read from one, or a list of paths.
        image: The image, ``(H, W, 3)`` uint8 RGB or a file, of nuclei that come without one.
        slides: A slide, or a folder with those that are not where they were.
        height: Of the viewer in CSS pixels.
        inline: Show the viewer, or (False) the picture; None decides by where this process runs.

    Returns:
        What the notebook shows; ``close()`` ends it, ``labels`` has what was labelled, ``picture`` is the picture.

    Raises:
        DataError: If there is nothing to look at.
        ConfigError: If it is nothing that can be shown, or an image is given with what has its own.
    """
    nuclei = _nuclei_of(nuclei_or_result)
    if nuclei is None:
        if image is not None:
            raise ConfigError(
                "image= is for nuclei in memory; results know their slide, or say where it is with slides="
            )
        paths, folder = _paths_of(nuclei_or_result), None
    else:
        folder = tempfile.TemporaryDirectory(prefix="cellvit-view-")
        paths, slides = _write(nuclei, image, Path(folder.name))
    key = (*(str(path.resolve()) for path in paths), "" if slides is None else str(Path(slides).resolve()))
    with _LOCK:
        shown = _SHOWN.get(key)
        if shown is None:  # a cell that runs again shows the same viewer, which holds its labels
            shown = _served(paths, slides, folder, key)
            _SHOWN[key] = shown
    shown.height = height
    if shown.served is not None:
        shown.reason = _elsewhere() if inline is None else "" if inline else "inline=False asks for one"
    return shown


def _served(paths: Sequence[Path], slides: str | Path | None, folder: Any, key: tuple[str, ...]) -> NotebookView:
    """Return what is served, or is not, with the reason."""
    try:
        check_page()
        if _PROCESS.server is None or not _PROCESS.server.running:
            _PROCESS.server = ViewServer()
            atexit.register(_PROCESS.server.stop)
        served = _PROCESS.server.show(paths, slides=slides)
    except (ConfigError, OutputError) as error:
        return NotebookView(Gallery(paths, slides=slides), None, str(error), _folder=folder, _key=key)
    return NotebookView(served.gallery, served, _folder=folder, _key=key)


def _nuclei_of(given: Any) -> Nuclei | None:
    """Return nuclei in memory, or None for what lies on the disk."""
    if isinstance(given, NucleiPrediction):
        return given.nuclei
    if isinstance(given, LoadedNuclei):
        return _outlined(given) if given.outlines is None else given.outlines
    return given if isinstance(given, Nuclei) else None


def _outlined(given: LoadedNuclei) -> Nuclei:
    """Return the outlines of a map of labels."""
    from cellvit.evaluation.rasterize import nuclei_from_labels

    assert given.instance_map is not None
    nuclei = nuclei_from_labels(given.instance_map, given.types).nuclei
    nuclei = replace(nuclei, type=np.maximum(nuclei.type, 0))  # -1 is a type that is not known
    return (
        nuclei
        if given.names is None
        else replace(nuclei, classes=NucleiClasses(given.names, standard_colors(given.names)))
    )


def _paths_of(given: Any) -> list[Path]:
    out = getattr(given, "out", given)  # of a SlideResult, whose module brings torch
    if isinstance(out, str | Path):
        return [Path(out)]
    if isinstance(given, list | tuple) and given and all(isinstance(one, str | Path) for one in given):
        return [Path(one) for one in given]
    raise ConfigError(f"{type(given).__name__} cannot be shown; give results, a path, or nuclei")


def _write(
    nuclei: Nuclei, image: str | Path | NDArray[np.uint8] | None, folder: Path
) -> tuple[list[Path], Path | None]:
    """Write nuclei, and an image in memory, for the server; return what to show, and where the image is."""
    where = Path(image) if isinstance(image, str | Path) else None
    facts: dict[str, Any] = {"image": "nuclei" if where is None else where.name}
    if where is None and image is not None:
        facts["image"] = "image.png"
        write_picture(cast("NDArray[np.uint8]", image), folder / "image.png")
    write_parquet(nuclei, folder / "nuclei.parquet", metadata=facts)
    return [folder / "nuclei.parquet"], where


def _elsewhere() -> str:
    """Return why a frame would stay empty; nothing if it would not."""
    if "google.colab" in sys.modules:
        return _ELSEWHERE["COLAB_RELEASE_TAG"]
    return next((text for name, text in _ELSEWHERE.items() if os.environ.get(name)), "")


def _picture(slide: ViewedSlide) -> Image.Image:
    """Return a picture of a slide, small, with its nuclei."""
    pixels, image, about = _small(slide), slide.image(), slide.about()
    if slide.source.nuclei is None or slide.source.error:
        return Image.fromarray(pixels)
    width, height = (image.width, image.height) if image else (about["width"], about["height"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        stream = ParquetStream(slide.table().path, embedding=False)
        write_slide_overlay(stream, pixels, path, bounds=(0, 0, width, height), mpp=about["mpp"])
        with Image.open(path) as picture:
            return picture.convert("RGB")


def _small(slide: ViewedSlide) -> NDArray[np.uint8]:
    """Return the pixels of a slide, at most :data:`PICTURE` along a side; white where there are none."""
    image = slide.image()
    if image is not None:
        level = image.level_within(PICTURE)
        columns, rows = (-(-side // TILE) for side in image.size(level))
        try:
            return np.concatenate(
                [np.concatenate([_tile(slide, level, x, y) for x in range(columns)], axis=1) for y in range(rows)]
            )
        except CellViTError:  # damaged: the nuclei are shown all the same
            pass
    about = slide.about()
    longest = max(about["width"], about["height"], 1)
    width, height = (max(1, round(about[side] * min(1, PICTURE / longest))) for side in ("width", "height"))
    return np.full((height, width, 3), 255, np.uint8)


def _tile(slide: ViewedSlide, level: int, column: int, row: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(slide.tile(level, column, row) or b"")) as picture:
        return np.asarray(picture.convert("RGB"))
