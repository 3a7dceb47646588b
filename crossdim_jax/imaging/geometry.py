"""Geometry of one file: place of its voxels in the patient, and the way back to its own grid."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from crossdim_jax.errors import DataError

_LPS = orientations.axcodes2ornt("LPS")
_LONGEST = 32767  # voxels along an axis of a NIfTI-1 file
_AS_IT_IS = np.array([[0, 1], [1, 1], [2, 1]])
# Everything in a NIfTI header that says where the voxels are, and nothing else: names, comments
# and intensity scaling of the source have no place in a label file.
PLACE = (
    *("qform_code", "sform_code", "xyzt_units", "pixdim"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Geometry of one file: place of its voxels, and the way back to its grid.

    Attributes:
      path: the file it was read from.
      shape: the three spatial axes as on disk.
      affine: (4, 4) float64, voxel index on disk -> scanner millimetres (RAS+), whatever the unit
        of the file.
      header: the placing fields of the file's header (`qform_code`, `srow_x`, `pixdim`, ...).
      dtype: of the voxels on disk, before any intensity scaling; native byte order.
      oriented: False where the axes are no patient's: arrays are then (k, j, i) as on disk.
      measured: False where no file says how large the voxels are, and 1 mm is a guess.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    header: Mapping[str, np.ndarray]
    dtype: np.dtype
    oriented: bool = True
    measured: bool = True

    @classmethod
    def from_affine(
        cls,
        path: Path,
        shape: Sequence[int],
        affine: np.ndarray,
        dtype: object,
        *,
        oriented: bool = True,
        measured: bool = True,
    ) -> "Geometry":
        """Geometry of a file which is not NIfTI, with the header that a NIfTI file would have.

        Args:
          path: of the file, or of the folder of a series.
          shape: (i, j, k).
          affine: (4, 4), voxel index (i, j, k) -> scanner millimetres (RAS+).
          dtype: of the voxels.
          oriented, measured: see above.

        Raises DataError, naming the file, if an axis is longer than NIfTI can say.
        """
        if max(shape) > _LONGEST:
            raise DataError(
                f"{path}: has {' x '.join(map(str, shape))} voxels; at most {_LONGEST} along an "
                "axis are expected, cut it into parts"
            )
        image = nib.Nifti1Header()
        image.set_data_shape(shape)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.set_xyzt_units("mm")
        header = {name: np.array(image[name]) for name in PLACE}
        affine = np.asarray(affine, np.float64)
        return cls(
            Path(path), tuple(map(int, shape)), affine, header, np.dtype(dtype), oriented, measured
        )

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
        """Shape of the array after `to_lps`."""
        order = np.argsort(self._to_lps[:, 0])
        x, y, z = (self.shape[int(axis)] for axis in order)
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in millimetres, from the affine's columns."""
        sizes = nib.affines.voxel_sizes(self.affine)
        x, y, z = sizes[np.argsort(self._to_lps[:, 0])]
        # Headers store float32: 1.2 should read 1.2, not 1.20000005.
        return round(float(z), 6), round(float(y), 6), round(float(x), 6)

    def to_lps(self, array: np.ndarray) -> np.ndarray:
        """View in LPS (z, y, x, ...) of an array in disk order (i, j, k, ...)."""
        array = orientations.apply_orientation(array, self._to_lps)
        return array.transpose(2, 1, 0, *range(3, array.ndim))

    def from_lps(self, array: np.ndarray) -> np.ndarray:
        """View in disk order (i, j, k, ...) of an array in LPS (z, y, x, ...); undoes `to_lps`."""
        array = array.transpose(2, 1, 0, *range(3, array.ndim))
        return orientations.apply_orientation(array, self._from_lps)

    def on_disk(self, path: Path, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Array (z, y, x) in disk order and of the type on disk, to be written to `path`.

        Raises DataError: it has another shape than the grid, or values that an integer type lacks.
        """
        if array.shape != self.shape_zyx:
            raise DataError(
                f"{path}: the volume has shape {array.shape} (z, y, x), but the grid of "
                f"{self.path} has {self.shape_zyx}"
            )
        disk = self.from_lps(array).astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(disk, self.from_lps(array)):
            raise DataError(f"{path}: the values {array.min()} to {array.max()} do not fit {dtype}")
        return disk
