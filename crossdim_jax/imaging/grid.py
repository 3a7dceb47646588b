"""Grids: which are equal, which are invalid, and messages about odd ones; decided here only.

Differences are millimetres at the voxel that is moved farthest. Two grids are one if no voxel moves
by more than `tolerance_mm`: a twentieth of the smallest voxel edge, unless the user says another
number (`config.data.grid_tolerance_mm`). Headers differ by rounding, which is far less.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from crossdim_jax import ranges
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.geometry import PLACE, Geometry

OF_A_VOXEL = 0.05
_FORMS_OF_A_VOXEL = 0.5  # a qform is rounded: 1e-3 rad in the worst case, near half a turn
OPTION = "config.data.grid_tolerance_mm"
MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}  # NIfTI's unknown, metre, millimetre, micrometre
_SIZES_MM = (1e-6, 1e6)  # of voxels
_SKEW = 1e-5  # of axes of unit length; ITK takes up to 1e-4, headers have 1e-6


def tolerance_mm(geometry: Geometry, given: float | None = None) -> float:
    """Tolerance: how far a voxel may be from its place on the grid of `geometry`."""
    if given is not None:
        return given
    return OF_A_VOXEL * float(nib.affines.voxel_sizes(geometry.affine).min())


def displacement_mm(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance between the places that two affines give to a voxel of such a grid."""
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape))], float)
    moved = corners @ (np.asarray(first, float) - np.asarray(second, float)).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def difference(expected: Geometry, found: Geometry, given: float | None = None) -> str:
    """Difference of `found` from the grid of `expected`, in words; "" if they are equal."""
    if expected.shape != found.shape:
        return f"has shape {found.shape}, but {expected.path} has {expected.shape}"
    if not found.measured:  # it lies on the image that it belongs to, however large that is
        return ""
    apart = displacement_mm(expected.affine, found.affine, expected.shape)
    if apart <= (allowed := tolerance_mm(expected, given)):
        return ""
    ours, theirs = (nib.affines.voxel_sizes(g.affine) for g in (expected, found))
    alike = np.allclose(ours, theirs, rtol=1e-3)
    far = apart > ours.min()  # to accept that would be to look no more
    remedy = (
        "; it lies somewhere else: if the arrays do match, give it the other's header"
        if far
        else offer(", ", apart, " accepts it")
    )
    sizes = "" if alike else f" (voxels of {_sizes(theirs)} mm instead of {_sizes(ours)})"
    return (
        f"its affine puts the farthest voxel {apart:.3g} mm from where {expected.path} has it"
        f"{sizes}; at most {allowed:.3g} mm are accepted{remedy}"
    )


def check_same(expected: Geometry, found: Geometry, given: float | None = None) -> None:
    """Raises DataError, naming both files, unless they lie on one grid; nothing is resampled."""
    if why := difference(expected, found, given):
        raise DataError(f"{found.path}: {why}; all files of a case must lie on one grid")


def check_orthogonal(geometry: Geometry, given: float | None = None) -> None:
    """Raises DataError if the axes are sheared: many programs cannot open such a grid."""
    nearest = orthogonal(geometry.affine, geometry.shape)
    apart = displacement_mm(geometry.affine, nearest, geometry.shape)
    if apart > (allowed := tolerance_mm(geometry, given)):
        raise DataError(
            f"{geometry.path}: its axes are sheared: the farthest voxel lies {apart:.3g} mm from "
            f"where it would with axes at right angles (at most {allowed:.3g} mm are accepted). "
            "Resample image and label to an orthogonal grid"
            + offer(", or accept the shift of what is written: ", apart)
        )


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Raises DataError unless an affine in mm is finite, invertible, and of possible voxels."""
    with np.errstate(all="ignore"):
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        turned = np.linalg.det(affine[:3, :3] / sizes) if sizes.all() else 0.0
    if not (np.isfinite(affine).all() and abs(turned) > 1e-6):
        raise DataError(f"{path}: its affine is not invertible:\n{affine}")
    if sizes.min() < _SIZES_MM[0] or max(sizes.max(), abs(affine[:3, 3]).max()) > _SIZES_MM[1]:
        raise DataError(
            f"{path}: its voxels are {_sizes(sizes)} mm and lie at {affine[:3, 3].tolist()}; "
            f"voxels from {_SIZES_MM[0]:g} to {_SIZES_MM[1]:g} mm are expected"
        )


def orthogonal(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Nearest affine with axes at right angles, of the same voxel sizes and centre."""
    sizes = nib.affines.voxel_sizes(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    found = np.array(affine, float)
    found[:3, :3] = (left @ right) * sizes
    centre = (np.asarray(shape, float) - 1) / 2
    found[:3, 3] += (affine[:3, :3] - found[:3, :3]) @ centre
    return found


def contradictions(geometry: Geometry) -> list[str]:
    """Contradictions in a NIfTI header about the place of its voxels, in words.

    Nothing of axes that are no patient's, but for their sizes.
    """
    header, found = geometry.header, []
    if not (header["sform_code"] or header["qform_code"]) and geometry.oriented:
        found.append(
            "has neither a qform nor an sform, so how it lies in the patient is not known; the "
            "axes are taken to run to the left, to the front and upwards"
        )
    if not _sizes_agree(geometry):
        pixdim = np.asarray(header["pixdim"][1:4], float) * _unit(header)
        found.append(
            f"its sform has voxels of {_sizes(nib.affines.voxel_sizes(geometry.affine))} mm, its "
            f"pixdim of {_sizes(pixdim)} mm; the sform is used, and what is written on this grid "
            "says so everywhere"
        )
    elif header["sform_code"] > 0 and header["qform_code"] > 0:
        apart = displacement_mm(geometry.affine, _qform(header), geometry.shape)
        small = _FORMS_OF_A_VOXEL * nib.affines.voxel_sizes(geometry.affine).min()
        if not apart <= small and geometry.oriented:
            found.append(
                f"its qform puts the farthest voxel {apart:.3g} mm from where its sform has it; "
                "the sform is used, other programs may take the qform"
            )
    return found


def placing(geometry: Geometry) -> Mapping[str, np.ndarray]:
    """Header fields with which a NIfTI file on that grid is written.

    Those of its source, so that every program shows both at one place; made anew where the source
    contradicts itself about the size of its voxels, or holds what is no number in float32. A
    sheared sform gets a qform beside it, the nearest with right angles: ITK opens nothing else.
    """
    header = geometry.header
    with np.errstate(over="ignore"):
        numbers = all(np.isfinite(np.float32(value)).all() for value in header.values())
    agree = numbers and _sizes_agree(geometry)
    axes = geometry.affine[:3, :3] / nib.affines.voxel_sizes(geometry.affine)
    skewed = np.abs(axes.T @ axes - np.eye(3)).max() > _SKEW
    if agree and not (skewed and header["qform_code"] == 0):
        return header
    code = int(header["sform_code"]) or int(header["qform_code"])
    made = nib.Nifti1Header()
    made.set_data_shape(geometry.shape)
    made.set_sform(geometry.affine, code=code)
    made.set_qform(orthogonal(geometry.affine, geometry.shape), code=code)
    made.set_xyzt_units("mm")
    return {name: np.array(made[name]) for name in PLACE}


def _sizes_agree(geometry: Geometry) -> bool:
    """True if pixdim has the voxel sizes of the affine, to within the default tolerance."""
    pixdim = np.abs(np.asarray(geometry.header["pixdim"][1:4], float)) * _unit(geometry.header)
    apart = np.abs(pixdim - nib.affines.voxel_sizes(geometry.affine))
    moved = apart * (np.asarray(geometry.shape) - 1)
    axes = 3 if geometry.oriented else 2  # the third of a film is time
    return bool((moved[:axes] <= tolerance_mm(geometry)).all())


def _qform(header: Mapping[str, np.ndarray]) -> np.ndarray:
    """Qform in mm; NaN where there is no such rotation."""
    made = nib.Nifti1Header()
    for name in PLACE:
        made[name] = header[name]
    try:
        affine = np.asarray(made.get_qform(), float)
    except Exception:  # nibabel raises several kinds for a quaternion that is none
        return np.full((4, 4), np.nan)
    affine[:3] *= _unit(header)
    return affine


def _unit(header: Mapping[str, np.ndarray]) -> float:
    return MM.get(int(header["xyzt_units"]) & 7, 1.0)


def _sizes(sizes: Sequence[float]) -> str:
    return " x ".join(f"{float(size):.4g}" for size in sizes)


def offer(before: str, apart_mm: float, after: str = "") -> str:
    """Option that accepts a distance, between two texts; "" if none may be that large."""
    unit = 10.0 ** (math.floor(math.log10(apart_mm)) - 1)
    value = math.ceil(apart_mm / unit * (1 - 1e-9)) * unit  # two digits, not less
    allowed = ranges.RANGES[OPTION.removeprefix("config.")].holds(float(f"{value:.2g}"))
    return f"{before}{OPTION}={value:.2g}{after}" if allowed else ""
