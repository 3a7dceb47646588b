"""Read an enhanced (multi-frame) DICOM file as a volume.

Where a frame lies, its pixel size and its rescaling stand in the file's functional groups, those of
the frame or those that all frames share. Each frame is read as the single slice that it would be
in a classic series, by the same rules and checks.

Source: DICOM PS3.3, C.7.6.16 (multi-frame functional groups).
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, get_frame

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, dicom_slice
from crossdim_jax.imaging.dicom import Series
from crossdim_jax.imaging.dicom_slice import Slice
from crossdim_jax.storage import reading

_SHARED, _EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
# The groups that say where a frame lies and what its values mean.
_GROUPS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    *("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence"),
)
_FRAMES = 20_000  # of a file; a CT of the whole body has some 2,000


def is_enhanced(path: str | os.PathLike) -> bool:
    """True if a file has functional groups. Raises DataError if it is no DICOM file."""
    return _EACH in dicom_slice.open_dataset(Path(path), pixels=False)


def read_frames(
    path: str | os.PathLike, *, tolerance_mm: float | None = None
) -> tuple[np.ndarray, Series]:
    """Reads the frames of an enhanced file as one volume, in the order of their positions.

    Args:
      path: of the file; frames may lie in any order, and be compressed.
      tolerance_mm: by how much a voxel may lie beside a grid with right angles; None:
        `dicom.TOLERANCE_MM`.

    Returns:
      The volume, (z, y, x) float32 in LPS, with the rescaling of each frame applied; and the
      series, whose files are named `FILE/frame N`.

    Raises:
      DataError: as `dicom.read_series`; or the file is a segmentation, has no group for each of its
        frames, or holds several frames at one position. The message names the file.
    """
    path = Path(path)
    data = dicom_slice.open_dataset(path, pixels=True)
    with reading.naming(path, "an enhanced DICOM image"):
        count = _count(path, data)
        pixels = _split(path, data, count)
        shared = _items(path, data, _SHARED, least=0)
        frames = [
            _frame(data, [*shared, own], content)
            for own, content in zip(_items(path, data, _EACH, least=count), pixels, strict=True)
        ]
        slices = [_record(path, number, frame, count) for number, frame in enumerate(frames, 1)]
        _check_positions(path, slices)
        series = dicom.assemble(slices, tolerance_mm)
        return dicom.fill(series, slices, frames), series


def _count(path: Path, data: pydicom.Dataset) -> int:
    if str(data.get("Modality", "")).strip() == "SEG":
        raise DataError(
            f"{path}: is a DICOM segmentation, whose segments may overlap; convert it to a label "
            "map in NIfTI or NRRD (segimage2itkimage of dcmqi) and give that instead"
        )
    text = str(data.get("NumberOfFrames", ""))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _FRAMES:
        raise DataError(
            f"{path}: NumberOfFrames is {text[:60]!r}; a whole number from 1 to {_FRAMES} is "
            f"expected; repair the header or {reading.AGAIN}"
        )
    return int(text)


def _items(
    path: Path, data: pydicom.Dataset, name: str, *, least: int
) -> Sequence[pydicom.Dataset]:
    items = data.get(name) or []
    if least and len(items) != least:
        raise DataError(
            f"{path}: has {len(items)} items in {name}, but {least} frames; one for each is "
            f"expected; the file is damaged, {reading.AGAIN}"
        )
    return items


def _split(path: Path, data: pydicom.Dataset, count: int) -> list[bytes]:
    """The stored bytes of each frame, which is a value of PixelData of its own."""
    content = data["PixelData"].value if "PixelData" in data else None
    if not isinstance(content, bytes):
        raise DataError(f"{path}: holds no pixels; the file is truncated or no image")
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        parts = (get_frame(content, at, number_of_frames=count) for at in range(count))
        return [encapsulate([part]) for part in parts]
    bits = math.prod(int(data.get(name) or 0) for name in ("Rows", "Columns", "BitsAllocated"))
    size = bits // 8
    if bits % 8 or not size or not count * size <= len(content) <= count * size + 1:
        raise DataError(
            f"{path}: the header promises {count} frames of {size} bytes of pixels, {len(content)} "
            f"bytes are there; the file is truncated or damaged, {reading.AGAIN}"
        )
    return [content[at * size : (at + 1) * size] for at in range(count)]


def _frame(
    data: pydicom.Dataset, groups: Sequence[pydicom.Dataset], pixels: bytes
) -> pydicom.Dataset:
    """A frame as the file of a classic series would hold it; later groups go before earlier."""
    frame = pydicom.Dataset()
    left_out = (_SHARED, _EACH, "PixelData", "NumberOfFrames")
    frame.update({e.tag: e for e in data.elements() if _keyword(e.tag) not in left_out})
    for group in groups:
        for name in _GROUPS:
            for item in group.get(name) or []:
                frame.update({element.tag: element for element in item.elements()})
    if "FrameType" in frame:
        frame.ImageType = frame.FrameType
    frame.file_meta = data.file_meta
    frame.set_original_encoding(*data.original_encoding, data.original_character_set)
    frame.add_new("PixelData", "OB" if frame.get("BitsAllocated") == 8 else "OW", pixels)
    return frame


def _keyword(tag: pydicom.tag.BaseTag) -> str:
    return pydicom.datadict.keyword_for_tag(tag)


def _record(path: Path, number: int, frame: pydicom.Dataset, count: int) -> Slice:
    record = dicom_slice.read(path, frame)
    share = -(-record.file_bytes // count)
    return dataclasses.replace(record, path=path / f"frame {number}", file_bytes=share)


def _check_positions(path: Path, slices: Sequence[Slice]) -> None:
    """Raises DataError if several frames lie at one position."""
    positions = {tuple(np.round(one.position, 3)) for one in slices}
    alike = all(np.allclose(one.cosines, slices[0].cosines, atol=1e-3) for one in slices)
    if alike and len(positions) < len(slices):
        raise DataError(
            f"{path}: holds {len(slices)} frames at {len(positions)} positions: a series in time, "
            "or of several echoes, phases or weightings; one volume is expected. Convert it to "
            "NIfTI with a tool that separates these (dcm2niix), and give one of the files"
        )
