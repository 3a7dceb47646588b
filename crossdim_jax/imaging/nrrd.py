"""Read and write NRRD volumes: one `.nrrd`, or a header `.nhdr` and the file of voxels it names.

Arrays are `(z, y, x)` in LPS, `(z, y, x, c)` for an image with an axis of channels; a 2-D image is
`(1, row, column)` as on disk. Without a named space the axes are taken for LPS, as ITK takes them,
and that is said.

The reader is our own since its libraries open whatever file a header names, and decompress without
end; here a header's sizes are compared with the bytes that are there before anything is allocated.
"""

import bz2
import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import notes, nrrd_header
from crossdim_jax.imaging.geometry import Geometry
from crossdim_jax.imaging.nrrd_header import Header
from crossdim_jax.storage.files import write_bytes, write_text, writing
from crossdim_jax.storage.reading import AGAIN, Inflater, beside, naming, open_beside, open_regular

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_TEXT_BYTES = 64  # of one number and what separates it from the next
# bzip2 makes 900 kB of 40 bytes; images are no such thing, and small ones may be.
_RATIO, _FREE = 1000, 1 << 26
_PIECE = 1 << 20


def read_nrrd(path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
    """Reads an `.nrrd` file, or an `.nhdr` file and the voxels it names.

    Args:
      path: of the header; voxels may be raw, text, gzip or bzip2.

    Returns:
      The array (z, y, x) or (z, y, x, c) in the file's own type and native byte order, and its
      geometry.

    Raises:
      DataError: header or voxels are missing or damaged; the voxels are fewer or more than the
        header says; their file is not beside the header; type, encoding or space are unknown; the
        spacing is absent or not positive. The message names the file.
    """
    path = Path(path)
    with naming(path, "an NRRD volume"):
        with open_regular(path) as file:
            header = nrrd_header.parse(path, file.read(nrrd_header.BYTES))
        values = _values(path, header)
        native = values.astype(header.dtype.newbyteorder("="), copy=False)
        voxels = native.reshape(header.sizes, order="F")
        if header.channel is not None:
            voxels = np.moveaxis(voxels, header.channel, -1)
        rank = len(header.sizes) - (header.channel is not None)
        if rank == 2:
            voxels = voxels[:, :, None]
        if header.channel is not None and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        if header.assumed:
            notes.once(
                f"{path}: names no anatomical space; its axes are taken for LPS, as ITK does"
            )
        geometry = Geometry.from_affine(
            path, voxels.shape[:3], header.affine, native.dtype, oriented=header.oriented
        )
        return geometry.to_lps(voxels), geometry


def voxels_file(path: str | os.PathLike) -> Path:
    """The file that a header says its voxels are in, itself if they follow it.

    Raises DataError, naming the file, if the header is missing or damaged.
    """
    path = Path(path)
    with naming(path, "an NRRD volume"), open_regular(path) as file:
        return _source(path, nrrd_header.parse(path, file.read(nrrd_header.BYTES)))


def write_nrrd(
    path: str | os.PathLike, array: np.ndarray, geometry: Geometry, dtype: object = np.uint8
) -> Path:
    """Writes a volume on the grid of `geometry`, compressed; a reader sees all of it or nothing.

    Args:
      path: ends in `.nrrd`, or in `.nhdr` with the voxels in a `.raw.gz` beside it; its folder is
        created.
      array: in the order of `geometry`, whose values `dtype` holds exactly if it is an integer
        type.
      geometry: of the file the volume belongs to.
      dtype: type on disk.

    Returns:
      The path.

    Raises:
      DataError: the shape, the type or a value does not fit, or the folder cannot be written to.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if path.suffix not in (".nrrd", ".nhdr"):
        raise DataError(f"{path}: the name must end in .nrrd or .nhdr")
    names = {code: name for name, code in reversed(nrrd_header.TYPES.items())}
    if dtype.str[1:] not in names:
        raise DataError(f"{path}: there is no such type as {dtype}; known: {list(names)}")
    disk = geometry.on_disk(path, array, dtype)
    voxels = zlib.compress(disk.astype(dtype.newbyteorder("<")).tobytes(order="F"), wbits=31)
    raw = path.with_suffix(".raw.gz")
    text = _format(geometry, names[dtype.str[1:]])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nrrd":
            write_bytes(path, f"{text}\n".encode() + voxels)
        else:
            path.unlink(missing_ok=True)  # an older header must not name newer voxels
            write_bytes(raw, voxels)
            write_text(path, f"{text}data file: {raw.name}\n")
    return path


def _format(geometry: Geometry, name: str) -> str:
    axes = (_RAS_TO_LPS @ geometry.affine[:3, :3]).T
    fields = {
        "type": name,
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, geometry.shape)),
        "space directions": " ".join(_vector(axis) for axis in axes),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(_RAS_TO_LPS @ geometry.affine[:3, 3]),
    }
    return "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items())


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value) + 0.0) for value in values)})"  # + 0.0 turns -0 into 0


def _source(path: Path, header: Header) -> Path:
    return path if header.data_file is None else beside(path, header.data_file)


def _values(path: Path, header: Header) -> np.ndarray:
    """Exactly the promised samples, (count,) in the type on disk."""
    source = _source(path, header)
    promised = header.count * header.dtype.itemsize
    with _of_header(path, source), open_beside(path, source) as file:
        size = os.fstat(file.fileno()).st_size
        begin = _begin(source, header, file, 0 if header.data_file else header.size)
        if header.encoding == "raw":
            there = size - begin - max(header.byte_skip, 0)
            if there < promised or (there > promised and header.byte_skip >= 0):
                raise _counted(source, path, max(there, 0), header)
            file.seek(size - promised)
            return np.frombuffer(file.read(promised), header.dtype)
        # Deflate makes nothing much longer than it is; text is longer by what a number takes.
        most = promised + promised // 64 + 65536
        if header.encoding == "ascii":
            most = header.count * _TEXT_BYTES + 65536
        if size - begin > most + max(header.byte_skip, 0):
            raise _counted(source, path, size - begin, header)
        file.seek(begin)
        content = file.read(size - begin)
        if header.byte_skip < 0:
            raise DataError(f"{path}: byte skip: -1; that is for raw voxels, not {header.encoding}")
        if header.encoding == "ascii":
            return _text(source, path, content[header.byte_skip :], header)
        if header.encoding == "gzip":
            found = _gunzip(source, content, header.byte_skip, promised)
        else:
            found = _bunzip(source, content, header.byte_skip, promised)
        if len(found) != promised:
            raise _counted(source, path, len(found), header)
        return np.frombuffer(found, header.dtype)


def _begin(source: Path, header: Header, file: object, begin: int) -> int:
    """Place where the encoded samples begin, behind the lines to skip."""
    if header.line_skip:
        file.seek(begin)
        for _ in range(header.line_skip):
            begin += len(file.readline(nrrd_header.BYTES))
    return begin


def _counted(source: Path, path: Path, there: int, header: Header) -> DataError:
    sizes = " x ".join(map(str, header.sizes))
    return DataError(
        f"{source}: holds {there} bytes of voxels, but {path} says {sizes} voxels of type "
        f"{header.dtype.name}, {header.encoding}; {AGAIN}"
    )


def _gunzip(source: Path, content: bytes, skip: int, promised: int) -> bytes:
    stream = Inflater(source, content, "gzip")
    stream.check_possible(skip + promised)
    while skip:
        skip -= len(piece := stream.read(min(skip, _PIECE)))
        if not piece:
            return b""
    found = stream.read(promised)
    if len(found) == promised:
        stream.finish()
    return found


def _bunzip(source: Path, content: bytes, skip: int, promised: int) -> bytes:
    """At most one byte more than is promised."""
    if skip + promised > len(content) * _RATIO + _FREE:
        raise DataError(
            f"{source}: its header promises {promised} bytes, which {len(content)} compressed ones "
            f"cannot be; the file is truncated or damaged, {AGAIN}"
        )
    pieces, wanted, rest = [], skip + promised + 1, content
    stream = bz2.BZ2Decompressor()
    while wanted > 0 and not stream.eof:
        piece = stream.decompress(rest, min(wanted, _PIECE))
        rest = b""
        if not piece and stream.needs_input:
            raise DataError(f"{source}: the compressed data are truncated; {AGAIN}")
        pieces.append(piece)
        wanted -= len(piece)
    return b"".join(pieces)[skip:]


def _text(source: Path, path: Path, content: bytes, header: Header) -> np.ndarray:
    words = content.split()
    if len(words) != header.count:
        raise DataError(
            f"{source}: holds {len(words)} numbers, but {path} says {header.count}; {AGAIN}"
        )
    parse = float if header.dtype.kind == "f" else int
    return np.array([parse(word) for word in words], header.dtype)


@contextlib.contextmanager
def _of_header(path: Path, source: Path) -> Iterator[None]:
    """Adds to an error about the voxels' file which header names it."""
    try:
        yield
    except DataError as error:
        if source == path or str(path) in str(error):
            raise
        raise DataError(f"{error}; {path} says that its voxels are there") from error
