"""Folders of a CHAOS submission, written and scored; and DICOM segmentations for viewers.

    Task<k>/CT/<id>/Results/img000.png
    Task<k>/MR/<id>/{T1DUAL,T2SPIR}/Results/img000.png

One image for each file of the series, in the order of their names; grey values as in the truth.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.challenges.base import Challenge, Evaluated, Table
from crossdim_jax.challenges.chaos import layouts, mask_files, tables
from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, dicom_seg
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.imaging.dicom_seg import Segment


def folder_of(submission: Path, files: CaseFiles, task: int) -> Path:
    """Folder of a task's masks of a case."""
    modality = layouts.KINDS[files.kind]
    folder = submission / f"Task{task}" / modality / files.patient.removeprefix(f"{modality}_")
    return (folder / files.kind if modality == "MR" else folder) / "Results"


def tasks_of(files: CaseFiles, t1dual: str) -> dict[int, int]:
    """Tasks for which a case is asked, {task: number of its organs}; none for the other phase."""
    if layouts.phase(files.id) not in ("", t1dual):
        return {}
    modality = layouts.KINDS.get(files.kind, "")
    return {task: asked[modality] for task, asked in tables.TASKS.items() if modality in asked}


def _series(files: CaseFiles) -> dicom.Series:
    """Header of a case's series, whose grid was judged when it was loaded."""
    return dicom.read_header(files.images, tolerance_mm=math.inf)


def write(submission: Path, files: CaseFiles, label: np.ndarray, t1dual: str) -> list[Path]:
    """Writes the masks of one case for every task it is part of.

    label: (z, y, x) organ numbers on the case's grid. t1dual: the phase that is the result.
    """
    tasks = tasks_of(files, t1dual)
    if not tasks:
        return []
    if layouts.is_nifti(files.images[0]):
        slices = label  # no files to be in the order of: from below upwards
    else:
        slices = _series(files).to_slices(label)
    written = []
    for task, organs in tasks.items():
        asked = np.where(slices <= organs, slices, 0).astype(np.uint8)
        written += mask_files.write(folder_of(submission, files, task), asked)
    return written


def read(submission: Path, files: CaseFiles, task: int) -> np.ndarray:
    """Reads a task's masks of one DICOM case as a label (z, y, x).

    Any PNG names will do; their natural order is that of the files.

    Raises DataError: there are no masks, or their number, size or grey values are not the series'.
    """
    folder = folder_of(submission, files, task)
    series = _series(files)
    masks = mask_files.files_of(folder)
    if len(masks) != len(files.images):
        raise DataError(
            f"{folder}: holds {len(masks)} masks, but the series has {len(files.images)} slices; "
            "each slice needs one mask"
        )
    size = (series.geometry.shape[1], series.geometry.shape[0])
    return series.to_volume(mask_files.read(masks, size=size, any_is_liver=False))


def evaluate(challenge: Challenge, files: Sequence[CaseFiles], submission: Path) -> list[Table]:
    """Tables of a submission, each task by its own masks, as the platform scores it.

    files: labelled cases of `challenge`, a `Chaos`. Tasks of which nothing is there are left out.
    """
    found: dict[int, list[Evaluated]] = {}
    for case in files:
        truth = None
        for task in tasks_of(case, challenge.t1dual):
            folder = folder_of(submission, case, task)
            if not folder.is_dir():
                continue
            truth = truth or challenge.load(case)
            label = read(submission, case, task)
            row = challenge.score(truth.label, label, truth.spacing_mm, kind=case.kind)
            found.setdefault(task, []).append(Evaluated(case, row, folder))
    if not found:
        raise DataError(
            f"{submission}: holds no masks of the {len(files)} cases; expected such as "
            f"{folder_of(submission, files[0], 1)}"
        )
    return tables.of_tasks(found, challenge.regions, challenge.t1dual)


def write_seg(
    path: Path,
    files: CaseFiles,
    label: np.ndarray,
    segments: Sequence[Segment],
    *,
    deidentify: bool = False,
) -> Path:
    """Writes a DICOM segmentation of the slices of a series, see `dicom_seg.write`."""
    if layouts.is_nifti(files.images[0]):
        raise DataError(
            f"{files.images[0]}: a DICOM segmentation refers to DICOM slices, and this is NIfTI; "
            "leave 'seg' out of config.challenge.formats"
        )
    series = _series(files)
    return dicom_seg.write(path, series, label, segments, deidentify=deidentify)
