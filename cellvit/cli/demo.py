"""What ``make demo`` runs: the nuclei of a real tissue image, found with the model that ships with the package."""

import argparse
import sys
from pathlib import Path

from cellvit.cli.console import Output
from cellvit.cli.verb import command, verb_parser

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
  3. types of your own:          fine-tune this model on a few hundred nuclei, docs/pages/how-to/fine-tune.md

How good this model is, and where it fails: docs/pages/models/nano.md
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the demo's arguments."""
    parser = verb_parser("demo", "Find the nuclei of a real tissue image.")
    text = "folder for the results (default: demo)"
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help=text)
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    out = options.out

    import cv2
    from skimage import data

    from cellvit.cli import main as run

    source = out / "input" / "tissue.png"
    source.parent.mkdir(parents=True, exist_ok=True)
    tissue = data.immunohistochemistry()  # type: ignore[no-untyped-call]  # (512, 512, 3) uint8
    cv2.imwrite(str(source), tissue[..., ::-1])
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
