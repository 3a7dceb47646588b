"""Read PNG files of unknown origin: only PNG is decoded, and no more than it promises."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from crossdim_jax.errors import DataError
from crossdim_jax.storage import reading

_BEGIN = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by its type of colour
_MODES = {0: "grey", 2: "'RGB'", 3: "'P' (a palette)", 4: "'LA'", 6: "'RGBA'"}
# Adam7: first row and column, steps between rows and columns, of each pass.
_PASSES = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4)),
    *((0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


class _Head(NamedTuple):
    """Content of the chunk IHDR."""

    columns: int
    rows: int
    depth: int
    colour: int
    compression: int
    filter: int
    interlace: int


def read_grey(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads a PNG of 1 to 8 bits of grey, (row, column): bool for 1-bit files, else uint8.

    Every checksum is verified, and the pixels are counted before an image is made of them.

    Args:
      path: of the file.
      size: (rows, columns) that it must have.

    Raises DataError: it is no PNG (whatever its name says), is truncated or damaged, has several
    frames, colours or 16 bits, or another size.
    """
    path = Path(path)
    with reading.naming(path, "a PNG file"):
        head, chunks = _parts(path)
        _check_grey(path, head)
        if (head.rows, head.columns) != size:
            raise DataError(
                f"{path}: has {head.rows} x {head.columns} pixels, but its slice has "
                f"{size[0]} x {size[1]}; the masks must be those of this series, unscaled"
            )
        return _pixels(path, head, chunks)


def read(path: Path, *, palette: bool = False) -> np.ndarray:
    """A PNG of any kind, (row, column) or (row, column, c): bool, uint8 or uint16.

    Args:
      path: of the file.
      palette: True accepts a palette and gives its indices; False refuses it.

    Raises DataError: as `read_grey`, but for grey values, colours and sizes of every kind that are
    decoded as they are stored.
    """
    path = Path(path)
    with reading.naming(path, "a PNG file"):
        head, chunks = _parts(path)
        if head.colour == 3 and not palette:
            raise DataError(
                f"{path}: is a PNG of mode {_MODES[3]}, whose values are indices of colours; save "
                "it in grey or RGB"
            )
        if head.colour and head.depth == 16:
            raise DataError(
                f"{path}: has 16 bits for each colour, which would be cut to 8; save it with 8 "
                "bits, or each colour in a 16-bit grey file"
            )
        return _pixels(path, head, chunks)


def _parts(path: Path) -> tuple[_Head, list[tuple[bytes, bytes]]]:
    """The header and all chunks, undamaged."""
    content = reading.read_bytes(path)
    if not content.startswith(_BEGIN):
        raise DataError(
            f"{path}: is not a PNG file, whatever its name says (begins with {content[:8]!r}); "
            "a PNG file is expected"
        )
    chunks = list(_chunks(path, content))
    return _head(path, chunks), chunks


def _pixels(path: Path, head: _Head, chunks: list[tuple[bytes, bytes]]) -> np.ndarray:
    """The decoded pixels, which are counted first."""
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    inflater = reading.Inflater(path, packed, "zlib")
    promised = _bytes_of(head)
    if len(inflater.read(promised)) < promised:
        raise DataError(f"{path}: holds fewer pixels than its header says; {reading.AGAIN}")
    inflater.finish()
    # Only what the pixels need: no texts, profiles or frames.
    plain = _BEGIN + _chunk(b"IHDR", chunks[0][1])
    plain += b"".join(_chunk(kind, data) for kind, data in chunks if kind == b"PLTE")
    plain += _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")
    with Image.open(io.BytesIO(plain), formats=("PNG",)) as image:
        return np.asarray(image)


def _chunks(path: Path, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks up to IEND, (kind, data), with checksums verified."""
    at, kind = len(_BEGIN), b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise DataError(f"{path}: cannot be read, the file is truncated; {reading.AGAIN}")
        length = int.from_bytes(content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        checksum = content[at + 8 + length : at + 12 + length]
        if len(checksum) < 4:
            raise DataError(f"{path}: cannot be read, the file is truncated; {reading.AGAIN}")
        if zlib.crc32(kind + data) != int.from_bytes(checksum):
            raise DataError(
                f"{path}: cannot be read, the file is damaged (checksum of {kind!r}); "
                f"{reading.AGAIN}"
            )
        yield kind, data
        at += 12 + length


def _head(path: Path, chunks: list[tuple[bytes, bytes]]) -> _Head:
    kind, data = chunks[0]
    if kind != b"IHDR" or len(data) != 13:
        raise DataError(f"{path}: begins with {kind!r}, not with a PNG header; {reading.AGAIN}")
    head = _Head(*struct.unpack(">IIBBBBB", data))
    if any(kind == b"acTL" for kind, _ in chunks):
        raise DataError(f"{path}: is an animated PNG of several frames; a single one is expected")
    kinds = head.colour in _SAMPLES and head.depth in (1, 2, 4, 8, 16)
    if not kinds or head.compression or head.filter or head.interlace > 1:
        raise DataError(f"{path}: has a PNG header that makes no sense; {reading.AGAIN}")
    return head


def _check_grey(path: Path, head: _Head) -> None:
    if head.colour != 0 or head.depth == 16:
        what = _MODES.get(head.colour, head.colour) if head.colour else "16-bit grey"
        raise DataError(
            f"{path}: is a PNG of mode {what}; a mask is 1-bit or 8-bit grey. Save it without "
            "colours or a palette"
        )


def _bytes_of(head: _Head) -> int:
    """Number of bytes before compression, each row with a byte for its filter."""
    passes = _PASSES if head.interlace else ((0, 0, 1, 1),)
    total, bits = 0, head.depth * _SAMPLES[head.colour]
    for top, left, down, across in passes:
        rows = max(0, -(-(head.rows - top) // down))
        columns = max(0, -(-(head.columns - left) // across))
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
