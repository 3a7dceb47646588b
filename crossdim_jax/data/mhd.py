"""Read and write MetaImage files: a text header `.mhd` and its voxels in `.raw` or `.zraw`.

Arrays are `(k, j, i)` as on disk, `(frame, row, column)` for a film: images in this format often do
not lie in a patient, so no axis is turned. A 2-D image has k = 1.

Source: the MetaIO documentation of the format's fields (ITK).
"""

import os
import zlib
from pathlib import Path

import numpy as np

from crossdim_jax.data.images import Geometry
from crossdim_jax.errors import DataError
from crossdim_jax.files import write_bytes, write_text

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
_HEADER_LINES = 200  # real headers have some fifteen


def read_mhd(path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
    """Reads an `.mhd` file and the voxels it names, or an `.mha` file that holds them.

    Voxels may be compressed (`CompressedData = True`) and in either byte order.

    Returns:
      The array (k, j, i) in the file's own type and native byte order, and its geometry.

    Raises:
      DataError: header or voxels are missing or damaged; the voxels are fewer or more than the
        header says; their type is unknown; the spacing is absent or not positive. The message
        names the file.
    """
    path = Path(path)
    fields, local = _header(path)
    shape = _shape(path, fields)
    kind = np.dtype(_type(path, fields))
    affine = _affine(path, fields, len(shape))
    shape = (*shape, 1)[:3]
    raw = _voxels(path, fields, local, int(np.prod(shape)) * kind.itemsize)
    order = ">" if any(_true(fields, name) for name in _ORDER) else "<"
    array = np.frombuffer(raw, kind.newbyteorder(order)).reshape(shape[::-1]).astype(kind)
    return array, Geometry.from_affine(path, shape, affine, kind, oriented=False)


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

    The voxels go to a `.raw` (`.zraw` if compressed) beside it and are complete before the header
    is there.

    Args:
      path: ends in `.mhd`; its folder is created.
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
    if path.suffix != ".mhd":
        raise DataError(f"{path}: the name must end in .mhd")
    names = {code: name for name, code in reversed(TYPES.items())}
    if (name := names.get(dtype.str[1:])) is None:
        raise DataError(f"{path}: there is no such element type as {dtype}; known: {list(names)}")
    if array.shape != geometry.shape_zyx:
        raise DataError(
            f"{path}: the volume has shape {array.shape}, but the grid of {geometry.path} has "
            f"{geometry.shape_zyx}"
        )
    disk = geometry.from_lps(array).astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(disk, geometry.from_lps(array)):
        raise DataError(f"{path}: the values {array.min()} to {array.max()} do not fit {dtype}")
    voxels = disk.astype(dtype.newbyteorder("<")).tobytes(order="F")
    if compressed:
        voxels = zlib.compress(voxels)
    raw = path.with_suffix(".zraw" if compressed else ".raw")
    text = _format(geometry, name, raw.name, len(voxels) if compressed else None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an older header must not name newer voxels
        write_bytes(raw, voxels)
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check the folder") from error
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
        "ElementSpacing": _numbers(spacing),
        "DimSize": " ".join(map(str, geometry.shape)),
        "ElementType": element,
        "ElementDataFile": raw,
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items())


def _numbers(values: np.ndarray) -> str:
    # + 0.0 turns -0 into 0; headers elsewhere store float32, so 1.2 may come as 1.20000005.
    return " ".join(f"{round(float(value), 6) + 0.0:.9g}" for value in values)


def _header(path: Path) -> tuple[dict[str, str], bytes]:
    """The fields, and what follows them in the same file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    fields: dict[str, str] = {}
    rest = content
    for _ in range(_HEADER_LINES):
        line, _, rest = rest.partition(b"\n")
        key, equals, value = line.decode("latin-1").partition("=")
        if not line.strip():
            if not rest:
                break
            continue
        if not equals:
            raise DataError(f"{path}: line {line[:60]!r} is not 'Name = value' as in a MetaImage")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":  # by definition the last
            return fields, rest
    raise DataError(f"{path}: is no MetaImage header: it has no line 'ElementDataFile = ...'")


def _field(path: Path, fields: dict[str, str], names: tuple[str, ...], count: int) -> np.ndarray:
    """`count` numbers of the first of `names` that is there."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise DataError(f"{path}: has no {names[0]}; the header must say it")
    try:
        values = np.array([float(text) for text in fields[name].split()])
    except ValueError as error:
        raise DataError(f"{path}: {name} = {fields[name]!r} is not a list of numbers") from error
    if len(values) != count or not np.isfinite(values).all():
        raise DataError(f"{path}: {name} = {fields[name]!r}; expected {count} numbers")
    return values


def _shape(path: Path, fields: dict[str, str]) -> tuple[int, ...]:
    (ndim,) = _field(path, fields, ("NDims",), 1)
    if ndim not in (2, 3):
        raise DataError(f"{path}: NDims = {ndim:g}; images of 2 or 3 dimensions are expected")
    shape = _field(path, fields, ("DimSize",), int(ndim))
    if (shape < 1).any() or (shape % 1).any():
        raise DataError(f"{path}: DimSize = {fields['DimSize']}; whole numbers from 1 are expected")
    return tuple(int(n) for n in shape)


def _type(path: Path, fields: dict[str, str]) -> str:
    name = fields.get("ElementType", "")
    if name not in TYPES:
        raise DataError(f"{path}: ElementType = {name!r} is unknown; known: {', '.join(TYPES)}")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise DataError(
            f"{path}: ElementNumberOfChannels = {fields['ElementNumberOfChannels']}; images of one "
            "channel are expected"
        )
    return TYPES[name]


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
    affine[:3, :3] = _NIFTI_TO_META @ (axes * np.append(spacing, 1.0)[:3])
    affine[:3, 3] = _NIFTI_TO_META @ offset
    if abs(np.linalg.det(affine)) < 1e-12:
        raise DataError(f"{path}: TransformMatrix is not invertible")
    return affine


def _voxels(path: Path, fields: dict[str, str], local: bytes, expected: int) -> bytes:
    """Exactly `expected` bytes."""
    name = fields["ElementDataFile"]
    if name.split()[:1] == ["LIST"] or "%" in name or not name:
        raise DataError(
            f"{path}: ElementDataFile = {name!r}; one file of voxels is expected, not one per slice"
        )
    source = path if name.upper() == "LOCAL" else path.parent / name
    try:
        raw = local if source == path else source.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{source}: there is no such file, and {path} says that its voxels are there"
        ) from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error})") from error
    skip = int(_field(path, fields, ("HeaderSize",), 1)[0]) if "HeaderSize" in fields else 0
    if _true(fields, "CompressedData"):
        try:
            raw = zlib.decompress(raw[max(skip, 0) :])
        except zlib.error as error:
            raise DataError(
                f"{source}: the compressed voxels are truncated or damaged ({error}); copy or "
                "download it again"
            ) from error
    elif skip:
        raw = raw[skip:] if skip > 0 else raw[max(len(raw) - expected, 0) :]
    if len(raw) != expected:
        raise DataError(
            f"{source}: holds {len(raw)} bytes of voxels, but {path.name} says {expected} "
            f"(DimSize = {fields['DimSize']}, {fields['ElementType']}); copy or download it again"
        )
    return raw


def _true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "False").strip().lower() in ("true", "1")
