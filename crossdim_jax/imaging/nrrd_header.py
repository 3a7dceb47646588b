"""The text header of an NRRD file, checked before anything is read or allocated on its word.

Source: the definition of the format, teem.sourceforge.net/nrrd/format.html.
"""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid

BYTES = 1 << 20  # of a header; 3D Slicer writes a dozen lines for each segment
_AXIS = 2**31  # samples along an axis, beyond anything
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        *("longlong", "long long", "long long int", "signed long long"),
        *("signed long long int", "int64", "int64_t"),
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
TYPES = {name: code for code, names in _TYPES.items() for name in names}
ENCODINGS = {
    "raw": "raw",
    "txt": "ascii",
    "text": "ascii",
    "ascii": "ascii",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}
# Spaces whose axes are a patient's, and the signs that turn them into RAS+.
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
}
_SPACES |= {"".join(word[0] for word in name.split("-")): _SPACES[name] for name in (*_SPACES,)}
_UNKNOWN = {"scanner-xyz": 3, "3d-right-handed": 3, "3d-left-handed": 3}  # and their axes
_SPATIAL = ("domain", "space")  # kinds of an axis
_UNITS_MM = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "": 1.0, "cm": 10.0, "m": 1000.0}
_UNITS_MM |= dict.fromkeys(("um", "µm", "μm", "micron", "micrometer", "micrometre"), 1e-3)


@dataclasses.dataclass(frozen=True)
class Header:
    """Header of an NRRD file, i.e. what it promises.

    Attributes:
      sizes: of all axes, fastest first.
      dtype: of the samples on disk.
      encoding: "raw", "ascii", "gzip" or "bzip2".
      affine: (4, 4), index (i, j, k) of the two or three spatial axes -> millimetres (RAS+).
      channel: the axis that is not spatial; None if all are.
      oriented: True if the axes are a patient's.
      assumed: True if they were only taken for a patient's, for want of a named space.
      data_file: name of the file of the samples; None: they follow the header.
      line_skip, byte_skip: what lies before the samples; -1 bytes: they are the end of the file.
      size: bytes of the header, where samples begin.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype
    encoding: str
    affine: np.ndarray
    channel: int | None
    oriented: bool
    assumed: bool
    data_file: str | None
    line_skip: int
    byte_skip: int
    size: int

    @property
    def count(self) -> int:
        """Samples in all."""
        return math.prod(self.sizes)


def parse(path: Path, content: bytes) -> Header:
    """Reads the header from the first `BYTES` bytes of a file.

    Raises DataError, naming the file, if it is none, or if sizes, type, encoding, spacing or place
    are absent or cannot be.
    """
    fields, size = _fields(path, content)
    dimension = _whole(path, fields, "dimension", 1, 16)
    sizes = _sizes(path, fields, dimension)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ENCODINGS:
        raise _wrong(path, "encoding", encoding, f"known: {', '.join(ENCODINGS)}")
    encoding = ENCODINGS[encoding]
    directions = _directions(path, fields, dimension)
    spatial, channel = _axes(path, fields, dimension, directions)
    affine, oriented, assumed = _place(path, fields, directions, spatial)
    name = fields.get("data file")
    if name is not None and (name.split()[:1] == ["LIST"] or "%" in name or not name.isprintable()):
        raise _wrong(
            path, "data file", name, "one file of voxels is expected; save it as one .nrrd"
        )
    return Header(
        sizes=sizes,
        dtype=_type(path, fields, encoding),
        encoding=encoding,
        affine=affine,
        channel=channel,
        oriented=oriented,
        assumed=assumed,
        data_file=name,
        line_skip=_whole(path, fields, "line skip", 0, BYTES, 0),
        byte_skip=_whole(path, fields, "byte skip", -1, 2**62, 0),
        size=size,
    )


def _wrong(path: Path, name: str, value: str, expected: str) -> DataError:
    return DataError(f"{path}: {name}: {value[:60]!r}; {expected}")


_ALIASES = {
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "centers": "centerings",
    "spaceorigin": "space origin",
}


def _fields(path: Path, content: bytes) -> tuple[dict[str, str], int]:
    """The fields in lower case, and where the samples begin."""
    if not re.match(rb"NRRD000[1-9]\r?\n", content):
        raise DataError(f"{path}: is not an NRRD file (begins with {content[:8]!r})")
    fields: dict[str, str] = {}
    at = content.index(b"\n") + 1
    while at < len(content):
        end = content.find(b"\n", at) + 1 or len(content)
        line, at = content[at:end].rstrip(b"\r\n"), end
        if not line:
            return fields, at
        text = line.decode("utf-8", "replace")
        if text.startswith("#") or re.match(r"[^:]*:=", text):  # a comment, a key of the user's
            continue
        key, colon, value = text.partition(": ")
        key = key.strip().lower().rstrip(":")
        key = _ALIASES.get(key, key)
        if not colon and not text.rstrip().endswith(":"):
            raise DataError(f"{path}: line {text[:60]!r} is not 'name: value' as in an NRRD header")
        if fields.setdefault(key, value.strip()) != value.strip():
            raise _wrong(path, key, value, f"but {fields[key][:60]!r} further up; one is expected")
    if "data file" not in fields or len(content) == BYTES:
        raise DataError(
            f"{path}: its header does not end with an empty line in its first {len(content)} "
            "bytes; it is truncated or damaged"
        )
    return fields, at


def _whole(
    path: Path, fields: dict[str, str], name: str, low: int, high: int, default: int | None = None
) -> int:
    if name not in fields and default is not None:
        return default
    text = fields.get(name, "")
    value = int(text) if re.fullmatch(r"-?\d{1,19}", text) else low - 1
    if not low <= value <= high:
        raise _wrong(path, name, text, f"a whole number from {low} to {high} is expected")
    return value


def _numbers(path: Path, name: str, texts: list[str], whole: str) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise _wrong(path, name, whole, "numbers are expected") from error


def _sizes(path: Path, fields: dict[str, str], dimension: int) -> tuple[int, ...]:
    text = fields.get("sizes", "")
    values = _numbers(path, "sizes", text.split(), text)
    if len(values) != dimension or not all(1 <= v < _AXIS and v % 1 == 0 for v in values):
        raise _wrong(path, "sizes", text, f"{dimension} whole numbers from 1 are expected")
    return tuple(int(v) for v in values)


def _type(path: Path, fields: dict[str, str], encoding: str) -> np.dtype:
    name = " ".join(fields.get("type", "").lower().split())
    if name not in TYPES:
        raise _wrong(path, "type", name, f"known: {', '.join(TYPES)}")
    dtype = np.dtype(TYPES[name])
    if dtype.itemsize == 1 or encoding == "ascii":
        return dtype
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None:
        raise _wrong(path, "endian", fields.get("endian", ""), "'little' or 'big' is expected")
    return dtype.newbyteorder(order)


def _vector(path: Path, name: str, text: str) -> list[float]:
    """A vector `(1,0,0)`."""
    found = re.fullmatch(r"\(([^()]*)\)", text)
    return _numbers(path, name, re.split(r"\s*,\s*", found[1].strip()) if found else [""], text)


def _directions(
    path: Path, fields: dict[str, str], dimension: int
) -> list[list[float] | None] | None:
    """The vector of each axis, None for one that is not spatial; None if the header has none."""
    if (text := fields.get("space directions")) is None:
        return None
    parts = re.findall(r"\([^()]*\)|[^\s()]+", text)
    found = [
        None if part.lower() == "none" else _vector(path, "space directions", part)
        for part in parts
    ]
    if len(found) != dimension:
        raise _wrong(path, "space directions", text, f"{dimension} vectors or 'none' are expected")
    return [None if vector and all(map(math.isnan, vector)) else vector for vector in found]


def _axes(
    path: Path,
    fields: dict[str, str],
    dimension: int,
    directions: list[list[float] | None] | None,
) -> tuple[list[int], int | None]:
    """The spatial axes, and the one of the channels if there is one."""
    if directions is not None:
        others = [axis for axis, vector in enumerate(directions) if vector is None]
    else:
        kinds = fields.get("kinds", "").lower().split() or ["domain"] * dimension
        sizes = fields.get("spacings", "").lower().split() or ["1"] * dimension
        if len(kinds) != dimension or len(sizes) != dimension:
            name = "kinds" if len(kinds) != dimension else "spacings"
            raise _wrong(path, name, fields[name], f"{dimension} are expected, one for each axis")
        others = [
            axis
            for axis, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
            if size == "nan" or kind not in (*_SPATIAL, "???", "none")
        ]
    spatial = [axis for axis in range(dimension) if axis not in others]
    if len(spatial) not in (2, 3) or len(others) > 1:
        raise DataError(
            f"{path}: has {len(spatial)} spatial axes and {len(others)} others (sizes: "
            f"{fields['sizes'][:60]}); an image of 2 or 3 spatial axes is expected, with one axis "
            "of channels at the most, whose 'space directions' is 'none'"
        )
    return spatial, others[0] if others else None


def _place(
    path: Path,
    fields: dict[str, str],
    directions: list[list[float] | None] | None,
    spatial: list[int],
) -> tuple[np.ndarray, bool, bool]:
    """The affine, whether it lies in a patient, and whether that was only assumed."""
    rank = len(spatial)
    signs, space = _space(path, fields, rank)
    if directions is None:
        axes = np.diag(_spacings(path, fields, spatial))
    elif any(len(directions[axis]) != rank for axis in spatial):
        text = fields["space directions"]
        raise _wrong(path, "space directions", text, f"vectors of {rank} numbers are expected")
    else:
        axes = np.array([directions[axis] for axis in spatial]).T
    origin = np.zeros(rank)
    if (text := fields.get("space origin")) is not None:
        vector = _vector(path, "space origin", text)
        if len(vector) != rank or not np.isfinite(vector).all():
            raise _wrong(path, "space origin", text, f"{rank} finite numbers are expected")
        origin = np.array(vector)
    affine = np.eye(4)
    affine[:rank, :rank], affine[:rank, 3] = axes, origin
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError(
            f"{path}: its voxels are {lengths[:rank].tolist()} mm large (space directions or "
            "spacings); positive millimetres are expected, without them no distance or volume can "
            "be told"
        )
    affine[:3] *= _unit(path, fields, rank)
    affine[2, 2] = affine[2, 2] if rank == 3 else 1.0
    affine = np.diag([*signs, 1.0]) @ affine
    grid.check_affine(path, affine)
    return affine, rank == 3, rank == 3 and not space


def _space(path: Path, fields: dict[str, str], rank: int) -> tuple[tuple[int, int, int], str]:
    """Signs to RAS+ and the name of the space; "" if that says nothing of a patient."""
    space = fields.get("space", "").lower()
    if space in _SPACES and rank == 3:
        return _SPACES[space], space
    if space and space not in _UNKNOWN:
        known = ", ".join((*_SPACES, *_UNKNOWN))
        raise _wrong(path, "space", space, f"for an image of {rank} spatial axes; known: {known}")
    return _SPACES["left-posterior-superior"], ""


def _spacings(path: Path, fields: dict[str, str], spatial: list[int]) -> list[float]:
    if (text := fields.get("spacings")) is None:
        raise DataError(
            f"{path}: has neither 'space directions' nor 'spacings'; the header must say the size "
            "of voxels, without it no distance or volume can be told"
        )
    values = _numbers(path, "spacings", text.split(), text)
    return [abs(values[axis]) for axis in spatial]


def _unit(path: Path, fields: dict[str, str], rank: int) -> float:
    """Millimetres of one unit of length."""
    texts = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if "space directions" not in fields:
        texts = [text for text in re.findall(r'"([^"]*)"', fields.get("units", "")) if text]
    units = {text.strip().lower() for text in texts[:rank]} or {""}
    if len(units) > 1 or not units <= set(_UNITS_MM):
        known = ", ".join(name for name in _UNITS_MM if name)
        raise _wrong(path, "units", ", ".join(sorted(units)), f"one of {known} is expected")
    return _UNITS_MM[units.pop()]
