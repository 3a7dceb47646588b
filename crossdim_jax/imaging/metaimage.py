"""Read and write MetaImage files: a text header `.mhd` and its voxels in `.raw` or `.zraw`, or both
in one `.mha`.

Arrays are `(k, j, i)` as on disk, `(frame, row, column)` for a film: images in this format often do
not lie in a patient, so no axis is turned unless it is asked for. A 2-D image has k = 1.

Source: the MetaIO documentation of the format's fields (ITK).
"""

import contextlib
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, notes
from crossdim_jax.imaging.geometry import Geometry
from crossdim_jax.storage.files import write_bytes, write_text, writing
from crossdim_jax.storage.reading import AGAIN, Inflater, beside, naming, open_beside, open_regular

# MetaIO fixes these sizes; its MET_LONG has four bytes on every platform.
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SPACING = ("ElementSpacing", "ElementSize")
_OFFSET = ("Offset", "Position", "Origin")
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_NIFTI_TO_META = np.diag([-1.0, -1.0, 1.0])  # RAS+ <-> MetaImage's LPS+
_HEADER_BYTES = 65536  # real headers have some fifteen lines
_AXIS = 2**31  # voxels along an axis, beyond anything


def read_mhd(
    path: str | os.PathLike, *, reorient: bool = False, channels: bool = False
) -> tuple[np.ndarray, Geometry]:
    """Reads an `.mhd` file and the voxels it names, or an `.mha` file that holds them.

    Voxels may be compressed (`CompressedData = True`) and in either byte order.

    Args:
      path: of the header.
      reorient: True turns the axes of a 3-D image to LPS, as `nifti.read_nifti` does.
      channels: True accepts several values a voxel, as a last axis.

    Returns:
      The array (k, j, i), or (z, y, x) if `reorient`, in the file's own type and native byte order;
      and its geometry.

    Raises:
      DataError: header or voxels are missing or damaged; the voxels are fewer or more than the
        header says; their file is not beside the header; their type is unknown; the spacing is
        absent or not positive. The message names the file.
    """
    path = Path(path)
    fields, header_end = _header(path)
    shape = _shape(path, fields)
    kind = np.dtype(_type(path, fields))
    count = _channels(path, fields, several=channels)
    affine = _affine(path, fields, len(shape))
    oriented = reorient and len(shape) == 3
    if oriented and not any(name in fields for name in _MATRIX):
        notes.once(f"{path}: has no {_MATRIX[0]}; its axes are taken for LPS, as ITK does")
    shape = (*shape, 1)[:3]
    raw = _voxels(path, fields, header_end, math.prod(shape) * count * kind.itemsize)
    order = ">" if any(_true(fields, name) for name in _ORDER) else "<"
    with naming(path):
        values = np.frombuffer(raw, kind.newbyteorder(order)).astype(kind)
        array = values.reshape((*shape[::-1], count) if count > 1 else shape[::-1])
    geometry = Geometry.from_affine(path, shape, affine, kind, oriented=oriented)
    return geometry.to_lps(array.transpose(2, 1, 0, *range(3, array.ndim))), geometry


def voxels_file(path: str | os.PathLike) -> Path:
    """File of the voxels that a header names; the header's own if they follow it.

    Raises DataError, naming the file, if the header is missing or damaged.
    """
    path = Path(path)
    return _source(path, _header(path)[0])


def read_mhd_label(path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
    """Reads a label file, (k, j, i) uint8.

    Raises DataError as `read_mhd`, or if a value is not a whole number from 0 to 255.
    """
    array, geometry = read_mhd(path)
    with np.errstate(invalid="ignore"):
        wrong = ~((array == np.rint(array)) & (array >= 0) & (array <= 255))
    if wrong.any():
        raise DataError(
            f"{path}: {int(wrong.sum())} voxels are not whole numbers from 0 to 255 "
            f"(the first is {array[wrong][0]!s}); a label map is expected"
        )
    return array.astype(np.uint8), geometry


def write_mhd(
    path: str | os.PathLike,
    array: np.ndarray,
    geometry: Geometry,
    dtype: object = np.uint8,
    *,
    compressed: bool = False,
) -> Path:
    """Writes a volume on the grid of `geometry`; a reader sees all of it or nothing.

    The voxels of an `.mhd` go to a `.raw` (`.zraw` if compressed) beside it and are complete before
    the header is there.

    Args:
      path: ends in `.mhd` or `.mha`; its folder is created.
      array: in the order of `geometry`, whose values `dtype` holds exactly if it is an integer
        type.
      geometry: of the file the volume belongs to.
      dtype: type on disk.
      compressed: whether the voxels are deflated.

    Returns:
      The path.

    Raises:
      DataError: the shape, the type or a value does not fit, or the folder cannot be written to.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if path.suffix not in (".mhd", ".mha"):
        raise DataError(f"{path}: the name must end in .mhd or .mha")
    names = {code: name for name, code in reversed(TYPES.items())}
    if (name := names.get(dtype.str[1:])) is None:
        raise DataError(f"{path}: there is no such element type as {dtype}; known: {list(names)}")
    disk = geometry.on_disk(path, array, dtype)
    voxels = disk.astype(dtype.newbyteorder("<")).tobytes(order="F")
    if compressed:
        voxels = zlib.compress(voxels)
    raw = path.with_suffix(".zraw" if compressed else ".raw")
    local = path.suffix == ".mha"
    source = "LOCAL" if local else raw.name
    text = _format(geometry, name, source, len(voxels) if compressed else None)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if local:
            write_bytes(path, text.encode() + voxels)
            return path
        path.unlink(missing_ok=True)  # an older header must not name newer voxels
        write_bytes(raw, voxels)
        write_text(path, text)
    return path


def _format(geometry: Geometry, element: str, raw: str, compressed_bytes: int | None) -> str:
    matrix = _NIFTI_TO_META @ geometry.affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    offset = _NIFTI_TO_META @ geometry.affine[:3, 3]
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed_bytes is not None),
        **({} if compressed_bytes is None else {"CompressedDataSize": str(compressed_bytes)}),
        # One axis after the other: the transpose of a matrix whose columns are the axes.
        "TransformMatrix": _numbers((matrix / spacing).T.ravel()),
        "Offset": _numbers(offset),
        "ElementSpacing": " ".join(f"{size:.7g}" for size in spacing),  # of float32
        "DimSize": " ".join(map(str, geometry.shape)),
        "ElementType": element,
        "ElementDataFile": raw,
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items())


def _numbers(values: np.ndarray) -> str:
    # + 0.0 turns -0 into 0; headers elsewhere store float32, so 1.2 may come as 1.20000005.
    return " ".join(f"{round(float(value), 6) + 0.0:.9g}" for value in values)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Header fields, and the byte where they end."""
    with open_regular(path) as file, naming(path, "a MetaImage header"):
        content = file.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    begin = 0
    while begin < len(content):
        end = content.find(b"\n", begin) + 1 or len(content)
        line, begin = content[begin:end], end
        key, equals, value = (part.strip() for part in line.decode("latin-1").partition("="))
        if not line.strip():
            continue
        if not equals:
            raise DataError(f"{path}: line {line[:60]!r} is not 'Name = value' as in a MetaImage")
        if fields.setdefault(key, value) != value:
            raise DataError(
                f"{path}: says {key[:60]} twice, {fields[key][:60]!r} and {value[:60]!r}; one is "
                "expected"
            )
        if key == "ElementDataFile":  # by definition the last
            return fields, end
    raise DataError(
        f"{path}: is no MetaImage header: it has no line 'ElementDataFile = ...' in its first "
        f"{len(content)} bytes"
    )


def _field(path: Path, fields: dict[str, str], names: tuple[str, ...], count: int) -> np.ndarray:
    """Reads `count` numbers of the first field of `names` that is present."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise DataError(f"{path}: has no {names[0]}; the header must say it")
    try:
        values = np.array([float(text) for text in fields[name].split()])
    except ValueError as error:
        raise DataError(
            f"{path}: {name} = {fields[name][:60]!r} is not a list of numbers"
        ) from error
    if len(values) != count or not np.isfinite(values).all():
        raise DataError(f"{path}: {name} = {fields[name][:60]!r}; expected {count} numbers")
    return values


def _shape(path: Path, fields: dict[str, str]) -> tuple[int, ...]:
    (ndim,) = _field(path, fields, ("NDims",), 1)
    if ndim not in (2, 3):
        raise DataError(f"{path}: NDims = {ndim:g}; images of 2 or 3 dimensions are expected")
    shape = _field(path, fields, ("DimSize",), int(ndim))
    if (shape < 1).any() or (shape > _AXIS).any() or (shape % 1).any():
        raise DataError(f"{path}: DimSize = {fields['DimSize']}; whole numbers from 1 are expected")
    return tuple(int(n) for n in shape)


def _type(path: Path, fields: dict[str, str]) -> str:
    name = fields.get("ElementType", "")
    if name not in TYPES:
        known = ", ".join(TYPES)
        raise DataError(f"{path}: ElementType = {name[:60]!r} is unknown; known: {known}")
    if "BinaryData" in fields and not _true(fields, "BinaryData"):
        raise DataError(f"{path}: BinaryData = False; voxels written as text are not read")
    return TYPES[name]


def _channels(path: Path, fields: dict[str, str], *, several: bool) -> int:
    """Values of a voxel."""
    count = _whole(path, fields, "ElementNumberOfChannels", 1, 1)
    if count > 1 and not several:
        raise DataError(
            f"{path}: ElementNumberOfChannels = {count}; images of one channel are expected"
        )
    return count


def _affine(path: Path, fields: dict[str, str], ndim: int) -> np.ndarray:
    spacing = _field(path, fields, _SPACING, ndim)
    if (spacing <= 0).any():
        raise DataError(
            f"{path}: the spacing is {spacing.tolist()}; positive millimetres are expected, "
            "without them no distance or volume can be told"
        )
    offset, axes = np.zeros(3), np.eye(3)
    if any(name in fields for name in _OFFSET):
        offset[:ndim] = _field(path, fields, _OFFSET, ndim)
    if any(name in fields for name in _MATRIX):
        axes[:ndim, :ndim] = _field(path, fields, _MATRIX, ndim * ndim).reshape(ndim, ndim).T
    affine = np.eye(4)
    with np.errstate(all="ignore"):  # what overflows is refused
        volume, lengths = np.linalg.det(axes), np.linalg.norm(axes, axis=0)
        affine[:3, :3] = _NIFTI_TO_META @ (axes * np.append(spacing, 1.0)[:3])
        affine[:3, 3] = _NIFTI_TO_META @ offset
    if not abs(volume) > 1e-6:
        raise DataError(f"{path}: TransformMatrix is not invertible")
    if not np.allclose(lengths, 1, rtol=0, atol=1e-3):
        raise DataError(
            f"{path}: the axes of TransformMatrix have the lengths {lengths.tolist()}; 1 is "
            "expected, the size of voxels is said by ElementSpacing"
        )
    grid.check_affine(path, affine)
    return affine


def _source(path: Path, fields: dict[str, str]) -> Path:
    """File of the voxels."""
    name = fields["ElementDataFile"]
    if name.split()[:1] == ["LIST"] or "%" in name or not name.isprintable() or not name:
        raise DataError(
            f"{path}: ElementDataFile = {name[:60]!r}; one file of voxels is expected, not one per "
            "slice"
        )
    return path if name.upper() == "LOCAL" else beside(path, name)


def _voxels(path: Path, fields: dict[str, str], header_end: int, expected: int) -> bytes:
    """Reads exactly `expected` bytes of voxels; no more is read or decompressed than that."""
    source = _source(path, fields)
    local = source == path
    compressed, skip = _true(fields, "CompressedData"), _whole(path, fields, "HeaderSize", -1, 0)
    with _of_header(path, source), open_beside(path, source) as file:
        size = os.fstat(file.fileno()).st_size
        begin = (header_end if local else 0) + max(skip, 0)
        if compressed:
            packed = _whole(path, fields, "CompressedDataSize", 1, max(size - begin, 0))
            # Deflate makes nothing much longer than it is.
            if begin + packed > size or packed > expected + expected // 64 + 65536:
                raise DataError(
                    f"{source}: holds {size} bytes, of which {packed} from byte {begin} cannot be "
                    f"{expected} compressed bytes of voxels; {AGAIN}"
                )
            file.seek(begin)
            return _inflated(source, file.read(packed), expected)
        there = size - begin
        if there < expected or (there > expected and skip >= 0):
            raise DataError(
                f"{source}: holds {max(there, 0)} bytes of voxels, but {path} says {expected} "
                f"(DimSize = {fields['DimSize'][:60]}, {fields['ElementType']}); {AGAIN}"
            )
        file.seek(begin if skip >= 0 else size - expected)  # -1: the voxels are the end
        return file.read(expected)


def _inflated(source: Path, content: bytes, expected: int) -> bytes:
    stream = Inflater(source, content, "zlib")
    found = stream.read(expected)
    if len(found) != expected:
        raise DataError(f"{source}: holds {len(found)} bytes of voxels, expected {expected}")
    stream.finish()
    return found


@contextlib.contextmanager
def _of_header(path: Path, source: Path) -> Iterator[None]:
    """Context manager that adds to an error about the voxels' file which header names it."""
    try:
        yield
    except DataError as error:
        if source == path or str(path) in str(error):
            raise
        raise DataError(f"{error}; {path} says that its voxels are there") from error


def _whole(path: Path, fields: dict[str, str], name: str, least: int, default: int) -> int:
    """Whole number from `least`, or `default` where the header has no such field."""
    if name not in fields:
        return default
    (value,) = _field(path, fields, (name,), 1)
    if value < least or value % 1:
        raise DataError(f"{path}: {name} = {fields[name]}; a whole number from {least} is expected")
    return int(value)


def _true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "False").strip().lower() in ("true", "1")
