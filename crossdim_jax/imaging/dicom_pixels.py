"""Pixels of one DICOM slice.

The size that a header claims is compared with the bytes that are there before anything is decoded.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import RLELossless

from crossdim_jax.errors import DataError
from crossdim_jax.imaging.dicom_slice import Slice
from crossdim_jax.storage import reading

_RLE_RATIO = 64  # two bytes make 128 at the most
# An empty slice in JPEG 2000 has a hundred bytes: small images may come of next to nothing.
_RATIO, _FREE = 1000, 1 << 26


def read(record: Slice, data: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """Reads pixels (row, column) float32, with slope and intercept; and how many are padding.

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
            'Install one (pip install "crossdim_jax[formats]"), or decompress the series '
            "(gdcmconv --raw IN OUT, or dcmdjpeg IN OUT)"
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
    """Size (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 image by its header; None: no header.

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
    """True if a decoder for a compressed transfer syntax is installed."""
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _values(record: Slice, stored: np.ndarray) -> tuple[np.ndarray, int]:
    """Values of the stored bits, and how many are padding.

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
