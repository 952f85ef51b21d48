"""DICOM Microscopy Bulk Simple Annotations, for archives of slides and their viewers."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import NO_TYPE, type_label
from cellvit.errors import DataError, ImageError
from cellvit.io.dicom import head_of, instance_of, instances_in, is_dicom, one_per_slide, slide_file
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat, Size, image_size
from cellvit.io.stream import NucleiStream, blocks
from cellvit.types import Nuclei

_EXACT_LABELS = 2**24
_SCHEME = "99CELLVIT"
_LABEL, _PROBABILITY = "label", "type_prob"
_UNITS = {"um2": "square micrometer", "um": "micrometer"}
_MADE = "Nuclei; the identifiers of the slide were made from its name"
_LONGEST = 64  # characters of a label of DICOM


@FORMATS.register("dicom")
class Dicom(NucleiFormat):
    """DICOM bulk annotations in pixels of the slide: a group of polygons per type, with measurements."""

    file = "nuclei.dcm"
    suffixes: ClassVar[tuple[str, ...]] = (".dcm",)
    extra = "formats"
    packages = ("highdicom", "pydicom")
    priority = 50
    space: ClassVar[str] = "2D"

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is DICOM."""
        return start[128:132] == b"DICM"

    def _read(self, path: Path) -> Nuclei:
        import highdicom
        from pydicom.errors import InvalidDicomError

        from cellvit.io.data_frames import nuclei_of_rings

        try:
            found = highdicom.ann.annread(path)
            space = str(found.AnnotationCoordinateType)
            groups = found.get_annotation_groups() if "AnnotationGroupSequence" in found else []
            if space != "2D":
                raise DataError(
                    f"{str(path)!r} holds millimetres on the glass ({space}), which are no pixels without its slide; "
                    "give the file of format 'dicom', or the table that was written beside it"
                )
            parts = [_group_columns(group) for group in groups]
        except DataError:
            raise
        except (InvalidDicomError, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{str(path)!r} cannot be read as DICOM annotations ({error}); write it again") from error
        rings = [ring for part, _ in parts for ring in part]
        columns = {
            name: np.concatenate([part.get(name, np.full(len(ring), np.nan)) for ring, part in parts])
            for name in dict.fromkeys(name for _, part in parts for name in part)
        }
        return nuclei_of_rings(rings, columns, source=repr(str(path)))

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        import highdicom

        from cellvit.io.atomic import atomic_path

        self.check_image(image.path)
        own = None if image.path is None else slide_head(image.path)
        source = self._made_head(stream, image) if own is None else own
        place = self._place(source)
        groups = [
            _group(number, kind, collected, stream, image.mpp, place)
            for number, (kind, collected) in enumerate(sorted(_by_type(stream).items()), start=1)
        ]
        made = highdicom.ann.MicroscopyBulkSimpleAnnotations(
            source_images=[source],
            annotation_coordinate_type=self.space,
            annotation_groups=groups,
            series_instance_uid=highdicom.UID(),
            series_number=1,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="cellvit",
            manufacturer_model_name="cellvit",
            software_versions=version("cellvit-lightning"),
            device_serial_number="0",
            content_description=_MADE if own is None else "Nuclei",
            content_label="NUCLEI",
        )
        with atomic_path(path) as temporary:
            made.save_as(temporary)

    def _made_head(self, stream: NucleiStream, image: ImageFacts) -> Any:
        """Return what stands for the head of a slide that is no DICOM; the content description says so."""
        return _made_head(str(image.metadata.get("image", image.path or "")), image_size(stream, image))

    def _place(self, source: Any) -> Any:
        """Return what turns pixels of the slide into coordinates of the file."""
        return None


@FORMATS.register("dicom-3d")
class Dicom3d(Dicom):
    """DICOM bulk annotations in millimetres of the slide's own frame of reference; for slides in DICOM."""

    file = "nuclei-3d.dcm"
    suffixes = (".3d.dcm",)
    space = "3D"

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Leave it to the format in pixels."""
        return False

    def check_image(self, path: Path | None) -> None:
        """Refuse what is no slide in DICOM."""
        super().check_image(path)
        if path is None or slide_head(path) is None:
            raise DataError(
                "only a slide in DICOM, in coordinates of the whole slide, has a frame of reference for millimetres; "
                "choose 'dicom' for pixels, or say where the slide is with slide='FILE.dcm'"
            )

    def _place(self, source: Any) -> Any:
        from highdicom.spatial import ImageToReferenceTransformer

        return ImageToReferenceTransformer.for_image(source, for_total_pixel_matrix=True)


def slide_head(path: Path) -> Any:
    """Return the data set, without pixels, of the full resolution of a slide in DICOM; None for other files.

    Args:
        path: Any file of the slide, of which those beside it are looked at, too, or their folder.
    """
    try:
        path = (slide_file(path) if path.is_dir() else None) or path
        if not path.is_file() or not is_dicom(path):
            return None
        own = instance_of(path)
        series = [] if own is None else instances_in(path.parent, own.series)[0]
        volume = [instance for instance in series if instance.flavour == "VOLUME"]
        return head_of(one_per_slide(volume)[0].path) if volume else None
    except ImageError as error:
        raise DataError(str(error)) from error


def _made_head(name: str, size: Size) -> Any:
    """Return what a slide in DICOM would say of itself, with identifiers that depend on its name and size alone."""
    from pydicom.dataset import Dataset
    from pydicom.uid import VLWholeSlideMicroscopyImageStorage, generate_uid

    head = Dataset()
    head.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(head, keyword, generate_uid(entropy_srcs=["cellvit", keyword, name, repr(size)]))
    head.TotalPixelMatrixColumns, head.TotalPixelMatrixRows = size
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        setattr(head, keyword, "")
    head.AccessionNumber = head.ReferringPhysicianName = ""
    head.Modality, head.ImageType = "SM", ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    return head


def _by_type(stream: NucleiStream) -> dict[int, list[tuple[Nuclei, NDArray[np.float64], NDArray[np.int64]]]]:
    """Return the nuclei with valid outlines by their types; all are held in memory."""
    from cellvit.io.text import CHUNK, check_finite
    from cellvit.io.valid_polygons import valid_rings

    found: dict[int, list[tuple[Nuclei, NDArray[np.float64], NDArray[np.int64]]]] = {}
    for row, block in blocks(stream, CHUNK, classes=stream.classes, embedding_dim=None):
        check_finite(block, first=row)
        for kind in np.unique(np.maximum(block.type, 0)).tolist():
            part = block.select(np.maximum(block.type, 0) == kind)
            found.setdefault(kind, []).append((part, *valid_rings(part)))
    return found


def _group(number: int, kind: int, collected: list[Any], stream: NucleiStream, mpp: float | None, place: Any) -> Any:
    """Return the annotation group of a type."""
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    nuclei = Nuclei.concatenate([part for part, _, _ in collected])
    points = np.concatenate([points for _, points, _ in collected])
    lengths = np.concatenate([np.diff(offsets) for _, _, offsets in collected])
    placed = points if place is None else place(points)
    if place is None and np.array_equal(placed, placed.astype(np.float32)):
        placed = placed.astype(np.float32)  # half as large, and the same numbers
    return highdicom.ann.AnnotationGroup(
        number=number,
        uid=highdicom.UID(),
        label=type_label(stream.classes, kind)[:_LONGEST],
        annotated_property_category=Code("91723000", "SCT", "Anatomical structure"),
        annotated_property_type=Code("84640000", "SCT", "Nucleus"),
        graphic_type=highdicom.ann.GraphicTypeValues.POLYGON,
        graphic_data=np.split(placed, np.cumsum(lengths)[:-1]),
        algorithm_type=highdicom.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="cellvit", family=codes.DCM.ArtificialIntelligence, version=version("cellvit-lightning")
        ),
        measurements=list(_measurements(nuclei, mpp)),
    )


def _measurements(nuclei: Nuclei, mpp: float | None) -> Iterator[Any]:
    """Yield what is measured, as DICOM has it: labels, areas, probabilities."""
    import highdicom
    from pydicom.sr.coding import Code

    def one(name: Code, values: NDArray[Any], unit: Code) -> Any:
        return highdicom.ann.Measurements(name=name, values=values.astype(np.float32), unit=unit)

    number = Code("1", "UCUM", "no units")  # a column without any number would make a file that cannot be read
    if nuclei.label.max(initial=0) < _EXACT_LABELS:  # numbers of 32 bits: larger ones would become others
        yield one(Code(_LABEL, _SCHEME, _LABEL), nuclei.label, number)
    if not np.isnan(nuclei.type_prob).all():
        yield one(Code(_PROBABILITY, _SCHEME, _PROBABILITY), nuclei.type_prob, number)
    if mpp is not None:
        area = nuclei.area * mpp**2
        yield one(Code("42798000", "SCT", "Area"), area, Code("um2", "UCUM", _UNITS["um2"]))
    for place, (name, values) in enumerate(nuclei.measurements.items(), start=1):
        ending = name.rpartition("_")[2]
        unit = Code(ending, "UCUM", _UNITS[ending]) if ending in _UNITS else number
        if not np.isnan(values).all():  # a code has 16 characters at most: the name is its meaning
            yield one(Code(f"measurement-{place}", _SCHEME, name[:_LONGEST]), values, unit)


def _group_columns(group: Any) -> tuple[list[NDArray[np.float64]], dict[str, NDArray[Any]]]:
    """Return the outlines of a group, and the columns of its nuclei."""
    rings = [np.asarray(ring, np.float64) for ring in group.get_graphic_data(coordinate_type="2D")]
    names, values, _ = group.get_measurements()
    name = None if group.label == NO_TYPE else group.label
    columns = {"type": np.array([name] * len(rings), object)}
    for code, column in zip(names, values.T, strict=True):
        if code.scheme_designator == _SCHEME:
            columns[code.meaning] = column
    return rings, columns
