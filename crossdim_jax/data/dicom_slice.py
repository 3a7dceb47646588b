"""One DICOM file with one grey slice: its header as a plain record, and its pixels.

Every value of a header is read and checked here, once, and so leaves with the file's name if it
makes no sense. A size that a header claims is compared with the bytes that are there before
anything is decoded.
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
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from crossdim_jax.errors import DataError
from crossdim_jax.storage import reading

# Real files hold odd values in places that do not matter here; what matters is checked below.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

LARGEST = 1 << 30  # bytes of a file that holds one slice
_HEAD = 1 << 24  # bytes before the pixels of a deflated file
_TAIL = 1 << 20  # and behind them
_RLE_RATIO = 64  # two bytes make 128 at the most
# An empty slice in JPEG 2000 has a hundred bytes: small images may come of next to nothing.
_RATIO, _FREE = 1000, 1 << 26
_MM = (1e-3, 1e3)  # sizes of a pixel, distances of slices
_FAR_MM = 1e5
_MOST = 32767  # rows or columns that a NIfTI file can have
_NEEDED = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation"),
)
_CONVERT = "Convert the series to NIfTI with a tool that knows such files, and give that instead"


class Stored(NamedTuple):
    """How pixels are stored: bits of each, bits that count, sign, the value of padding if any."""

    allocated: int
    bits: int
    signed: bool
    padding: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """What the header of a file says.

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
    """The file as pydicom reads it, without its pixels unless they are wanted.

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
        return pydicom.dcmread(file, stop_before_pixels=not pixels)


def read(path: Path, data: pydicom.Dataset) -> Slice:
    """The record of one grey slice with a place in the patient.

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


def pixels(record: Slice, data: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """(row, column) float32, with slope and intercept; and how many of them are padding.

    Raises DataError: the pixels are fewer or more than the header says, or cannot be decoded.
    """
    path = record.path
    with reading.naming(path, "pixels as the header describes them"):
        if "PixelData" not in data:
            raise DataError(f"{path}: holds no pixels; the file is truncated or no image")
        content = data["PixelData"].value
        if not isinstance(content, bytes):
            raise DataError(f"{path}: PixelData is no sequence of bytes; the file is damaged")
        syntax = data.file_meta.get("TransferSyntaxUID")
        promised = math.prod(record.shape) * record.stored.allocated // 8
        if syntax is not None and syntax.is_encapsulated:
            _check_compressed(record, content, promised, syntax)
        else:
            _check_native(path, content, promised)
        # Bits that do not count are looked at below, not dropped.
        stored = pixel_array(data, correct_unused_bits=False)
        if stored.shape != record.shape:
            raise DataError(
                f"{path}: decodes to {stored.shape} pixels, expected {record.shape} (rows, "
                "columns); the file is damaged"
            )
        stored, padded = _values(record, stored)
        image = stored.astype(np.float32)
        if record.slope is not None:
            image *= np.float32(record.slope)
        if record.intercept is not None:
            image += np.float32(record.intercept)
        return image, padded


class _Header:
    """Values of a dataset, each as what it should be or an error that names it and the file."""

    def __init__(self, path: Path, data: pydicom.Dataset):
        self.path, self.data = path, data

    def get(self, name: str) -> Any:
        """The value as pydicom gives it; None if the attribute is absent or empty."""
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
    """A file whose dataset is compressed as a whole: no more is inflated than it says it holds."""
    inflater = reading.Inflater(path, packed, "deflate")
    most = len(packed) * reading.DEFLATE_RATIO
    file = io.BytesIO(inflater.read(min(_HEAD, most)))
    head = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >= 0x7FE00008)
    if pixels:
        header = _Header(path, head)
        sizes = [header.whole(name, 1, 65535) for name in ("Rows", "Columns", "BitsAllocated")]
        frames, samples = header.get("NumberOfFrames") or 1, header.get("SamplesPerPixel") or 1
        promised = math.prod(sizes) * int(frames) * int(samples) // 8
        missing = file.tell() + promised - inflater.done
        rest = inflater.read(missing) if missing > 0 else b""
        rest += inflater.read(min(_TAIL, most - inflater.done))  # padding, signatures
        inflater.finish()
        head = read_dataset(io.BytesIO(file.getvalue() + rest), False, True)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian  # as it is now
    found = pydicom.FileDataset(
        None, head, preamble, pydicom.dataset.FileMetaDataset(meta), False, True
    )
    found.set_original_encoding(False, True, head._character_set)
    return found


def _check_native(path: Path, content: bytes, promised: int) -> None:
    excess = len(content) - promised
    if excess < 0:
        raise DataError(
            f"{path}: the header promises {promised} bytes of pixels, {len(content)} are there; "
            f"the file is truncated or damaged, {reading.AGAIN}"
        )
    if excess > 1 and (excess > promised // 16 or any(content[promised:])):
        raise DataError(
            f"{path}: the header promises {promised} bytes of pixels, {len(content)} are there; "
            "rows or columns may be missing, export the series again"
        )


def _check_compressed(record: Slice, content: bytes, promised: int, syntax: Any) -> None:
    path = record.path
    if not _decodable(syntax):
        raise DataError(
            f"{path}: is compressed ({syntax.name}) and no decoder for that is installed. "
            "Install one (pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg), or "
            "decompress the series (gdcmconv --raw IN OUT, or dcmdjpeg IN OUT)"
        )
    most = len(content) * _RLE_RATIO if syntax == RLELossless else len(content) * _RATIO + _FREE
    if promised > most or len(content) > 2 * promised + (1 << 16):
        raise DataError(
            f"{path}: the header promises {promised} bytes of pixels, and {len(content)} "
            f"compressed ones cannot be these; the file is truncated or damaged, {reading.AGAIN}"
        )
    if syntax != RLELossless:
        # Decoders go by what the image inside says, whatever the header does.
        size = codestream_size(get_frame(content, 0, number_of_frames=1))
        if size != record.shape:
            raise DataError(
                f"{path}: the compressed image has {size} rows and columns, the header says "
                f"{record.shape}; the file is damaged, {reading.AGAIN}"
            )


def codestream_size(content: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 image by its own header; None: there is none.

    Source: ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1.
    """
    start = content.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0:  # JPEG 2000: extent and offset of the image
        right, low, left, top = (
            int.from_bytes(content[start + at : start + at + 4]) for at in (8, 12, 16, 20)
        )
        return low - top, right - left
    at = content.find(b"\xff\xd8", 0, 4096) + 2
    while 2 <= at < len(content) - 8:
        if content[at] != 0xFF:
            return None
        kind = content[at + 1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            rows, columns = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(rows), int.from_bytes(columns)
        standalone = kind == 0xFF or kind == 0x01 or 0xD0 <= kind <= 0xD8
        length = 0 if standalone else int.from_bytes(content[at + 2 : at + 4])
        at += 1 if kind == 0xFF else 2 + length
    return None


def _decodable(syntax: pydicom.uid.UID) -> bool:
    """Whether a decoder for a compressed transfer syntax is installed."""
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _values(record: Slice, stored: np.ndarray) -> tuple[np.ndarray, int]:
    """The values that the stored bits mean, and how many are padding.

    Unused bits may repeat the sign or be 0 (PS3.5, 8.1.1). Raises DataError where they are neither:
    they hold something else then, or the header is wrong, and to drop them would wrap values.
    """
    _, bits, signed, padding = record.stored
    inside = np.ones(stored.shape, bool) if padding is None else stored != padding
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if signed and (unextended := inside & (stored > high)).any():
        stored = np.where(unextended, stored - 2**bits, stored)
    if (wrong := stored[inside & ((stored < low) | (stored > high))]).size:
        raise DataError(
            f"{record.path}: {wrong.size} pixels have values such as {wrong[0]}, but {bits} bits "
            f"{'with' if signed else 'without'} a sign hold {low} to {high}. The header is wrong, "
            "or other bits hold an overlay: export the series again without overlays"
        )
    return stored, int(stored.size - np.count_nonzero(inside))
