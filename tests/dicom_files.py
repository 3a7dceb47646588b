"""Small DICOM series, with whatever fault a test asks for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

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
