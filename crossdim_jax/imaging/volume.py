"""Read images and label maps of every known format, and write label maps on an image's own grid.

Arrays are `(z, y, x)`, or `(z, y, x, c)` for images of several channels, in LPS as those of
`imaging.nifti`. Pictures and other 2-D images lie in no patient: they are `(1, row, column)` as on
disk, a TIFF of several pages `(page, row, column)`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import (
    analyze,
    dicom,
    dicom_frames,
    grid,
    metaimage,
    nifti,
    nrrd,
    pictures,
)
from crossdim_jax.imaging.geometry import Geometry
from crossdim_jax.storage import reading

Read = tuple[np.ndarray, Geometry]
_DICOM = (".dcm", ".ima")
_META = (".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")
_NIFTI = (".nii.gz", ".nii")
_VOXELS = {
    **dict.fromkeys(_META, metaimage.voxels_file),
    **dict.fromkeys(_NRRD, nrrd.voxels_file),
    ".hdr": analyze.voxels_file,
}
# Endings of names that are images; the file of the voxels alone (.raw, .img) is none.
SUFFIXES = (*_NIFTI, *_META, *_NRRD, ".hdr", *pictures.FORMATS, *_DICOM)
_WHOLE = 1e-3  # header scaling in float32 leaves such traces on whole numbers


def suffix_of(path: str | os.PathLike) -> str:
    """The ending of a name that is an image's, as it is written there; "" if it is none.

    `CASE_0000.nii.gz` -> ".nii.gz", `a.PNG` -> ".PNG".
    """
    name = Path(path).name
    known = next((known for known in SUFFIXES if name.lower().endswith(known)), "")
    return name[len(name) - len(known) :]


def files_of(path: str | os.PathLike) -> tuple[Path, ...]:
    """Every file from which `read_image` reads a path: itself, its voxels and its spacing.

    Raises DataError if a folder is no series, a header is damaged, or its voxels are missing or lie
    elsewhere than beside it.
    """
    path = Path(path)
    if path.is_dir():
        return dicom.files_of(path)
    ending = suffix_of(path).lower()
    beside = None
    if ending in _VOXELS:
        beside = _VOXELS[ending](path)
        reading.open_beside(path, beside).close()
    elif ending in pictures.FORMATS:
        beside = pictures.spacing_file(path)
    return (path,) if beside in (None, path) else (path, beside)


def read_image(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    tolerance_mm: float | None = None,
    analyze_axes: str | None = None,
) -> Read:
    """Reads an image.

    Args:
      path: of a file, whose ending says its format, or of a folder that holds one DICOM series. A
        sequence of single-slice DICOM files is one series; of other files, one channel each, on one
        grid.
      tolerance_mm: between the grids of channels, see `grid.difference`, and for DICOM series, see
        `dicom.read_series`.
      analyze_axes: of Analyze 7.5 files, see `analyze.read_analyze`.

    Returns:
      The array, (z, y, x) or (z, y, x, c) float32, with the intensity scaling of its file applied;
      and the geometry of the (first) file.

    Raises:
      DataError: a file is missing, damaged, of an unknown format, or not what its reader expects;
        channels lie on different grids. The message names the file.
    """
    if isinstance(path, str | os.PathLike):
        array, geometry = _read(Path(path), tolerance_mm, analyze_axes, label=False)
        return _float32(array), geometry
    paths = [Path(one) for one in path]
    if not paths:
        raise DataError("an image needs at least one file, found none")
    if _is_series(paths):
        volume, series = dicom.read_series(paths, tolerance_mm=tolerance_mm)
        return volume, series.geometry
    parts = [_read(one, tolerance_mm, analyze_axes, label=False) for one in paths]
    first = parts[0][1]
    for _, geometry in parts[1:]:
        grid.check_same(first, geometry, tolerance_mm)
    if len(parts) == 1:
        return _float32(parts[0][0]), first
    arrays = [array if array.ndim == 4 else array[..., None] for array, _ in parts]
    return np.concatenate([_float32(array) for array in arrays], axis=-1), first


def read_label(
    path: str | os.PathLike,
    *,
    tolerance_mm: float | None = None,
    analyze_axes: str | None = None,
) -> Read:
    """Reads a label map; arguments as those of `read_image`.

    Whole numbers stored as another type, or scaled by the header, are accepted.

    Returns:
      The array, (z, y, x) uint8, or uint16 if a value is above 255; and its geometry.

    Raises:
      DataError: as `read_image`; or the file has several channels, or a value is not a whole number
        from 0 to 65535.
    """
    path = Path(path)
    array, geometry = _read(path, tolerance_mm, analyze_axes, label=True)
    if array.ndim != 3:
        raise DataError(
            f"{path}: has {array.shape[-1]} values in each voxel (colours, or layers of segments "
            "that overlap); a label map of one is expected"
        )
    return _whole(path, array), geometry


def write_label(
    path: str | os.PathLike, label: np.ndarray, geometry: Geometry, dtype: np.dtype | None = None
) -> Path:
    """Writes a label map on the grid of an image, all or nothing.

    Args:
      path: ends in a format of `WRITERS`; its folder is created.
      label: (z, y, x), whole numbers from 0 to 65535, in the order of `geometry`.
      geometry: of the image that it belongs to, in whatever format that is.
      dtype: on disk; None: uint8 or, where a value needs it, uint16.

    Returns:
      The path.

    Raises:
      DataError: the ending, the shape or a value does not fit, or the folder cannot be written to.
    """
    path = Path(path)
    ending = suffix_of(path)
    if ending not in WRITERS:
        known = ", ".join(WRITERS)
        raise DataError(
            f"{path}: label maps are not written as {ending or 'that'!r}; known: {known}"
        )
    label = _whole(path, label)
    return WRITERS[ending](path, label, geometry, dtype or label.dtype)


def _meta(path: Path, label: np.ndarray, geometry: Geometry, dtype: np.dtype) -> Path:
    return metaimage.write_mhd(path, label, geometry, dtype, compressed=True)


WRITERS: Mapping[str, Callable[[Path, np.ndarray, Geometry, np.dtype], Path]] = {
    **dict.fromkeys(_NIFTI, nifti.write_nifti),
    **dict.fromkeys(_META, _meta),
    **dict.fromkeys(_NRRD, nrrd.write_nrrd),
    **dict.fromkeys((".png", ".tif", ".tiff"), pictures.write),
}


def _read(path: Path, tolerance_mm: float | None, axes: str | None, *, label: bool) -> Read:
    """An array in the type of its file, and its geometry."""
    if path.is_dir():
        return _folder(path, tolerance_mm)
    ending = suffix_of(path).lower()
    if ending in _NIFTI:
        return nifti.read_nifti(path, ndim=None)
    if ending in _META:
        return metaimage.read_mhd(path, reorient=True, channels=True)
    if ending in _NRRD:
        return nrrd.read_nrrd(path)
    if ending == ".hdr":
        return analyze.read_analyze(path, axes)
    if ending in pictures.FORMATS:
        return pictures.read(path, label=label)
    if ending in _DICOM:
        return _dicom([path], tolerance_mm)
    raise DataError(
        f"{path}: its ending is that of no known format; known: {', '.join(SUFFIXES)}, or a folder "
        "of DICOM files"
    )


def _folder(path: Path, tolerance_mm: float | None) -> Read:
    """A folder with the files of one DICOM series."""
    files = dicom.files_of(path)
    others = [file for file in files if suffix_of(file).lower() not in ("", *_DICOM)]
    if others:
        raise DataError(
            f"{others[0]}: is no DICOM file by its name, but {path} is to hold one DICOM series; "
            "name the image itself"
        )
    return _dicom(list(files), tolerance_mm)


def _dicom(paths: Sequence[Path], tolerance_mm: float | None) -> Read:
    if not dicom_frames.is_enhanced(paths[0]):
        volume, series = dicom.read_series(paths, tolerance_mm=tolerance_mm)
    elif len(paths) == 1:
        volume, series = dicom_frames.read_frames(paths[0], tolerance_mm=tolerance_mm)
    else:
        raise DataError(
            f"{paths[0]}: is an enhanced (multi-frame) file, a volume of its own, but "
            f"{paths[0].parent} holds {len(paths)} files; give each a folder of its own, or name it"
        )
    return volume, series.geometry


def _is_series(paths: Sequence[Path]) -> bool:
    """True for files of one slice each rather than of one channel each."""
    classic = all(suffix_of(path).lower() in ("", *_DICOM) and not path.is_dir() for path in paths)
    return classic and len(paths) > 1 and not dicom_frames.is_enhanced(paths[0])


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is infinite
        return array.astype(np.float32, copy=False)


def _whole(path: Path, array: np.ndarray) -> np.ndarray:
    """The same numbers as uint8, or as uint16 if one is above 255."""
    if array.dtype == np.uint8:
        return array
    with np.errstate(invalid="ignore"):
        whole = np.rint(array) if array.dtype.kind == "f" else array
        wrong = ~((np.abs(array - whole) < _WHOLE) & (whole >= 0) & (whole <= 65535))
    if wrong.any():
        raise DataError(
            f"{path}: {int(wrong.sum())} voxels are not whole numbers from 0 to 65535 "
            f"(the first is {array[wrong][0]!s}); a label map is expected"
        )
    return whole.astype(np.uint8 if whole.max() <= 255 else np.uint16)
