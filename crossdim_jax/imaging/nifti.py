"""Read and write NIfTI volumes with their geometry.

Arrays are `(z, y, x)`, or `(z, y, x, c)` for 4-D files, in LPS orientation: x grows towards the
patient's left, y towards posterior, z towards superior, so `image[z]` is an axial slice as a
radiologist sees it. `Geometry` is what is needed to go back to the file's own grid.
"""

import io
import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, nifti_header, notes
from crossdim_jax.imaging.geometry import PLACE, Geometry
from crossdim_jax.imaging.nifti_header import Header
from crossdim_jax.storage.files import replacing, writing
from crossdim_jax.storage.reading import AGAIN, Inflater, naming, open_regular

__all__ = ["Geometry", "check_finite", "read_label", "read_nifti", "write_nifti"]

_GZIP = b"\x1f\x8b"
_HEAD = 65536  # bytes of a file in which its header lies, compressed or not
SLACK = 65536  # bytes that may follow the voxels: some programs pad


def read_nifti(
    path: str | os.PathLike, *, ndim: int | None = 3, reorient: bool = True
) -> tuple[np.ndarray, Geometry]:
    """Reads a `.nii` or `.nii.gz` file.

    Compression is recognised by content, not by name, and the checksum of compressed files is
    verified. The header's intensity scaling is applied; without one the file's own dtype is kept.

    Args:
      path: NIfTI-1 or NIfTI-2, single file.
      ndim: 3, or 4 for one file with a channel axis. Trailing axes of length one beyond `ndim`
        are dropped: some tools write a volume as (x, y, z, 1). A 2-D image is read as (x, y, 1).
        None for as many as the file has; the fifth axis of a vector image, (x, y, z, 1, c), is
        then its channels.
      reorient: False leaves the axes as they are, for images that do not lie in a patient: the
        array is then (k, j, i), for a film (frame, row, column).

    Returns:
      The array, (z, y, x) or (z, y, x, c) in LPS, and its geometry.

    Raises:
      DataError: missing, empty, truncated, damaged, not NIfTI, not numeric, of another rank, or
        without a usable affine. The message names the file.
    """
    path = Path(path)
    with naming(path, "a NIfTI volume"):
        header, content = _open(path)
        shape = _shape(path, header.shape, ndim)
        geometry = _geometry(path, header, (*shape, 1)[:3], reorient)
        for said in (*header.doubts, *grid.contradictions(geometry)):
            notes.once(f"{path}: {said}")
        spec = (header.shape, header.dtype, header.offset, *header.scaling)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite
            voxels = np.asanyarray(ArrayProxy(io.BytesIO(content), spec))
        return geometry.to_lps(voxels.reshape(shape, order="A")), geometry


def write_nifti(
    path: str | os.PathLike, array: np.ndarray, geometry: Geometry, dtype: object = np.uint8
) -> Path:
    """Writes a volume on the grid of `geometry`, all or nothing (temporary file, then rename).

    The affine, both form codes and matrices, and the units are those of the source file unless
    that contradicts itself, see `grid.placing`; the intensity scaling is none.

    Args:
      path: ends in `.nii` or `.nii.gz`; its folder is created.
      array: (z, y, x) in LPS, of the geometry's shape, whose values `dtype` holds exactly if it
        is an integer type.
      geometry: of the file the volume belongs to.
      dtype: type on disk.

    Returns:
      The path.

    Raises:
      DataError: the shape or a value does not fit, or the folder cannot be written to.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: the name must end in .nii or .nii.gz")
    disk = geometry.on_disk(path, array, dtype)
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(disk.shape)
    for name, value in grid.placing(geometry).items():
        if name != "pixdim":
            header[name] = value
        else:  # the sign of the quaternion's third axis, and axes 1-3: a time step is dropped
            header[name][:4] = value[:4]
    # The best affine of this very header: nibabel then leaves both forms as they are.
    image = nib.Nifti1Image(disk, header.get_best_affine(), header)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            nib.save(image, temporary)
    return path


def read_label(path: str | os.PathLike, *, reorient: bool = True) -> tuple[np.ndarray, Geometry]:
    """Reads a label volume, (z, y, x) uint8 in LPS; reorient: see `read_nifti`.

    Whole numbers stored as float, or scaled by the header, are accepted.

    Raises:
      DataError: as `read_nifti`; or a value is not a whole number from 0 to 255.
    """
    array, geometry = read_nifti(path, reorient=reorient)
    if array.dtype == np.uint8:
        return array, geometry
    with np.errstate(invalid="ignore"):
        whole = np.rint(array)
        # 1e-3: header scaling in float32 leaves such traces on whole numbers.
        wrong = ~((np.abs(array - whole) < 1e-3) & (whole >= 0) & (whole <= 255))
    if wrong.any():
        raise DataError(
            f"{path}: {int(wrong.sum())} voxels are not whole numbers from 0 to 255 "
            f"(the first is {array[wrong][0]!s}); a label map is expected"
        )
    return whole.astype(np.uint8), geometry


def check_finite(image: np.ndarray, what: str) -> None:
    """Raises DataError if a voxel is NaN or infinite, as one is that a smaller type cannot hold."""
    finite = np.isfinite(image)
    if not finite.all():
        raise DataError(
            f"{what}: {int((~finite).sum())} of {finite.size} voxels are NaN or infinite"
        )


def _open(path: Path) -> tuple[Header, bytes]:
    """Header, and content of the file without compression, up to the end of the voxels.

    No more is read or decompressed than the header promises, and nothing if the file is too small
    for it; the checksum of a compressed file is verified.
    """
    with open_regular(path) as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(_HEAD)
        if not start:
            raise DataError(f"{path}: is empty (0 bytes); {AGAIN}")
        packed = start[:2] == _GZIP
        head = Inflater(path, start, "gzip").read(nifti_header.SIZE) if packed else start
        header = nifti_header.parse(path, head)
        promised = header.offset + header.voxel_bytes
        slack = 0 if header.exact else SLACK
        # Deflate makes nothing much longer than it is.
        most = promised + (promised // 64 + SLACK if packed else slack)
        if size > most:
            raise DataError(
                f"{path}: has {size} bytes, but its header promises {promised} with the voxels; it "
                f"is damaged or not what it says it is, {AGAIN}"
            )
        if not packed and size < promised:
            raise DataError(
                f"{path}: has {size} bytes, but its header promises {promised}; the file is "
                f"truncated or damaged, {AGAIN}"
            )
        file.seek(0)
        content = file.read(size if packed else promised)
    if not packed:
        return header, content
    stream = Inflater(path, content, "gzip")
    content = stream.read(promised)
    if len(content) < promised:
        raise DataError(
            f"{path}: holds {len(content)} bytes, but its header promises {promised}; the file is "
            f"truncated or damaged, {AGAIN}"
        )
    stream.finish(slack=slack)
    return header, content


def _shape(path: Path, shape: tuple[int, ...], ndim: int | None) -> tuple[int, ...]:
    """The shape with `ndim` axes. Raises DataError if there are more or fewer."""
    found = shape
    if ndim is None:
        if len(shape) == 5 and shape[3] == 1:
            shape = (*shape[:3], shape[4])
        ndim = 4 if math.prod(shape[3:]) > 1 else 3
    while len(shape) > ndim and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2 and ndim == 3:
        shape = (*shape, 1)
    if len(shape) != ndim:
        what = {3: "one 3-D volume", 4: "one 4-D file with a channel axis"}[ndim]
        raise DataError(f"{path}: has shape {found}, but {what} is expected here")
    return shape


def _geometry(path: Path, header: Header, shape: tuple[int, ...], oriented: bool) -> Geometry:
    fields = header.fields
    nifti_header.check_pixdim(path, header, axes=3 if oriented and shape[2] > 1 else 2)
    affine = np.asarray(fields.get_best_affine(), np.float64)
    affine[:3] *= header.unit_mm
    grid.check_affine(path, affine)
    place = {name: np.array(fields[name]) for name in PLACE}
    dtype = header.dtype.newbyteorder("=")
    return Geometry(path, tuple(int(n) for n in shape), affine, place, dtype, oriented)
