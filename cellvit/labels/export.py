"""Labels as annotations that QuPath opens."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cellvit.classes import Rgb, palette_color
from cellvit.io.atomic import atomic_text
from cellvit.io.text import encode
from cellvit.labels.table import Labels


def write_points(labels: Labels, path: str | Path, *, colors: Mapping[str, Rgb] | None = None) -> None:
    """Write labels as GeoJSON: an annotation of one point each, with its class, for QuPath.

    Args:
        labels: Labels with a class.
        path: The file, ``.geojson`` or ``.geojson.gz``.
        colors: Colour of a class by its name; others get one of the palette.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(path) as file:
        file.write('{"type":"FeatureCollection","features":[')
        file.writelines(_features(labels, colors or {}))
        file.write("\n]}\n")


def _features(labels: Labels, colors: Mapping[str, Rgb]) -> Iterator[str]:
    """Yield a feature per label, each on a line."""
    classes = sorted(set(labels.class_name.tolist()))
    shown = {name: list(colors.get(name, palette_color(kind))) for kind, name in enumerate(classes, start=1)}
    columns = (labels.x.tolist(), labels.y.tolist(), labels.class_name, labels.who, labels.source)
    for row, (x, y, name, who, source) in enumerate(zip(*columns, strict=True)):
        about = {
            "objectType": "annotation",
            "classification": {"name": name, "color": shown[name]},
            "metadata": {"who": who, "source": source},
        }
        place = {"type": "Point", "coordinates": [x, y]}
        feature = {"type": "Feature", "properties": about, "geometry": place}
        yield f"{',' if row else ''}\n{encode(feature)}"
