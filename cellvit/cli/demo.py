"""What ``make demo`` runs: the nuclei of real tissue, found with the model that ships with the package."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import Output
from cellvit.cli.verb import command, verb_parser

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEMO_MPP = 0.5
"""Resolution assumed for scikit-image's colon tissue, whose file states none; its nuclei are about 16 px wide."""

NEXT = """
Look at
  {out}/tissue.png       the tissue with every nucleus outlined in the colour of its type
  {out}/tissue.geojson   drag it onto the image in QuPath: one editable object per nucleus
  {out}/tissue.parquet   one row per nucleus with its embedding: pyarrow.parquet.read_table(...)

Try next
  1. your own images and slides: {cellvit} segment FILE_OR_FOLDER --out results
                                 (add --mpp 0.25 where a file does not state its microns per pixel)
  2. the same in Python:         from cellvit import segment_image; nuclei = segment_image(array, mpp=0.25)
  3. types of your own:          from a few labels, docs/pages/how-to/your-own-types.md

How good this model is, and where it fails: docs/pages/models/nano.md
"""


ABOUT = """The tissue is scikit-image's colon (haematoxylin and DAB); the brown of DAB is drawn in the colour of eosin,
so that it looks like H&E, which the model knows. The nuclei are as they were photographed.
"""

# Optical density of red, green and blue (natural logarithm) of haematoxylin and eosin: the reference of Macenko et al.,
# "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
_HAEMATOXYLIN = 26.0
_EOSIN = 1.6  # of the root of DAB's amount: eosin varies less
_GLASS = 0.004  # amount of DAB that the separation finds on clean glass


def stained_tissue() -> "NDArray[np.uint8]":
    """Return scikit-image's colon tissue ``(512, 512, 3)`` RGB with eosin where it has DAB."""
    import numpy as np
    from skimage import color, data

    amounts = color.rgb2hed(data.immunohistochemistry()).clip(0)  # type: ignore[no-untyped-call]
    eosin = _EOSIN * np.sqrt((amounts[..., 2] - _GLASS).clip(0))
    density = np.stack([_HAEMATOXYLIN * amounts[..., 0], eosin], axis=-1) @ np.array(_STAINS)
    return np.asarray(np.rint(255 * np.exp(-density)), np.uint8)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the demo's arguments."""
    parser = verb_parser("demo", "Find the nuclei of a real tissue image.")
    text = "folder for the results (default: demo)"
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help=text)
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    out = options.out

    from PIL import Image

    from cellvit.cli import main as run

    source = out / "input" / "tissue.png"
    source.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stained_tissue()).save(source)
    sys.stdout.write(ABOUT)
    arguments = [str(source), "--out", str(out), "--mpp", str(DEMO_MPP), "--overwrite"]
    sys.stdout.write(f"cellvit segment {' '.join(arguments)}\n")
    sys.stdout.flush()
    code = run(["segment", *arguments])
    if code == 0:
        command = Path(sys.executable).with_name("cellvit")
        shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
        sys.stdout.write(NEXT.format(out=out, cellvit=shown))
    return code


main = command(build_parser, _run)

if __name__ == "__main__":
    sys.exit(main(None))
