"""Tiny cases in any BraTS layout."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (7, 6, 5)
ENDINGS = {
    "2020": ("flair", "t1", "t1ce", "t2"),
    "2021": ("flair", "t1", "t1ce", "t2"),
    "2023": ("t2f", "t1n", "t1c", "t2w"),
}


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def write_case():
    """write(root, case, endings, separator=, suffix=, labels=): one folder; channel i holds i + 1.

    `labels`: values put into the label's first voxels, or None for no label file.
    """

    def write(root, case, endings, *, separator="_", suffix=".nii.gz", labels=(1, 2)):
        for i, ending in enumerate(endings):
            volume = np.full(SHAPE, i + 1, np.int16)
            save(root / case / f"{case}{separator}{ending}{suffix}", volume)
        if labels is not None:
            label = np.zeros(SHAPE, np.uint8)
            label.ravel()[: len(labels)] = labels
            save(root / case / f"{case}{separator}seg{suffix}", label)
        return root / case

    return write


@pytest.fixture
def write_msd():
    """write(root, cases, labels=, folder=): a decathlon task; channel i holds i + 1."""

    def write(root, cases, *, labels=(1, 2, 3), folder="imagesTr", channels=4):
        volume = np.ones((*SHAPE, channels), np.int16) * np.arange(1, channels + 1, dtype=np.int16)
        for case in cases:
            save(root / folder / f"{case}.nii.gz", volume)
            (root / folder / f"._{case}.nii.gz").write_bytes(b"resource fork")
            if labels is not None:
                label = np.zeros(SHAPE, np.uint8)
                label.ravel()[: len(labels)] = labels
                save(root / "labelsTr" / f"{case}.nii.gz", label)
        return root

    return write
