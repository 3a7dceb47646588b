"""Read a DICOM series, a folder of files with one slice each, as a volume.

The order of the files is that of their names, as people count (2 before 10), and it is kept:
what belongs to the files, such as masks, pairs with them by it. Where a slice lies is what its own
header says, and z may well fall while file numbers rise. `Series` goes from one to the other.
"""

import dataclasses
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom_pixels, dicom_slice, grid
from crossdim_jax.imaging.dicom_slice import Slice
from crossdim_jax.imaging.nifti import Geometry
from crossdim_jax.storage.reading import naming, open_regular

logger = logging.getLogger(__name__)

UNEVEN = 0.1  # a step may differ from the usual one by so much of it
# By so much a voxel may lie beside the nearest grid with right angles: less than positions and
# directions differ by that are written with four digits, and less than any pixel. For users who do
# not say another number (`grid.OPTION`).
TOLERANCE_MM = 0.2
_COSINES_ATOL = 1e-3
_ENDINGS = (".dcm", ".ima")
_MIXED = "several series lie in one folder. Give each a folder of its own"
# What a series may take in memory for each byte of its files, and in any case.
_RATIO, _FREE = 1000, 1 << 28


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Series of slices and their geometry.

    Attributes:
      files: in the natural order of their names.
      planes: for each file, its index along the third axis of `geometry`.
      geometry: the axes on disk are (column, row, plane); its path is the folder.
      modality: "CT", "MR", ...
      spacing_from: what the distance of the slices was taken from: "ImagePositionPatient", or for
        a single slice "SpacingBetweenSlices" or "SliceThickness".
    """

    files: tuple[Path, ...]
    planes: tuple[int, ...]
    geometry: Geometry
    modality: str
    spacing_from: str

    def to_volume(self, slices: np.ndarray) -> np.ndarray:
        """Volume (z, y, x) in LPS of slices (file, row, column), such as masks in file order."""
        planes = np.empty_like(slices)
        planes[list(self.planes)] = slices
        return np.ascontiguousarray(self.geometry.to_lps(planes.transpose(2, 1, 0)))

    def to_slices(self, volume: np.ndarray) -> np.ndarray:
        """Slices (file, row, column) of a volume (z, y, x) in LPS; undoes `to_volume`."""
        planes = self.geometry.from_lps(volume).transpose(2, 1, 0)
        return np.ascontiguousarray(planes[list(self.planes)])


def files_of(folder: str | os.PathLike) -> tuple[Path, ...]:
    """Files of a series in natural order: those ending in .dcm or .ima, or all where none does.

    Raises DataError if the folder is missing or empty, or one of them is no regular file.
    """
    folder = Path(folder)
    with naming(folder, "a folder of DICOM files"):
        visible = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
    named = [path for path in visible if path.suffix.lower() in _ENDINGS]
    if not visible:
        raise DataError(f"{folder}: holds no file; expected one DICOM file for each slice")
    if other := [p.name for p in visible if named and p not in named and _is_dicom(p)]:
        logger.warning(
            "%s: %d DICOM files that do not end in .dcm are passed over (%s), because others do",
            folder,
            len(other),
            ", ".join(sorted(other)[:5]),
        )
    files = tuple(sorted(named or visible, key=natural))
    for path in files:
        if not path.is_file():
            what = "is a link to nothing" if path.is_symlink() else "is no regular file"
            raise DataError(f"{path}: {what}; remove it, or copy the whole series again")
    return files


def is_folder(path: Path) -> bool:
    """True for a folder with DICOM files in it, by their names or by the mark of the first."""
    if not path.is_dir():
        return False
    with naming(path, "a folder"):
        files = sorted(p for p in path.iterdir() if not p.name.startswith(".") and p.is_file())
    return any(p.suffix.lower() in _ENDINGS for p in files) or any(map(_is_dicom, files[:1]))


def is_one_series(folder: Path) -> bool:
    """True for a folder with slices of a series, as far as the first two of its files tell."""
    if not is_folder(folder):
        return False
    headers = [dicom_slice.open_dataset(p, pixels=False) for p in files_of(folder)[:2]]
    return len({str(header.get("SeriesInstanceUID")) for header in headers}) < len(headers)


def _is_dicom(path: Path) -> bool:
    """True if a regular file has DICOM's mark behind its preamble."""
    try:
        with open_regular(path) as file:
            return file.read(132)[128:] == b"DICM"
    except DataError:
        return False


def natural(path: Path) -> tuple[tuple[object, ...], str]:
    """Sort key under which slice2 comes before slice10; no two names have the same."""
    parts = re.split(r"(\d+)", path.name)  # digits at the odd places, whatever the name
    key = tuple(int(part) if at % 2 else part.lower() for at, part in enumerate(parts))
    return key, path.name


def read_series(
    files: Sequence[str | os.PathLike], *, tolerance_mm: float | None = None
) -> tuple[np.ndarray, Series]:
    """Reads the slices of one series.

    Args:
      files: one slice each, in the order in which masks pair with them; see `files_of`.
      tolerance_mm: by how much a voxel may lie beside a grid with right angles; None:
        `TOLERANCE_MM`.

    Returns:
      The volume, (z, y, x) float32 in LPS, with the slope and intercept of each file applied; and
      the series.

    Raises:
      DataError: naming the file: not DICOM, truncated, compressed without a decoder, without a
        position, no plain grey values; or the files are no single, straight, evenly spaced series.
    """
    series, slices, datasets = _series(files, _tolerance(tolerance_mm), pixels=True)
    return fill(series, slices, datasets), series


def fill(
    series: Series, slices: Sequence[Slice], datasets: Sequence[pydicom.Dataset]
) -> np.ndarray:
    """The volume of a series, (z, y, x) float32 in LPS; see `read_series`."""
    volume = np.empty((len(slices), *slices[0].shape), np.float32)
    padded = 0
    for index, (one, data) in enumerate(zip(slices, datasets, strict=True)):
        volume[index], count = dicom_pixels.read(one, data)
        padded += count
    if padded:
        logger.warning(
            "%s: %.3g %% of the pixels are padding by PixelPaddingValue %s, no measurements; they "
            "keep that value",
            series.geometry.path,
            100 * padded / volume.size,
            slices[0].stored.padding,
        )
    return series.to_volume(volume)


def read_header(files: Sequence[str | os.PathLike], *, tolerance_mm: float | None = None) -> Series:
    """Reads a series without its pixels; arguments and errors are those of `read_series`."""
    return _series(files, _tolerance(tolerance_mm), pixels=False)[0]


def _tolerance(given: float | None) -> float:
    return TOLERANCE_MM if given is None else given


def read_slices(files: Sequence[str | os.PathLike]) -> list[Slice]:
    """Reads the headers of single files, whether or not they make a series."""
    paths = [Path(path) for path in files]
    return [dicom_slice.read(path, dicom_slice.open_dataset(path, pixels=False)) for path in paths]


def datasets(series: Series) -> list[pydicom.Dataset]:
    """Datasets of a series' files as pydicom reads them, in their order."""
    return [dicom_slice.open_dataset(path, pixels=True) for path in series.files]


def _series(
    files: Sequence[str | os.PathLike], tolerance_mm: float, *, pixels: bool
) -> tuple[Series, list[Slice], list[pydicom.Dataset]]:
    paths = tuple(Path(path) for path in files)
    if not paths:
        raise DataError("a series needs at least one file, found none")
    slices, opened = [], []
    for path in paths:
        data = dicom_slice.open_dataset(path, pixels=pixels)
        slices.append(dicom_slice.read(path, data))
        if pixels:
            opened.append(data)
    return assemble(slices, tolerance_mm), slices, opened


def assemble(slices: Sequence[Slice], tolerance_mm: float | None = None) -> Series:
    """The series that slices make, in whatever order they lie.

    Raises DataError, naming a file: they are no single, straight, evenly spaced series.
    """
    tolerance_mm, paths = _tolerance(tolerance_mm), tuple(one.path for one in slices)
    _check_one_series(slices, tolerance_mm)
    _check_memory(slices)
    first = slices[0]
    normal = np.cross(*first.cosines)
    planes, step, spacing_from = _planes(slices, normal, tolerance_mm)
    down, across = first.spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.cosines[0] * across, first.cosines[1] * down
    affine[:3, 2], affine[:3, 3] = step, slices[planes.index(0)].position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's millimetres are LPS
    shape = (first.shape[1], first.shape[0], len(paths))
    _check_right_angles(paths[0].parent, affine, shape, tolerance_mm)
    geometry = Geometry.from_affine(paths[0].parent, shape, affine, np.int16)
    return Series(paths, tuple(planes), geometry, first.modality, spacing_from)


def _check_one_series(slices: Sequence[Slice], tolerance_mm: float) -> None:
    """Raises DataError unless all files share size, orientation, spacing, modality and series."""
    first = slices[0]
    for one in slices:
        if one.shape != first.shape:
            raise DataError(
                f"{one.path}: has {one.shape[0]} x {one.shape[1]} pixels, but {first.path} has "
                f"{first.shape[0]} x {first.shape[1]}; all slices of a series have one size, "
                f"{_MIXED}"
            )
        apart = float(np.linalg.norm(_far_corner(one) - _far_corner(first)))
        for name, mine, others in (
            ("ImageOrientationPatient", one.cosines, first.cosines),
            ("PixelSpacing", one.spacing, first.spacing),
        ):
            differ = not np.array_equal(mine, others)
            if not np.allclose(mine, others, atol=_COSINES_ATOL) or differ and apart > tolerance_mm:
                found, expected = np.ravel(mine).tolist(), np.ravel(others).tolist()
                raise DataError(
                    f"{one.path}: {name} is {found}, but {expected} in {first.path}, which moves a "
                    f"corner by {apart:.3g} mm; {_MIXED}"
                )
        if one.modality != first.modality:
            raise DataError(
                f"{one.path}: Modality is {one.modality}, but {first.modality} in {first.path}; "
                f"{_MIXED}"
            )
        for name, value, expected in (
            ("RescaleSlope", one.slope, first.slope),
            ("RescaleIntercept", one.intercept, first.intercept),
        ):
            if (value is None) != (expected is None):
                has, lacks = (first, one) if value is None else (one, first)
                raise DataError(
                    f"{lacks.path}: has no {name}, but {has.path} has; the values of the two "
                    "cannot be compared. Copy the whole series again"
                )
    scouts = [one for one in slices if "LOCALIZER" in one.image_type]
    if scouts and len(scouts) < len(slices):
        raise DataError(
            f"{scouts[0].path}: is a localizer by its ImageType, the others are not; {_MIXED}"
        )
    for name in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        found = Counter(one.series if name[0] == "S" else one.frame for one in slices)
        # Anonymised series may have one identifier for each file; that says nothing of mixture.
        if len(found) not in (1, len(slices)):
            counts = ", ".join(f"{uid} ({n} files)" for uid, n in found.most_common(3))
            raise DataError(
                f"{first.path.parent}: the files have {len(found)} different {name}: {counts}; "
                f"{_MIXED}"
            )


def _far_corner(one: Slice) -> np.ndarray:
    """Vector from the first pixel of a slice to its last, in mm."""
    (rows, columns), (down, across) = one.shape, one.spacing
    return (columns - 1) * across * one.cosines[0] + (rows - 1) * down * one.cosines[1]


def _check_memory(slices: Sequence[Slice]) -> None:
    """Raises DataError if all slices together cannot come of the bytes of their files."""
    rows, columns = slices[0].shape
    size, there = 4 * rows * columns * len(slices), sum(one.file_bytes for one in slices)
    if size > _RATIO * there + _FREE:
        raise DataError(
            f"{slices[0].path.parent}: {len(slices)} slices of {rows} x {columns} pixels take "
            f"{size} bytes, but their files have {there}; they are truncated or damaged"
        )


def _check_right_angles(
    folder: Path, affine: np.ndarray, shape: Sequence[int], tolerance_mm: float
) -> None:
    """Raises DataError for a tilted gantry and any other shear that moves voxels.

    Arrays and file formats used here have axes at right angles; whoever takes such a stack for one
    sees it up to that far beside its place.
    """
    apart = grid.displacement_mm(affine, grid.orthogonal(affine, shape), shape)
    if apart <= tolerance_mm:
        return
    normal, step = np.cross(affine[:3, 0], affine[:3, 1]), affine[:3, 2]
    cosine = abs(normal @ step) / np.linalg.norm(normal) / np.linalg.norm(step)
    degrees = np.degrees(np.arccos(min(1.0, cosine)))
    raise DataError(
        f"{folder}: the axes of the volume are not at right angles: from slice to slice positions "
        f"move {degrees:.3g} degrees away from the normal of the slices (a tilted gantry?), so "
        f"voxels lie up to {apart:.3g} mm beside any grid with right angles; {tolerance_mm:g} mm "
        "are accepted. Resample the series, as dcm2niix does for a tilted gantry, and give the "
        "NIfTI file instead" + grid.offer(", or accept the shift by ", apart)
    )


def _planes(
    slices: Sequence[Slice], normal: np.ndarray, tolerance_mm: float
) -> tuple[list[int], np.ndarray, str]:
    """Plane of each file, the step from one plane to the next in mm, and its source."""
    if len(slices) == 1:
        return [0], *_single(slices[0], normal)
    paths, n = [one.path for one in slices], len(slices)
    positions = np.array([one.position for one in slices])
    depth = (positions - positions[0]) @ normal
    order = np.argsort(depth, kind="stable")
    if depth[-1] < 0:  # planes are numbered as the files are, where these are in any order
        order = order[::-1]
    ordered = positions[order]
    step = (ordered[-1] - ordered[0]) / (n - 1)
    usual = float(np.median(np.abs(np.diff(depth[order]))))
    gaps = np.abs(np.diff(depth[order]))
    twice = np.flatnonzero(gaps < max(1e-3, 1e-3 * usual))
    if twice.size:
        a, b = paths[order[twice[0]]], paths[order[twice[0] + 1]]
        raise DataError(
            f"{b}: lies at the same position as {a}; a slice is there twice, or {_MIXED}"
        )
    wrong = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    if wrong.size:
        at = int(wrong[0])
        a, b = paths[order[at]], paths[order[at + 1]]
        lost = round(float(gaps[at]) / usual) - 1
        what = f"{lost} missing there" if lost > 0 else "the spacing is uneven"
        raise DataError(
            f"{b}: lies {gaps[at]:.4g} mm from {a}, but slices of this series are {usual:.4g} mm "
            f"apart: {what} ({len(wrong)} such gaps). Copy the whole series again; a volume with "
            "gaps would be scored and measured wrongly"
        )
    beside = ordered - (ordered[0] + step * np.arange(n)[:, None])
    along = np.abs(beside @ normal)
    aside = np.linalg.norm(beside - np.outer(beside @ normal, normal), axis=1)
    for distance, most in ((along, max(tolerance_mm, UNEVEN * usual)), (aside, tolerance_mm)):
        if distance.max() > most:
            raise DataError(
                f"{paths[order[int(distance.argmax())]]}: lies {distance.max():.4g} mm beside the "
                f"line of evenly spaced slices on which the others lie, {most:.2g} mm are "
                f"accepted; slices are missing, or {_MIXED}"
            )
    planes = np.empty(n, int)
    planes[order] = np.arange(n)
    return planes.tolist(), step, "ImagePositionPatient"


def _single(one: Slice, normal: np.ndarray) -> tuple[np.ndarray, str]:
    """Step of a series of one slice, whose positions do not give it."""
    if one.thickness is None:
        raise DataError(
            f"{one.path}: is the only slice and has neither SpacingBetweenSlices nor "
            "SliceThickness, so its thickness is not known; add one of them"
        )
    thickness, name = one.thickness
    return normal * thickness, name
