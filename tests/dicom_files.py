"""Small DICOM series, with whatever fault a test asks for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

STEP_MM = 4.0


def write(
    folder: Path,
    volume: np.ndarray,
    *,
    names: Callable[[int], str] = "slice{}.dcm".format,
    down: bool = False,
    change: Callable[[Dataset, int], None] = lambda data, index: None,
) -> list[Path]:
    """One file for each slice of (z, y, x) stored values, numbered as they lie in `volume`.

    Upwards from z = 10 mm in steps of 4 mm, or downwards; pixels are 2 mm high and 1.5 mm wide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, pixels in enumerate(volume):
        data = dataset(pixels, index)
        z = 10 + STEP_MM * (len(volume) - 1 - index if down else index)
        data.ImagePositionPatient = [-20.0, -30.0, z]
        change(data, index)
        paths.append(folder / names(index))
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def dataset(pixels: np.ndarray, index: int) -> FileDataset:
    """A slice without a position."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test", str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality = "CT"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2", "1.3", "1.4"
    data.PatientID = data.PatientName = "p"
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [2.0, 1.5]
    data.SliceThickness = 9.0
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = pixels.astype(np.uint16).tobytes()
    return data


_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}


def enhanced(
    folder: Path,
    volume: np.ndarray,
    *,
    change: Callable[[Dataset, int], None] = lambda data, index: None,
    order: Sequence[int] | None = None,
    shared: bool = True,
    edit: Callable[[Dataset], None] = lambda data: None,
) -> tuple[Path, list[Path]]:
    """One enhanced file of the slices that `write` makes; and these, in a folder beside it.

    `order` is that of the frames; `shared` puts pixel size and orientation into one group for all.
    """
    paths = write(folder / "classic", volume, change=change)
    frames = [pydicom.dcmread(paths[at]) for at in order or range(len(paths))]
    data = pydicom.dcmread(paths[0])
    for name in (name for names in _GROUPS.values() for name in names if name in data):
        del data[name]
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedCTImageStorage
    common = ("PixelMeasuresSequence", "PlaneOrientationSequence") if shared else ()
    own = [name for name in _GROUPS if name not in common]
    data.SharedFunctionalGroupsSequence = [_groups(frames[0], common)]
    data.PerFrameFunctionalGroupsSequence = [_groups(frame, own) for frame in frames]
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(frame.PixelData for frame in frames)
    edit(data)
    path = folder / "enhanced.dcm"
    data.save_as(path, enforce_file_format=True)
    return path, paths


def _groups(frame: Dataset, names: Sequence[str]) -> Dataset:
    found = Dataset()
    for name in names:
        item = Dataset()
        for attribute in _GROUPS[name]:
            if attribute in frame:
                setattr(item, attribute, frame[attribute].value)
        setattr(found, name, [item])
    return found
