"""Read and write NIfTI volumes, and remember where they lie in the patient.

Arrays are `(z, y, x)`, or `(z, y, x, c)` for 4-D files, in LPS orientation: x grows towards the
patient's left, y towards posterior, z towards superior, so `image[z]` is an axial slice as a
radiologist sees it. `Geometry` is what is needed to go back to the file's own grid.
"""

import contextlib
import dataclasses
import functools
import gzip
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from crossdim_jax.errors import DataError

_LPS = orientations.axcodes2ornt("LPS")
_AS_IT_IS = np.array([[0, 1], [1, 1], [2, 1]])
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    HeaderDataError,
    HeaderTypeError,
    WrapStructError,
)
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
# Everything in a NIfTI header that says where the voxels are, and nothing else: names, comments
# and intensity scaling of the source have no place in a label file.
_PLACE = (
    *("qform_code", "sform_code", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of one file lie, and how to get back to its grid.

    Attributes:
      path: the file it was read from.
      shape: the three spatial axes as on disk.
      affine: (4, 4) float64, voxel index on disk -> scanner millimetres (RAS+), as nibabel has it.
      header: the placing fields of the file's header (`qform_code`, `srow_x`, `pixdim`, ...).
      dtype: of the voxels on disk, before any intensity scaling; native byte order.
      oriented: False where the axes are no patient's: arrays are then (k, j, i) as on disk.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    header: Mapping[str, np.ndarray]
    dtype: np.dtype
    oriented: bool = True

    @classmethod
    def from_affine(
        cls,
        path: Path,
        shape: Sequence[int],
        affine: np.ndarray,
        dtype: object,
        *,
        oriented: bool = True,
    ) -> "Geometry":
        """That of a file which is not NIfTI, with the header that a NIfTI file would have.

        Args:
          path: of the file, or of the folder of a series.
          shape: (i, j, k).
          affine: (4, 4), voxel index (i, j, k) -> scanner millimetres (RAS+).
          dtype: of the voxels.
          oriented: see above.
        """
        image = nib.Nifti1Header()
        image.set_data_shape(shape)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.set_xyzt_units("mm")
        header = {name: np.array(image[name]) for name in (*_PLACE, "pixdim")}
        affine = np.asarray(affine, np.float64)
        return cls(Path(path), tuple(map(int, shape)), affine, header, np.dtype(dtype), oriented)

    @functools.cached_property
    def axcodes(self) -> str:
        """Orientation on disk, such as "RAS" (the direction in which each axis grows)."""
        return "".join(nib.aff2axcodes(self.affine))

    @functools.cached_property
    def _to_lps(self) -> np.ndarray:
        if not self.oriented:
            return _AS_IT_IS
        return orientations.ornt_transform(nib.io_orientation(self.affine), _LPS)

    @functools.cached_property
    def _from_lps(self) -> np.ndarray:
        if not self.oriented:
            return _AS_IT_IS
        return orientations.ornt_transform(_LPS, nib.io_orientation(self.affine))

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """The shape of the array after `to_lps`."""
        order = np.argsort(self._to_lps[:, 0])
        x, y, z = (self.shape[int(axis)] for axis in order)
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in millimetres, from the affine's columns."""
        unit = nib.Nifti1Header()
        unit["xyzt_units"] = self.header["xyzt_units"]
        scale = _MM.get(unit.get_xyzt_units()[0], 1.0)
        sizes = nib.affines.voxel_sizes(self.affine) * scale
        x, y, z = sizes[np.argsort(self._to_lps[:, 0])]
        # Headers store float32: 1.2 should read 1.2, not 1.20000005.
        return round(float(z), 6), round(float(y), 6), round(float(x), 6)

    @property
    def label_dtype(self) -> np.dtype:
        """The integer type for a label map on this grid: `dtype`, or uint8 where that will not do.

        It will not do if it is no integer type (real numbers, bool), or signed with 8 bits: many
        tools have no such type.
        """
        own = self.dtype.kind in "iu" and self.dtype != np.int8
        return self.dtype if own else np.dtype(np.uint8)

    def to_lps(self, array: np.ndarray) -> np.ndarray:
        """Disk order (i, j, k, ...) -> (z, y, x, ...) in LPS: a view, undone by `from_lps`."""
        array = orientations.apply_orientation(array, self._to_lps)
        return array.transpose(2, 1, 0, *range(3, array.ndim))

    def from_lps(self, array: np.ndarray) -> np.ndarray:
        """(z, y, x, ...) in LPS -> disk order (i, j, k, ...); a view."""
        array = array.transpose(2, 1, 0, *range(3, array.ndim))
        return orientations.apply_orientation(array, self._from_lps)


def read_nifti(
    path: str | os.PathLike, *, ndim: int = 3, reorient: bool = True
) -> tuple[np.ndarray, Geometry]:
    """Reads a `.nii` or `.nii.gz` file.

    Compression is recognised by content, not by name, and the checksum of compressed files is
    verified. The header's intensity scaling is applied; without one the file's own dtype is kept.

    Args:
      path: NIfTI-1 or NIfTI-2, single file.
      ndim: 3, or 4 for one file with a channel axis. Trailing axes of length one beyond `ndim`
        are dropped: some tools write a volume as (x, y, z, 1). A 2-D image is read as (x, y, 1).
      reorient: False leaves the axes as they are, for images that do not lie in a patient: the
        array is then (k, j, i), for a film (frame, row, column).

    Returns:
      The array, (z, y, x) or (z, y, x, c) in LPS, and its geometry.

    Raises:
      DataError: missing, empty, truncated, damaged, not NIfTI, not numeric, of another rank, or
        without a usable affine. The message names the file.
    """
    path = Path(path)
    image = _open(path)
    shape = image.shape
    while len(shape) > ndim and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2 and ndim == 3:
        shape = (*shape, 1)
    if len(shape) != ndim:
        what = {3: "one 3-D volume", 4: "one 4-D file with a channel axis"}[ndim]
        raise DataError(f"{path}: has shape {image.shape}, but {what} is expected here")
    if 0 in shape:
        raise DataError(f"{path}: has shape {image.shape}, which holds no voxel")
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        raise DataError(f"{path}: voxels are of type {dtype}; real numbers are expected")
    try:
        array = np.asanyarray(image.dataobj).reshape(shape, order="A")
    except _DAMAGED as error:
        raise DataError(
            f"{path}: the voxels cannot be read, the file is truncated or damaged ({error}); "
            "copy or download it again"
        ) from error
    geometry = _geometry(path, image, (*shape, 1)[:3], reorient)
    return geometry.to_lps(array), geometry


def write_nifti(
    path: str | os.PathLike, array: np.ndarray, geometry: Geometry, dtype: object = np.uint8
) -> Path:
    """Writes a volume on the grid of `geometry`, all or nothing (temporary file, then rename).

    The affine, both form codes and matrices, and the units are those of the source file; the
    intensity scaling is none.

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
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
    if not path.name.endswith(suffix):
        raise DataError(f"{path}: the name must end in .nii or .nii.gz")
    if array.shape != geometry.shape_zyx:
        raise DataError(
            f"{path}: the volume has shape {array.shape} (z, y, x), but the grid of "
            f"{geometry.path} has {geometry.shape_zyx}"
        )
    disk = geometry.from_lps(array).astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(disk, geometry.from_lps(array)):
        raise DataError(f"{path}: the values {array.min()} to {array.max()} do not fit {dtype}")
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(disk.shape)
    for name in _PLACE:
        header[name] = geometry.header[name]
    # Axes 1-3 and the sign of the quaternion's third axis; a 4-D source's time step is dropped.
    header["pixdim"][:4] = geometry.header["pixdim"][:4]
    # The best affine of this very header: nibabel then leaves both forms as they are.
    image = nib.Nifti1Image(disk, header.get_best_affine(), header)
    # Hidden, and unique to this call: two runs may write the same file.
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check the folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
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


def _open(path: Path) -> nib.Nifti1Image:
    """The image with its voxels still encoded, but in memory and checked for completeness."""
    try:
        raw = path.read_bytes()
        if not raw:
            raise DataError(f"{path}: is empty (0 bytes); copy or download it again")
        if raw[:2] == b"\x1f\x8b":
            # The whole stream, because only its end holds the checksum and the length.
            raw = gzip.decompress(raw)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the compressed file is truncated or damaged ({error}); "
            "copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if len(raw) >= kind.header_class.sizeof_hdr and kind.header_class.may_contain_header(raw):
            try:
                return kind.from_bytes(raw)
            except _DAMAGED as error:
                raise DataError(f"{path}: has a damaged NIfTI header ({error})") from error
    raise DataError(f"{path}: is not a NIfTI file (begins with {raw[:8]!r})")


def _geometry(
    path: Path, image: nib.Nifti1Image, shape: tuple[int, ...], oriented: bool
) -> Geometry:
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{path}: its affine is not invertible:\n{affine}")
    header = {name: np.array(image.header[name]) for name in (*_PLACE, "pixdim")}
    dtype = image.get_data_dtype().newbyteorder("=")
    return Geometry(path, tuple(int(n) for n in shape), affine, header, dtype, oriented)
