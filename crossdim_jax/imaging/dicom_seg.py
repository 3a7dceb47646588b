"""Labels as DICOM segmentations, which viewers overlay on the series they refer to.

highdicom makes the objects; it is imported when one is written, as only that needs it.
"""

import importlib.metadata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom
from crossdim_jax.imaging.dicom import Series
from crossdim_jax.storage.files import replacing, writing

# Attributes of the source in a segmentation without patient: what it refers to, and its place.
_REFERENCES = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("FrameOfReferenceUID", "Modality", "InstanceNumber", "ImageType", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("SpacingBetweenSlices", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
# Present but empty: a file without them is no DICOM (type 2).
_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "Manufacturer"),
)


class Segment(NamedTuple):
    """Segment: one value of a label, counted from 1.

    name: as shown. code: among pydicom's SNOMED CT codes, such as "Kidney". colour: "#rrggbb".
    side: "Left", "Right" or "".
    """

    name: str
    code: str
    colour: str
    side: str = ""


def write(
    path: Path,
    series: Series,
    label: np.ndarray,
    segments: Sequence[Segment],
    *,
    deidentify: bool = False,
) -> Path:
    """Writes a label as binary segments that refer to the slices of a series.

    The object belongs to the study of the series and lies on its frames; slices without any
    segment are left out, as viewers expect.

    Args:
      path: of the file; its folder is created.
      series: of DICOM files.
      label: (z, y, x), values 0 to `len(segments)`, on the grid of the series.
      segments: of the values 1, 2, ...
      deidentify: False copies the patient's and the study's attributes and the scanner's name and
        number, as viewers file a segmentation by them. True leaves all of them out, by the basic
        profile of DICOM PS3.15 Annex E, but for the UIDs of study, series, frame of reference and
        slices: without these it could not be laid over its slices, and by these whoever has the
        slices knows whose it is.

    Raises:
      DataError: the series lacks what a segmentation must refer to, or the file cannot be written.
    """
    path = Path(path)
    sources, own_uids = _sources(series, deidentify=deidentify)
    try:
        segmentation = _segmentation(sources, series.to_slices(label).astype(np.uint8), segments)
    except Exception as error:  # whatever a library says of headers it does not understand
        raise DataError(
            f"{series.geometry.path}: no DICOM segmentation can refer to this series ({error}); "
            "leave it out, or repair the headers"
        ) from error
    if deidentify:
        segmentation.PatientIdentityRemoved = "YES"
        segmentation.DeidentificationMethod = (
            "Patient, study, equipment left out; UIDs are the source's"
        )
        equipment = segmentation.ContributingEquipmentSequence
        segmentation.ContributingEquipmentSequence = [
            item for item in equipment if item.get("Manufacturer")
        ]
    referenced = segmentation.ReferencedSeriesSequence[0]
    segmentation.ReferencedSeriesSequence = _references(referenced, sources, own_uids)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            segmentation.save_as(temporary)
    return path


def _sources(series: Series, *, deidentify: bool) -> tuple[list[Dataset], list[str]]:
    """Slices as of one series, which highdicom asks for, and the series identifier of each file.

    Anonymised series may have an identifier for each file; these are what is referred to.
    """
    sources = dicom.datasets(series)
    if deidentify:
        sources = [_without_patient(source) for source in sources]
    own_uids = [source.SeriesInstanceUID for source in sources]
    for source in sources:
        source.SeriesInstanceUID = sources[0].SeriesInstanceUID
        source.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    return sources, own_uids


def _segmentation(sources: Sequence[Dataset], pixels: np.ndarray, segments: Sequence[Segment]):
    """Makes the `highdicom.seg.Segmentation` of pixels (slice, row, column)."""
    import highdicom as hd

    version = importlib.metadata.version("crossdim_jax")
    made_by = hd.AlgorithmIdentificationSequence(
        name="crossdim_jax", family=codes.DCM.ArtificialIntelligence, version=version
    )
    with warnings.catch_warnings():  # of names with one part, which is what the series has
        warnings.filterwarnings("ignore", "The string", UserWarning)
        return hd.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _describe(number, segment, made_by) for number, segment in enumerate(segments, 1)
            ],
            series_instance_uid=generate_uid(),
            series_number=1000,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="crossdim_jax",
            manufacturer_model_name="crossdim_jax",
            software_versions=version,
            device_serial_number="0",
            content_label="SEGMENTATION",
            series_description="Segmentation by crossdim_jax",
        )


def _without_patient(source: Dataset) -> Dataset:
    """Copy of a slice with only what a segmentation needs, so that nothing else can be copied."""
    copy = Dataset()
    for name in _EMPTY:
        setattr(copy, name, "")
    for name in _REFERENCES:
        if name in source:
            copy[name] = source[name]
    copy.file_meta = source.file_meta
    return copy


def _references(item: Any, sources: Sequence[Any], own_uids: Sequence[str]) -> list[Any]:
    """Referenced series, each with its instances, from one item that holds all of them."""
    uid_of = {source.SOPInstanceUID: uid for source, uid in zip(sources, own_uids, strict=True)}
    series: dict[str, Any] = {}
    for instance in item.ReferencedInstanceSequence:
        uid = uid_of[instance.ReferencedSOPInstanceUID]
        if uid not in series:
            series[uid] = Dataset()
            series[uid].SeriesInstanceUID, series[uid].ReferencedInstanceSequence = uid, []
        series[uid].ReferencedInstanceSequence.append(instance)
    return list(series.values())


def _describe(number: int, segment: Segment, made_by: Any) -> Any:
    import highdicom as hd

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=getattr(codes.SCT, segment.code),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=made_by,
        display_color=hd.color.CIELabColor.from_rgb(
            *(int(segment.colour[i : i + 2], 16) for i in (1, 3, 5))
        ),
    )
    if segment.side:
        side = hd.sr.CodedConcept.from_code(getattr(codes.SCT, segment.side))
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
