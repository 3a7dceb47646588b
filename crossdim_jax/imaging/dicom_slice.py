"""Header of a DICOM file with one grey slice, as a plain record.

Every value of a header is read and checked here, once, and so leaves with the file's name if it
makes no sense.
"""

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from crossdim_jax.errors import DataError
from crossdim_jax.storage import reading

# Real files hold odd values in places that do not matter here; what matters is checked below.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

LARGEST = 1 << 30  # bytes of a file that holds one slice
_HEAD = 1 << 24  # bytes before the pixels of a deflated file
_TAIL = 1 << 20  # and behind them
_ATTRIBUTES = 20_000  # of a file; real ones have hundreds
_MM = (1e-3, 1e3)  # sizes of a pixel, distances of slices
_FAR_MM = 1e5
_MOST = 32767  # rows or columns that a NIfTI file can have
_NEEDED = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"),
)
_CONVERT = "Convert the series to NIfTI with a tool that knows such files, and give that instead"


class Stored(NamedTuple):
    """Storage of pixels: bits of each, bits that count, sign, the value of padding if any."""

    allocated: int
    bits: int
    signed: bool
    padding: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """Header of a file.

    Attributes:
      path: of the file; file_bytes: its size.
      shape: (rows, columns).
      position: (3,) mm, the centre of the first pixel in the patient (LPS).
      cosines: (2, 3), directions in which columns and rows are counted.
      spacing: mm (between rows, between columns).
      thickness: mm and the attribute that says so, for a slice that has no neighbour; None if
        there is none.
      slope, intercept: of the rescaling; None where the file has none.
      modality, series, frame, image_type: Modality, the UIDs of series and frame of reference,
        ImageType.
      words: ProtocolName and SeriesDescription, upper case.
      stored: see `Stored`.
    """

    path: Path
    file_bytes: int
    shape: tuple[int, int]
    position: np.ndarray
    cosines: np.ndarray
    spacing: tuple[float, float]
    thickness: tuple[float, str] | None
    slope: float | None
    intercept: float | None
    modality: str
    series: str
    frame: str
    image_type: tuple[str, ...]
    words: str
    stored: Stored


def open_dataset(path: Path, *, pixels: bool) -> pydicom.Dataset:
    """Opens a file with pydicom, without its pixels unless they are asked for.

    Raises DataError: no regular file, no DICOM, truncated, or larger inside than its header says.
    """
    with reading.naming(path, "a DICOM file"):
        content = reading.read_bytes(path, limit=LARGEST)
        file = io.BytesIO(content)  # reads never go beyond its end, whatever length is claimed
        try:
            preamble = read_preamble(file, False)
        except InvalidDicomError as error:
            raise DataError(
                f"{path}: is not a DICOM file (no 'DICM' after 128 bytes); remove it from the "
                "series"
            ) from error
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            return _deflated(path, memoryview(content)[file.tell() :], preamble, meta, pixels)
        file.seek(0)
        return read_partial(file, _Until(path, pixels=pixels))


def read(path: Path, data: pydicom.Dataset) -> Slice:
    """Reads the header of one grey slice with a place in the patient.

    Raises DataError: the file holds anything else, or a value of its header makes no sense.
    """
    with reading.naming(path):
        header = _Header(path, data)
        _check_kind(path, header)
        if missing := [name for name in _NEEDED if not header.has(name)]:
            raise DataError(
                f"{path}: has no {' and no '.join(missing)}, so where its pixels lie and what they "
                "mean is not known. Export the series again with its geometry (not a secondary "
                "capture)"
            )
        cosines = np.array(header.numbers("ImageOrientationPatient", 6)).reshape(2, 3)
        if not np.allclose(cosines @ cosines.T, np.eye(2), atol=0.01):
            raise DataError(
                f"{path}: ImageOrientationPatient is {cosines.ravel().tolist()}; two unit vectors "
                "at right angles are expected"
            )
        return Slice(
            path=path,
            file_bytes=path.stat().st_size,
            shape=(header.whole("Rows", 1, _MOST), header.whole("Columns", 1, _MOST)),
            position=np.array(
                header.numbers("ImagePositionPatient", 3, low=-_FAR_MM, high=_FAR_MM)
            ),
            cosines=cosines,
            spacing=tuple(header.numbers("PixelSpacing", 2, low=_MM[0], high=_MM[1])),
            thickness=_thickness(header),
            slope=_slope(path, header),
            intercept=header.number("RescaleIntercept", low=-1e12, high=1e12),
            modality=header.text("Modality"),
            series=header.text("SeriesInstanceUID"),
            frame=header.text("FrameOfReferenceUID"),
            image_type=header.texts("ImageType"),
            words=f"{header.text('ProtocolName')} {header.text('SeriesDescription')}".upper(),
            stored=_stored(path, header),
        )


class _Until:
    """Stop rule for reading: before or behind the pixels, and in endless small attributes."""

    def __init__(self, path: Path, *, pixels: bool):
        self.path, self.last, self.count = path, 0x7FE00010 if pixels else 0x7FE00007, 0
        self.behind = False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self.count += 1
        if self.count > _ATTRIBUTES:
            raise DataError(
                f"{self.path}: has more than {_ATTRIBUTES} attributes; it is damaged, "
                f"{reading.AGAIN}"
            )
        stop, self.behind = self.behind or tag > self.last, tag == self.last
        return stop


class _Header:
    """Values of a dataset, each of its expected type, or an error that names it and the file."""

    def __init__(self, path: Path, data: pydicom.Dataset):
        self.path, self.data = path, data

    def get(self, name: str) -> Any:
        """Value as pydicom gives it; None if the attribute is absent or empty."""
        try:
            value = self.data.get(name)
            absent = value is None or (hasattr(value, "__len__") and len(value) == 0)
            return None if absent else value
        except Exception as error:
            raise self.wrong(name, f"cannot be read ({error})") from error

    def has(self, name: str) -> bool:
        return self.get(name) is not None

    def wrong(self, name: str, what: str) -> DataError:
        return DataError(f"{self.path}: {name} {what}; repair the header or {reading.AGAIN}")

    def numbers(
        self, name: str, count: int, low: float = -math.inf, high: float = math.inf
    ) -> list[float]:
        value = self.get(name)
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        values = list(value) if several else [value]
        try:
            found = [float(v) for v in values if not isinstance(v, bytes)]
        except (TypeError, ValueError, ArithmeticError):
            found = []
        fits = all(math.isfinite(v) and low <= v <= high for v in found)
        if len(values) != count or len(found) != count or not fits:
            limits = f" from {low:g} to {high:g}" if math.isfinite(high) else ""
            many = f"{count} finite numbers" if count > 1 else "one finite number"
            shown = " ".join(str(value).split())[:100]
            raise self.wrong(name, f"is {shown}, but {many}{limits} must be there")
        return found

    def number(self, name: str, low: float, high: float) -> float | None:
        return self.numbers(name, 1, low, high)[0] if self.has(name) else None

    def whole(self, name: str, low: int, high: int) -> int:
        value = self.numbers(name, 1, low, high)[0]
        if value != int(value):
            raise self.wrong(name, f"is {value}, but a whole number must be there")
        return int(value)

    def text(self, name: str) -> str:
        value = self.get(name)
        return "" if value is None else str(value).strip()

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.get(name)
        values = [] if value is None else [value] if isinstance(value, str) else list(value)
        return tuple(str(v).strip().upper() for v in values)


def _check_kind(path: Path, header: _Header) -> None:
    """Raises DataError for whatever is not one slice of grey values."""
    frames, samples = header.get("NumberOfFrames") or 1, header.get("SamplesPerPixel") or 1
    if (int(frames), int(samples)) != (1, 1):
        raise DataError(
            f"{path}: holds {frames} frames of {samples} colours; one grey slice in each file is "
            "expected. Convert an enhanced (multi-frame) file to NIfTI and give that instead"
        )
    groups = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    if any(header.has(name) for name in groups):
        raise DataError(f"{path}: is an enhanced (multi-frame) file. {_CONVERT}")
    if _is_mosaic(header):
        raise DataError(
            f"{path}: is a Siemens mosaic, many slices side by side in one image. {_CONVERT}"
        )
    kind = header.text("PhotometricInterpretation")
    if kind not in ("MONOCHROME2", ""):
        inverted = "its smallest value is white; tools differ in whether they invert such values"
        colours = "its values are colours or indices of them, no measurements"
        raise DataError(
            f"{path}: PhotometricInterpretation is {kind}: "
            f"{inverted if kind == 'MONOCHROME1' else colours}. MONOCHROME2 is expected; export "
            "the original series of the scanner"
        )
    if header.has("ModalityLUTSequence"):
        raise DataError(
            f"{path}: its values are indices into a table (ModalityLUTSequence); only "
            f"RescaleSlope and RescaleIntercept are applied here. {_CONVERT}"
        )


def _is_mosaic(header: _Header) -> bool:
    if any("MOSAIC" in value for value in header.texts("ImageType")):
        return True
    with contextlib.suppress(Exception):  # private headers follow no standard, and may be absent
        block = header.data.private_block(0x0019, "SIEMENS MR HEADER")
        if 0x0A in block and int(block[0x0A].value) > 1:
            return True
    with contextlib.suppress(Exception):
        protocol = header.data.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value
        name = b"NumberOfImagesInMosaic"
        # Name (64 bytes), five numbers, four more before the first value, which is text.
        value = protocol[protocol.index(name) + 64 + 20 + 16 :][:12]
        return int(re.match(rb"\s*(\d+)", value)[1]) > 1
    return False


def _thickness(header: _Header) -> tuple[float, str] | None:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        with contextlib.suppress(DataError):  # needed for single slices only
            if (value := header.number(name, *_MM)) is not None:
                return value, name
    return None


def _slope(path: Path, header: _Header) -> float | None:
    slope = header.number("RescaleSlope", low=-1e12, high=1e12)
    if slope is not None and abs(slope) < 1e-12:
        raise DataError(f"{path}: RescaleSlope is {slope:g}, which makes all pixels equal")
    return slope


def _stored(path: Path, header: _Header) -> Stored:
    allocated = header.whole("BitsAllocated", 1, 64)
    bits = header.whole("BitsStored", 1, 64)
    signed = bool(header.whole("PixelRepresentation", 0, 1))
    high = header.whole("HighBit", 0, 63) if header.has("HighBit") else bits - 1
    if allocated not in (8, 16, 32) or bits > allocated or high != bits - 1:
        raise DataError(
            f"{path}: BitsAllocated is {allocated}, BitsStored {bits}, HighBit {high}; 8, 16 or 32 "
            "bits, no more stored than allocated, and the highest one less than the stored are "
            "expected"
        )
    padding = None
    with contextlib.suppress(DataError):  # it only says which pixels are none
        padding = header.number("PixelPaddingValue", low=-(2.0**63), high=2.0**63)
    if padding is not None and signed and padding >= 2 ** (allocated - 1):
        padding -= 2**allocated  # written as if it had no sign
    return Stored(allocated, bits, signed, None if padding is None else int(padding))


def _deflated(
    path: Path, packed: memoryview, preamble: bytes, meta: pydicom.Dataset, pixels: bool
) -> pydicom.FileDataset:
    """Reads a dataset that is compressed as a whole, inflating no more than it should hold."""
    inflater = reading.Inflater(path, packed, "deflate")
    most = len(packed) * reading.DEFLATE_RATIO
    file = io.BytesIO(inflater.read(min(_HEAD, most)))
    head = read_dataset(file, False, True, stop_when=_Until(path, pixels=False))
    if pixels:
        header = _Header(path, head)
        sizes = [header.whole(name, 1, 65535) for name in ("Rows", "Columns", "BitsAllocated")]
        frames, samples = header.get("NumberOfFrames") or 1, header.get("SamplesPerPixel") or 1
        promised = math.prod(sizes) * int(frames) * int(samples) // 8
        missing = file.tell() + promised - inflater.done
        rest = inflater.read(missing) if missing > 0 else b""
        rest += inflater.read(min(_TAIL, most - inflater.done))  # padding, signatures
        inflater.finish()
        until = _Until(path, pixels=True)
        head = read_dataset(io.BytesIO(file.getvalue() + rest), False, True, stop_when=until)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian  # as it is now
    found = pydicom.FileDataset(
        None, head, preamble, pydicom.dataset.FileMetaDataset(meta), False, True
    )
    found.set_original_encoding(False, True, head._character_set)
    return found
