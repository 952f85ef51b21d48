"""Drawn slides in DICOM: whole slide images as scanners and archives write them, in every form that is read."""

from pathlib import Path

import imagecodecs
import numpy as np
from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

UPRIGHT, USUAL, TURNED = (1, 0, 0, 0, 1, 0), (0, -1, 0, -1, 0, 0), (-1, 0, 0, 0, -1, 0)
"""Orientations of a slide: rows along x and columns along y; as most scanners place it; turned by half."""

PATIENT = "Muster^Erika"
COLOURS = {"red": (200, 30, 40), "green": (30, 150, 60), "blue": (50, 60, 190), "plum": (120, 40, 110)}


def picture(width, height, *, scale=1.0):
    """Return a white picture ``(H, W, 3)`` with a bar or a square of another colour in each quarter.

    Nothing in it is symmetric: what is turned, mirrored or has its colours exchanged differs from it.
    """
    image = np.full((height, width, 3), 244, np.uint8)
    for colour, (x, y, w, h) in boxes(width, height).items():
        image[y : y + h, x : x + w] = COLOURS[colour]
    return image


def boxes(width, height):
    """Return ``(x, y, width, height)`` of each shape of :func:`picture` by its colour; all are even."""
    parts = {"red": (8, 6, 16, 10), "green": (38, 12, 8, 20), "blue": (12, 42, 12, 12), "plum": (34, 40, 24, 6)}
    return {
        colour: tuple(int(value * side / 64) // 2 * 2 for value, side in zip(box, (width, height) * 2, strict=True))
        for colour, box in parts.items()
    }


def found_boxes(image):
    """Return ``(x, y, width, height)`` of each shape by its colour, from the pixels of that colour within 40."""
    found = {}
    for colour, value in COLOURS.items():
        near = np.abs(image.astype(int) - value).max(axis=2) <= 40
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        found[colour] = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
    return found


def halved(image, times=1):
    """Return a picture shrunk by two, ``times`` over."""
    for _ in range(times):
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
        image = np.rint(blocks.mean((1, 3))).astype(image.dtype)
    return image


def _jpeg(photometric, quality):
    subsampling = "422" if photometric == "YBR_FULL_422" else "444"
    out = "RGB" if photometric == "RGB" else "YCBCR"
    return lambda tile: imagecodecs.jpeg8_encode(
        tile, quality, colorspace="RGB", outcolorspace=out, subsampling=subsampling
    )


def _ycbcr(tile):
    return np.ascontiguousarray(convert_color_space(tile, "RGB", "YBR_FULL"))


def _rle(tile):
    rows, columns, samples = tile.shape
    return RLELosslessEncoder.encode(
        tile.tobytes(),
        rows=rows,
        columns=columns,
        samples_per_pixel=samples,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="RGB",
        planar_configuration=0,
    )


def codecs(quality=95):
    """Return ``name: (transfer syntax, photometric interpretation, encoder of a tile, lossless)``."""
    return {
        "jpeg": (JPEGBaseline8Bit, "YBR_FULL_422", _jpeg("YBR_FULL_422", quality), False),
        "jpeg-444": (JPEGBaseline8Bit, "YBR_FULL", _jpeg("YBR_FULL", quality), False),
        "jpeg-rgb": (JPEGBaseline8Bit, "RGB", _jpeg("RGB", quality), False),
        "jpeg2000": (JPEG2000, "YBR_ICT", lambda tile: imagecodecs.jpeg2k_encode(tile, 45, codecformat="j2k"), False),
        "jpeg2000-lossless": (
            *(JPEG2000Lossless, "YBR_RCT"),
            *(lambda tile: imagecodecs.jpeg2k_encode(tile, codecformat="j2k", reversible=True), True),
        ),
        "htj2k": (HTJ2K, "YBR_ICT", lambda tile: imagecodecs.htj2k_encode(tile, 1e-3, reversible=False), False),
        "htj2k-lossless": (HTJ2KLossless, "YBR_RCT", lambda tile: imagecodecs.htj2k_encode(tile), True),
        "jpegls": (JPEGLSLossless, "RGB", imagecodecs.jpegls_encode, True),
        "jpegls-ybr": (JPEGLSLossless, "YBR_FULL", lambda tile: imagecodecs.jpegls_encode(_ycbcr(tile)), True),
        "rle": (RLELossless, "RGB", _rle, True),
        "rle-ybr": (RLELossless, "YBR_FULL", lambda tile: _rle(_ycbcr(tile)), True),
        "native": (ExplicitVRLittleEndian, "RGB", np.ndarray.tobytes, True),
        "native-ybr": (ExplicitVRLittleEndian, "YBR_FULL", lambda tile: _ycbcr(tile).tobytes(), True),
    }


def write_dicom(
    folder: Path,
    levels,
    *,
    codec="jpeg",
    quality=95,
    tile=(64, 64),
    sparse=False,
    missing=(),
    parts=1,
    mpp=(0.25, 0.25),
    orientation=USUAL,
    origin=(20.0, 40.0),
    beside=("LABEL", "OVERVIEW", "THUMBNAIL"),
    magnification=40,
    icc=True,
    paths=("0",),
    illumination=("111744", "Brightfield illumination"),
    planes=1,
    bits=8,
    series=None,
    suffix=".dcm",
    **changed,
):
    """Write a slide as a series of instances, one file each, and return the files of its levels, the largest first.

    Args:
        folder: Where to; made if it is missing.
        levels: Pictures ``(H, W, 3)`` or, in grey, ``(H, W)``, the largest first; of large ones anything with a shape
            of which tiles can be cut.
        codec: One of :func:`codecs`.
        quality: Of JPEG.
        tile: ``(width, height)``.
        sparse: TILED_SPARSE, each frame with its place, in a shuffled order; else TILED_FULL.
        missing: ``(column, row)`` of tiles that are left out of a sparse first level.
        parts: Instances that the first level is cut into, a concatenation.
        mpp: ``(x, y)`` micrometres per pixel of the first level.
        orientation: ImageOrientationSlide.
        origin: ``(x, y)`` of the centre of the first pixel on the glass, millimetres.
        beside: Pictures beside the slide, by their flavours.
        magnification: ObjectiveLensPower, or None.
        icc: Whether the optical paths carry a profile.
        paths: Identifiers of the optical paths; each shows the same.
        illumination: Code and meaning of how they are lit.
        planes: Focal planes; each shows the same.
        bits: Of a sample; 16 for pictures of uint16.
        series: ``(study, series)`` to write more instances of; new ones where it is None.
        suffix: Of the files.
        **changed: Attributes that each level has beside the others, or instead of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, uid = series or (generate_uid(), generate_uid())
    frame, written = generate_uid(), []
    base = levels[0].shape
    for number, image in enumerate(levels):
        height, width = image.shape[:2]
        spacing = (mpp[1] * base[0] / height / 1000, mpp[0] * base[1] / width / 1000)
        kind = (
            ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if number == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        )
        head = _head(study, uid, frame, kind, image, spacing, tile, orientation, origin, bits)
        head.update(_optical_paths(paths, illumination, magnification, icc))
        head.TotalPixelMatrixFocalPlanes, head.InstanceNumber = planes, number + 1
        syntax, photometric, encode, _ = codecs(quality)[codec]
        head.PhotometricInterpretation = photometric if image.ndim == 3 else "MONOCHROME2"
        frames, places = _frames(image, tile, encode)
        keep = [i for i, place in enumerate(places) if number or place not in set(missing)]
        order = np.random.default_rng(7).permutation(keep).tolist() if sparse else keep
        everything = [(z, path, i) for path in paths for z in range(planes) for i in order]
        cuts = np.array_split(np.arange(len(everything)), parts if number == 0 else 1)
        source, concatenation = generate_uid(), generate_uid()
        for part, indices in enumerate(cuts):
            own = Dataset()
            own.update(head)
            own.SOPInstanceUID = generate_uid() if len(cuts) > 1 else source
            if len(cuts) > 1:
                own.ConcatenationUID, own.SOPInstanceUIDOfConcatenationSource = concatenation, source
                own.InConcatenationNumber, own.InConcatenationTotalNumber = part + 1, len(cuts)
                own.ConcatenationFrameOffsetNumber = int(indices[0])
            mine = [everything[i] for i in indices]
            _place(own, mine, places, tile, sparse=sparse, several=len(paths) > 1)
            own.NumberOfFrames = len(mine)
            for name, value in changed.items():
                setattr(own, name, value)
            path = folder / f"level{number}{f'-{part}' if len(cuts) > 1 else ''}{suffix}"
            _save(own, path, [frames[i] for _, _, i in mine], syntax)
            written.append(path)
    for number, flavour in enumerate(beside):
        image = np.full((24, 40, 3), 10 + 60 * number, np.uint8)
        head = _head(
            *(study, uid, frame, ["ORIGINAL", "PRIMARY", flavour, "NONE"], image, (0.5, 0.5), (40, 24)),
            *(orientation, origin, 8),
        )
        head.update(_optical_paths(("0",), illumination, None, False))
        head.PhotometricInterpretation, head.NumberOfFrames, head.InstanceNumber = "RGB", 1, 100 + number
        head.BurnedInAnnotation = "YES" if flavour == "LABEL" else "NO"
        _save(head, folder / f"{flavour.lower()}{suffix}", [image.tobytes()], ExplicitVRLittleEndian)
    return written


def _head(study, series, frame, kind, image, spacing, tile, orientation, origin, bits):
    """Return what an instance says of itself, but for its identifier, its frames and how they are coded."""
    head = Dataset()
    head.SOPClassUID, head.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    head.StudyInstanceUID, head.SeriesInstanceUID, head.FrameOfReferenceUID = study, series, frame
    head.PatientName, head.PatientID, head.PatientBirthDate, head.PatientSex = PATIENT, "4711", "19600102", "F"
    head.StudyDate, head.StudyTime, head.AccessionNumber, head.StudyID = "20200304", "121314", "A-17", "S-1"
    head.ReferringPhysicianName, head.ContentDate, head.ContentTime = "Doctor^Good", "20200304", "121314"
    head.AcquisitionDateTime, head.Modality, head.ImageType = "20200304121314", "SM", kind
    head.Manufacturer, head.ManufacturerModelName = "Drawn", "Pencil"
    head.DeviceSerialNumber, head.SoftwareVersions = "77", "1"
    head.SeriesNumber, head.PositionReferenceIndicator, head.ContainerIdentifier = 1, "SLIDE_CORNER", "C-1"
    head.TotalPixelMatrixRows, head.TotalPixelMatrixColumns = image.shape[:2]
    head.Columns, head.Rows = tile
    head.SamplesPerPixel = 3 if image.ndim == 3 else 1
    if image.ndim == 3:
        head.PlanarConfiguration = 0
    head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = bits, bits, bits - 1, 0
    head.ImagedVolumeWidth, head.ImagedVolumeHeight = image.shape[1] * spacing[1], image.shape[0] * spacing[0]
    head.ImagedVolumeDepth, head.FocusMethod, head.ExtendedDepthOfField = 1.0, "AUTO", "NO"
    head.SpecimenLabelInImage, head.BurnedInAnnotation, head.VolumetricProperties = "NO", "NO", "VOLUME"
    head.LossyImageCompression = "01"
    head.ImageOrientationSlide = list(orientation)
    place, measures, shared, flavour = (Dataset() for _ in range(4))
    place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem = origin
    head.TotalPixelMatrixOriginSequence = [place]
    measures.PixelSpacing, measures.SliceThickness = [f"{side:.10g}" for side in spacing], 0.001
    measures.SpacingBetweenSlices = 0.002
    flavour.FrameType = kind
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [flavour]
    head.SharedFunctionalGroupsSequence = [shared]
    return head


def _optical_paths(paths, illumination, magnification, icc):
    head, items = Dataset(), []
    for name in paths:
        item, how, colour = Dataset(), Dataset(), Dataset()
        how.CodeValue, how.CodingSchemeDesignator, how.CodeMeaning = illumination[0], "DCM", illumination[1]
        colour.CodeValue, colour.CodingSchemeDesignator, colour.CodeMeaning = "414298005", "SCT", "Full Spectrum"
        item.OpticalPathIdentifier, item.IlluminationTypeCodeSequence = name, [how]
        item.IlluminationColorCodeSequence = [colour]
        if magnification is not None:
            item.ObjectiveLensPower = magnification
        if icc:
            item.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
            item.ICCProfile += b"\0" * (len(item.ICCProfile) % 2)
        items.append(item)
    head.OpticalPathSequence, head.NumberOfOpticalPaths = items, len(items)
    return head


def _frames(image, tile, encode):
    """Return the coded tiles of a picture, row by row, all of full size, and the ``(column, row)`` of each."""
    width, height = tile
    down, across = -(-image.shape[0] // height), -(-image.shape[1] // width)
    places = [(column, row) for row in range(down) for column in range(across)]
    if image.ndim == 2:
        encode = np.ndarray.tobytes
    frames = []
    for column, row in places:
        part = np.asarray(image[row * height : (row + 1) * height, column * width : (column + 1) * width])
        grown = [(0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)][: part.ndim]
        frames.append(encode(np.ascontiguousarray(np.pad(part, grown, mode="edge"))))
    return frames, places


def _place(head, frames, places, tile, *, sparse, several):
    """Say where the frames lie."""
    head.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    organization = Dataset()
    organization.DimensionOrganizationUID = generate_uid()
    head.DimensionOrganizationSequence = [organization]
    if not sparse:
        return
    items = []
    for z, path, i in frames:
        item, place, optics = Dataset(), Dataset(), Dataset()
        place.ColumnPositionInTotalImagePixelMatrix = places[i][0] * tile[0] + 1
        place.RowPositionInTotalImagePixelMatrix = places[i][1] * tile[1] + 1
        place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = 0.0
        place.ZOffsetInSlideCoordinateSystem = z * 2.0
        optics.OpticalPathIdentifier = path
        item.PlanePositionSlideSequence = [place]
        if several:
            item.OpticalPathIdentificationSequence = [optics]
        items.append(item)
    head.PerFrameFunctionalGroupsSequence = items
    if not several:
        optics = Dataset()
        optics.OpticalPathIdentifier = frames[0][1]
        head.SharedFunctionalGroupsSequence[0].OpticalPathIdentificationSequence = [optics]


def _save(head, path, frames, syntax):
    if syntax.is_encapsulated:
        head.PixelData = encapsulate(frames, has_bot=True)
        head["PixelData"].is_undefined_length = True
        head["PixelData"].VR = "OB"
    else:
        data = b"".join(frames)
        head.PixelData = data + b"\0" * (len(data) % 2)
        head["PixelData"].VR = "OW" if head.BitsAllocated > 8 else "OB"
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = syntax
    head.save_as(path, enforce_file_format=True)
