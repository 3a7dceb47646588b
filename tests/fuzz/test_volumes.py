"""Damaged NIfTI and MetaImage files: read, or refused by name, in bounded memory and time."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.imaging import grid, metaimage, nifti
from tests.fuzz import harness
from tests.fuzz.harness import Format

AFFINE = np.array([[-1.0, 0, 0, 5], [0, -1.1, 0, 6], [0, 0, 2, -7], [0, 0, 0, 1]])


def nifti_files(folder: Path) -> list[bytes]:
    """NIfTI-1 and 2, integers and scaled reals, of either byte order."""
    found = []
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for order, dtype in (("<", np.uint8), (">", np.int16), ("<", np.float32)):
            header = kind.header_class(endianness=order)
            header.set_data_dtype(dtype)
            image = kind(np.arange(60, dtype=dtype).reshape(5, 4, 3), AFFINE, header)
            nib.save(image, folder / "a.nii")
            found.append((folder / "a.nii").read_bytes())
    return found


def metaimage_files(folder: Path) -> list[bytes]:
    """Headers with the voxels behind them, and one that names a file that is there."""
    lines = {
        "NDims": "3",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "HeaderSize": "0",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "0.3 0.2 1.5",
        "DimSize": "5 7 1",
        "ElementType": "MET_SHORT",
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()
    (folder.parent / "a.raw").write_bytes(bytes(70))
    return [text + b"ElementDataFile = LOCAL\n" + bytes(70), text + b"ElementDataFile = a.raw\n"]


def written_on(path: Path) -> None:
    """What is written on the grid of a file that can be read lies where the file does."""
    volume, geometry = nifti.read_nifti(path)
    label = np.zeros(volume.shape, np.uint8)
    back = nifti.write_nifti(path.with_name("back.nii"), label, geometry)
    grid.check_same(geometry, nifti.read_nifti(back)[1])


FORMATS = (
    Format("nifti", ".nii", nifti_files, nifti.read_nifti),
    Format("nifti label", ".nii", nifti_files, nifti.read_label),
    Format(
        "nifti gz", ".nii.gz", nifti_files, nifti.read_nifti, wrap=lambda c: gzip.compress(c, 1)
    ),
    Format(
        "damaged gz",
        ".nii.gz",
        lambda f: [gzip.compress(c) for c in nifti_files(f)],
        nifti.read_nifti,
    ),
    Format("written on", ".nii", nifti_files, written_on, folder=True),
    Format("metaimage", ".mhd", metaimage_files, metaimage.read_mhd),
)
NAMES = [row.name for row in FORMATS]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_by_name(name, tmp_path):
    harness.run(__name__, name, tmp_path, count=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_damaged_files(name, tmp_path):
    harness.run(__name__, name, tmp_path, count=10_000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_that_reach_every_branch(name, tmp_path):
    harness.run_guided(__name__, name, tmp_path, runs=5000)
