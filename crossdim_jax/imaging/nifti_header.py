"""Header of a NIfTI file, checked before anything is read or allocated because of it."""

import dataclasses
import logging
import math
from pathlib import Path

import nibabel as nib
import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.imaging.grid import MM

SIZE = 540  # bytes of the larger header, NIfTI-2's
_FORMS = range(1, 6)  # codes of a qform or sform that is there
# nibabel mends headers and prints what it did, without the file's name.
_SILENT = logging.Logger("nibabel's mending")
_SILENT.addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True)
class Header:
    """Checked header of a NIfTI file.

    Attributes:
      fields: nibabel's header, mended where it does so too (qfac, unknown codes, pixdim of zero).
      pixdim: voxel sizes as they stand in the file, (3,).
      shape: as on disk, one to seven axes.
      dtype: of the voxels on disk.
      offset: bytes before the voxels.
      scaling: slope and intercept of the intensities; (1, 0) is none.
      unit_mm: length of the file's unit.
      doubts: what is contradictory but can be understood, in words.
      exact: whether the file must end with the voxels, for want of other proof.
    """

    fields: nib.Nifti1Header
    pixdim: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    scaling: tuple[float, float]
    unit_mm: float
    doubts: tuple[str, ...]
    exact: bool

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxels on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse(path: Path, block: bytes) -> Header:
    """Reads a NIfTI-1 or NIfTI-2 header from the first bytes of a file without compression.

    Raises DataError, naming the file, if it is none, is one of a pair of files, or has a shape,
    type, offset, unit or scaling that cannot be.
    """
    fields = _fields(path, block)
    shape = _shape(path, fields)
    dtype = fields.get_data_dtype()
    if dtype.kind not in "biuf":
        raise DataError(f"{path}: voxels are of type {dtype}; real numbers are expected")
    doubts = []
    if (bits := int(fields["bitpix"])) != 8 * dtype.itemsize:
        doubts.append(f"its bitpix is {bits}, but its datatype, which is used, is {dtype}")
    offset, first = float(fields["vox_offset"]), fields.single_vox_offset
    if offset == 0:
        offset = first
        doubts.append(f"its vox_offset is 0; the voxels are taken to begin at byte {first}")
    if not (math.isfinite(offset) and offset >= first and offset % 1 == 0):
        raise DataError(
            f"{path}: its voxels are to begin at byte {offset:g} (vox_offset), which cannot be; a "
            f"whole number from {first} is expected. {_REPAIR}"
        )
    unit = int(fields["xyzt_units"]) & 7
    if unit not in MM:
        raise DataError(
            f"{path}: its unit of length is {unit} (xyzt_units); 1 (metre), 2 (millimetre), 3 "
            f"(micrometre) or 0 (unknown, taken for millimetres) is expected. {_REPAIR}"
        )
    pixdim = np.array(fields["pixdim"][1:4], float)
    scaling = _scaling(path, fields)
    fields.check_fix(logger=_SILENT, error_level=1000)
    exact = bool(doubts)
    return Header(
        fields, pixdim, shape, dtype, int(offset), scaling, MM[unit], tuple(doubts), exact
    )


_REPAIR = "Repair the header, or copy or download the file again"


def check_pixdim(path: Path, header: Header, *, axes: int) -> None:
    """Raises DataError if the affine comes from invalid voxel sizes: readers take 1 mm."""
    sizes = header.pixdim[:axes]
    if header.fields["sform_code"] in _FORMS or (np.isfinite(sizes) & (sizes > 0)).all():
        return
    raise DataError(
        f"{path}: its header gives a pixel size of {sizes.tolist()} mm (pixdim); positive "
        "millimetres are expected, without them no distance or volume can be told"
    )


def _fields(path: Path, block: bytes) -> nib.Nifti1Header:
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        size = kind.sizeof_hdr
        if len(block) >= size and kind.may_contain_header(block):
            fields = kind(block[:size], check=False)
            if fields["magic"].item() == kind.pair_magic:
                raise DataError(
                    f"{path}: is the header of a pair of files (.hdr and .img); one file with "
                    "header and voxels is expected, save the image as .nii.gz"
                )
            return fields
    raise DataError(f"{path}: is not a NIfTI file (begins with {block[:8]!r})")


def _shape(path: Path, fields: nib.Nifti1Header) -> tuple[int, ...]:
    if not 1 <= (rank := int(fields["dim"][0])) <= 7:
        raise DataError(f"{path}: has {rank} axes (dim[0]); 1 to 7 are expected. {_REPAIR}")
    shape = tuple(int(n) for n in fields.get_data_shape())
    if min(shape) < 1:
        raise DataError(f"{path}: has shape {shape}, which holds no voxel")
    return shape


def _scaling(path: Path, fields: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN stands for none."""
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise DataError(
            f"{path}: its intensities are scaled by {slope:g} and shifted by {inter:g} (scl_slope, "
            f"scl_inter); finite numbers are expected. {_REPAIR}"
        )
    return slope, inter
