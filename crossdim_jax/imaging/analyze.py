"""Read Analyze 7.5 volumes: a header `.hdr` of 348 bytes and the voxels in an `.img` beside it.

The format does not say which way the axes run, and programs differ: SPM and FSL take the first axis
to run to the left, nibabel and others to the right. So left and right are only known where somebody
says it, and nothing is read before.
"""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, nifti_header, notes
from crossdim_jax.imaging.geometry import Geometry
from crossdim_jax.storage import reading
from crossdim_jax.storage.reading import AGAIN, naming, open_regular

OPTION = "--config.challenge.analyze_axes"
_SIZE = 348
_SLACK = 65536  # bytes that may follow the voxels: some programs pad


def read_analyze(path: str | os.PathLike, axes: str | None) -> tuple[np.ndarray, Geometry]:
    """Reads an `.hdr` file and the `.img` file beside it.

    Args:
      path: of the header.
      axes: the direction in which each axis on disk grows, such as "LAS" (left, anterior,
        superior); None refuses the file, since its header cannot say it. The image's centre is put
        at 0 mm.

    Returns:
      The array, (z, y, x) or (z, y, x, c) in LPS in the file's own type and native byte order, and
      its geometry.

    Raises:
      DataError: the direction is not known; a file is missing or damaged; the voxels are fewer or
        more than the header says; their type is no real number; a size is not positive. The message
        names the file.
    """
    path = Path(path)
    with naming(path, "an Analyze 7.5 header"):
        with open_regular(path) as file:
            block = file.read(nifti_header.SIZE)
        fields = _fields(path, block)
        if axes is None or not is_order(axes):
            said = "" if axes is None else f" ({axes!r} is no such order)"
            raise DataError(
                f"{path}: is an Analyze 7.5 file, which does not say which way its axes run, and "
                "programs differ in left and right. Convert it to .nii.gz with the program that "
                f"wrote it, or say how they run, {OPTION}=LAS (left, anterior, superior){said}"
            )
        shape = _shape(path, fields)
        sizes = np.array(fields["pixdim"][1:4], float)
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            raise DataError(
                f"{path}: its pixdim is {sizes.tolist()}; positive millimetres are expected, "
                "without them no distance or volume can be told"
            )
        dtype = fields.get_data_dtype()
        if dtype.kind not in "iuf" or dtype.hasobject:
            raise DataError(f"{path}: voxels are of type {dtype}; real numbers are expected")
        affine = _affine(shape[:3], sizes, axes)
        grid.check_affine(path, affine)
        array = np.frombuffer(_voxels(path, fields, shape, dtype), dtype).reshape(shape, order="F")
        array = array.astype(dtype.newbyteorder("="), copy=False)
        geometry = Geometry.from_affine(path, shape[:3], affine, array.dtype)
        return geometry.to_lps(array), geometry


def is_order(axes: str) -> bool:
    """True for the directions of three different axes, such as "LAS"."""
    return len(axes) == 3 and all(sum(a in c for a in axes) == 1 for c in ("LR", "PA", "IS"))


def voxels_file(path: str | os.PathLike) -> Path:
    """The file of a header's voxels."""
    path = Path(path)
    return reading.beside(path, path.with_suffix(".IMG" if path.suffix.isupper() else ".img").name)


def _fields(path: Path, block: bytes) -> nib.AnalyzeHeader:
    """The header. Raises DataError if it is none, or is that of a NIfTI pair."""
    if len(block) >= _SIZE and block[344:347] in (b"ni1", b"n+1"):
        nifti_header.parse(path, block)  # which refuses a pair, with a remedy
        raise DataError(f"{path}: is a NIfTI file in one piece; give it the ending .nii")
    if len(block) < _SIZE or not nib.AnalyzeHeader.may_contain_header(block[:_SIZE]):
        raise DataError(
            f"{path}: is not an Analyze 7.5 header (begins with {block[:8]!r}); {AGAIN}"
        )
    fields = nib.AnalyzeHeader(block[:_SIZE], check=False)
    scale = nib.Spm99AnalyzeHeader(block[:_SIZE], check=False)["scl_slope"]
    if scale not in (0, 1):
        notes.once(
            f"{path}: holds a scale of intensities as SPM writes it ({float(scale):g}), which "
            "other programs do not know; it is not applied"
        )
    return fields


def _shape(path: Path, fields: nib.AnalyzeHeader) -> tuple[int, ...]:
    """(i, j, k) or (i, j, k, c)."""
    rank = int(fields["dim"][0])
    shape = tuple(int(n) for n in fields["dim"][1 : rank + 1]) if 2 <= rank <= 4 else ()
    if not shape or min(shape) < 1:
        found = fields["dim"].tolist()
        raise DataError(f"{path}: its dim is {found}; 2 to 4 axes of at least 1 are expected")
    shape = (*shape, 1)[:3] if rank == 2 else shape
    return shape[:3] if shape[3:] == (1,) else shape


def _affine(shape: tuple[int, ...], sizes: np.ndarray, axes: str) -> np.ndarray:
    ornt = nib.orientations.axcodes2ornt(axes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (to, sign) in enumerate(ornt):
        affine[int(to), axis] = sign * sizes[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _voxels(
    path: Path, fields: nib.AnalyzeHeader, shape: tuple[int, ...], dtype: np.dtype
) -> bytes:
    """Exactly the promised bytes of the file beside the header."""
    source = voxels_file(path)
    offset = float(fields["vox_offset"])
    if not (0 <= offset < 2**31 and offset % 1 == 0):
        raise DataError(f"{path}: its vox_offset is {offset:g}; a whole number is expected")
    promised = int(offset) + int(np.prod(shape, dtype=object)) * dtype.itemsize
    try:
        file = reading.open_beside(path, source)
    except DataError as error:
        raise DataError(f"{error}; {path} is the header of its voxels") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if not promised <= size <= promised + _SLACK:
            raise DataError(
                f"{source}: has {size} bytes, but {path} promises {promised} (dim {shape}, "
                f"{dtype.name}); {AGAIN}"
            )
        file.seek(int(offset))
        return file.read(promised - int(offset))
