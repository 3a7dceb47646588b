"""Read a DICOM series, a folder of files with one slice each, as a volume.

The order of the files is that of their names, as people count (2 before 10), and it is kept:
what belongs to the files, such as masks, pairs with them by it. Where a slice lies is what its own
header says, and z may well fall while file numbers rise. `Series` goes from one to the other.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder

from crossdim_jax.data.images import Geometry
from crossdim_jax.errors import DataError

# Real files hold odd values in places that do not matter here; what matters is checked below.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

UNEVEN = 0.1  # a step may differ from the usual one by so much of it
_COSINES_ATOL = 1e-3
_UNREADABLE = (OSError, EOFError, ValueError, AttributeError, KeyError, TypeError, RuntimeError)
_MIXED = "several series lie in one folder. Give each a folder of its own"
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """A series of slices and where they lie.

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
        """(file, row, column), such as masks in file order -> (z, y, x) in LPS."""
        planes = np.empty_like(slices)
        planes[list(self.planes)] = slices
        return np.ascontiguousarray(self.geometry.to_lps(planes.transpose(2, 1, 0)))

    def to_slices(self, volume: np.ndarray) -> np.ndarray:
        """(z, y, x) in LPS -> (file, row, column); undoes `to_volume`."""
        planes = self.geometry.from_lps(volume).transpose(2, 1, 0)
        return np.ascontiguousarray(planes[list(self.planes)])


def files_of(folder: str | os.PathLike) -> tuple[Path, ...]:
    """The files of a series in natural order: those ending in .dcm, or all where none does.

    Raises DataError if the folder is missing or empty.
    """
    folder = Path(folder)
    try:
        visible = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error}); expected DICOM files") from error
    named = [path for path in visible if path.suffix.lower() in (".dcm", ".ima")]
    if not visible:
        raise DataError(f"{folder}: holds no file; expected one DICOM file for each slice")
    return tuple(sorted(named or visible, key=natural))


def natural(path: Path) -> tuple[object, ...]:
    """A sort key under which slice2 comes before slice10."""
    return tuple(int(p) if p.isdigit() else p.lower() for p in re.split(r"(\d+)", path.name))


def read_series(files: Sequence[str | os.PathLike]) -> tuple[np.ndarray, Series]:
    """Reads the slices of one series.

    Args:
      files: one slice each, in the order in which masks pair with them; see `files_of`.

    Returns:
      The volume, (z, y, x) float32 in LPS, with the slope and intercept of each file applied; and
      the series.

    Raises:
      DataError: naming the file: not DICOM, truncated, compressed without a decoder, without a
        position; or the files are no single evenly spaced series.
    """
    series, headers = _series(files, pixels=True)
    slices = np.stack([_pixels(p, d) for p, d in zip(series.files, headers, strict=True)])
    return series.to_volume(slices), series


def read_header(files: Sequence[str | os.PathLike]) -> Series:
    """The series without its pixels; raises as `read_series`."""
    return _series(files, pixels=False)[0]


def datasets(series: Series) -> list[pydicom.Dataset]:
    """The files as pydicom reads them, in their order."""
    return [_open(path, pixels=True) for path in series.files]


def _series(files: Sequence[str | os.PathLike], pixels: bool) -> tuple[Series, list[Any]]:
    paths = tuple(Path(path) for path in files)
    if not paths:
        raise DataError("a series needs at least one file, found none")
    headers = [_open(path, pixels) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        _check_slice(path, header)
    _check_one_series(paths, headers)
    positions = np.array([[float(v) for v in d.ImagePositionPatient] for d in headers])
    cosines = np.array([float(v) for v in headers[0].ImageOrientationPatient]).reshape(2, 3)
    normal = np.cross(*cosines)
    planes, step, spacing_from = _planes(paths, headers, positions, normal)
    down, across = (float(v) for v in headers[0].PixelSpacing)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = cosines[0] * across, cosines[1] * down, step
    affine[:3, 3] = positions[planes.index(0)]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's millimetres are LPS
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(paths))
    geometry = Geometry.from_affine(paths[0].parent, shape, affine, np.int16)
    modality = str(headers[0].get("Modality", ""))
    return Series(paths, tuple(planes), geometry, modality, spacing_from), headers


def _open(path: Path, pixels: bool) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except InvalidDicomError as error:
        raise DataError(
            f"{path}: is not a DICOM file (no 'DICM' after 128 bytes); remove it from the series"
        ) from error
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read, the file is truncated or damaged ({error}); "
            "copy or download it again"
        ) from error


def _check_slice(path: Path, header: pydicom.Dataset) -> None:
    """One grey slice with a place in the patient."""
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if missing:
        raise DataError(
            f"{path}: has no {' and no '.join(missing)}, so where its pixels lie is not known. "
            "Export the series again with its geometry (not a secondary capture)"
        )
    cosines = np.array([float(v) for v in header.ImageOrientationPatient]).reshape(-1, 3)
    if cosines.shape != (2, 3) or not np.allclose(cosines @ cosines.T, np.eye(2), atol=0.01):
        raise DataError(
            f"{path}: ImageOrientationPatient is {list(header.ImageOrientationPatient)}; two unit "
            "vectors at right angles are expected"
        )
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel", 1))
    if frames != 1 or samples != 1:
        raise DataError(
            f"{path}: holds {frames} frames of {samples} colours; one grey slice in each file is "
            "expected. Convert an enhanced (multi-frame) file to NIfTI and give that instead"
        )


def _check_one_series(paths: Sequence[Path], headers: Sequence[pydicom.Dataset]) -> None:
    """All files share size, orientation, spacing and modality, and the series' identifiers."""
    first = headers[0]

    def numbers(header: pydicom.Dataset, name: str) -> list[float]:
        return [float(v) for v in header.get(name)]

    for path, header in zip(paths, headers, strict=True):
        size, expected = (header.Rows, header.Columns), (first.Rows, first.Columns)
        if size != expected:
            raise DataError(
                f"{path}: has {size[0]} x {size[1]} pixels, but {paths[0]} has {expected[0]} x "
                f"{expected[1]}; all slices of a series have one size, {_MIXED}"
            )
        for name in ("ImageOrientationPatient", "PixelSpacing"):
            mine, others = numbers(header, name), numbers(first, name)
            if not np.allclose(mine, others, atol=_COSINES_ATOL):
                raise DataError(f"{path}: {name} is {mine}, but {others} in {paths[0]}; {_MIXED}")
        if header.get("Modality") != first.get("Modality"):
            raise DataError(
                f"{path}: Modality is {header.get('Modality')}, but {first.get('Modality')} in "
                f"{paths[0]}; {_MIXED}"
            )
    for name in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        found = Counter(str(header.get(name, "")) for header in headers)
        # Anonymised series may have one identifier for each file; that says nothing of mixture.
        if len(found) not in (1, len(headers)):
            counts = ", ".join(f"{uid} ({n} files)" for uid, n in found.most_common(3))
            raise DataError(
                f"{paths[0].parent}: the files have {len(found)} different {name}: {counts}; "
                f"{_MIXED}"
            )


def _planes(
    paths: Sequence[Path],
    headers: Sequence[pydicom.Dataset],
    positions: np.ndarray,
    normal: np.ndarray,
) -> tuple[list[int], np.ndarray, str]:
    """Each file's plane, the step from one plane to the next in mm, and what says so."""
    if len(paths) == 1:
        return [0], *_single(paths[0], headers[0], normal)
    depth = (positions - positions[0]) @ normal
    order = np.argsort(depth, kind="stable")
    if depth[-1] < 0:  # planes are numbered as the files are, where these are in any order
        order = order[::-1]
    ordered, n = positions[order], len(paths)
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
    straight = ordered[0] + step * np.arange(n)[:, None]
    aside = np.abs(ordered - straight).max(axis=1)
    if aside.max() > max(1.0, 0.5 * usual):
        raise DataError(
            f"{paths[order[int(aside.argmax())]]}: lies {aside.max():.4g} mm beside the line on "
            f"which the other slices lie; {_MIXED}"
        )
    planes = np.empty(n, int)
    planes[order] = np.arange(n)
    return planes.tolist(), step, "ImagePositionPatient"


def _single(path: Path, header: pydicom.Dataset, normal: np.ndarray) -> tuple[np.ndarray, str]:
    """The step of a series of one slice, whose positions say nothing."""
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.get(name)
        if value not in (None, "") and float(value) > 0:
            return normal * float(value), name
    raise DataError(
        f"{path}: is the only slice and has neither SpacingBetweenSlices nor SliceThickness, so "
        "its thickness is not known; add one of them"
    )


def _pixels(path: Path, data: pydicom.Dataset) -> np.ndarray:
    """(row, column) float32, with slope and intercept."""
    syntax = data.file_meta.TransferSyntaxUID if "TransferSyntaxUID" in data.file_meta else None
    if "PixelData" not in data:
        raise DataError(f"{path}: holds no pixels; the file is truncated or no image")
    try:
        stored = data.pixel_array
    except _UNREADABLE as error:
        if syntax is not None and syntax.is_compressed and not _decodable(syntax):
            raise DataError(
                f"{path}: is compressed ({syntax.name}) and no decoder for that is installed. "
                "Install one (pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg), or "
                "decompress the series (gdcmconv --raw IN OUT, or dcmdjpeg IN OUT)"
            ) from error
        raise DataError(
            f"{path}: the pixels cannot be read, the file is truncated or damaged ({error}); "
            "copy or download it again"
        ) from error
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    image = stored.astype(np.float32)
    if slope not in (None, ""):
        image *= np.float32(slope)
    if intercept not in (None, ""):
        image += np.float32(intercept)
    return image


def _decodable(syntax: pydicom.uid.UID) -> bool:
    """Whether a decoder for a compressed transfer syntax is installed."""
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False
