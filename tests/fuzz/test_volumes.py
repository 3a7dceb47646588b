"""Damaged NIfTI and MetaImage files: read, or refused by name, in bounded memory and time."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.imaging import grid
from crossdim_jax.imaging import metaimage as mhd
from crossdim_jax.imaging import nifti as images
from tests.fuzz import harness
from tests.fuzz.harness import Format

AFFINE = np.array([[-1.0, 0, 0, 5], [0, -1.1, 0, 6], [0, 0, 2, -7], [0, 0, 0, 1]])


def nifti(folder: Path) -> list[bytes]:
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


def metaimage(folder: Path) -> list[bytes]:
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
    volume, geometry = images.read_nifti(path)
    label = np.zeros(volume.shape, np.uint8)
    back = images.write_nifti(path.with_name("back.nii"), label, geometry)
    grid.check_same(geometry, images.read_nifti(back)[1])


FORMATS = (
    Format("nifti", ".nii", nifti, images.read_nifti),
    Format("nifti label", ".nii", nifti, images.read_label),
    Format("nifti gz", ".nii.gz", nifti, images.read_nifti, wrap=lambda c: gzip.compress(c, 1)),
    Format(
        "damaged gz", ".nii.gz", lambda f: [gzip.compress(c) for c in nifti(f)], images.read_nifti
    ),
    Format("written on", ".nii", nifti, written_on, folder=True),
    Format("metaimage", ".mhd", metaimage, mhd.read_mhd),
)


@harness.few_and_thousands(FORMATS)
def test_damaged_files_are_read_or_refused_by_name(name, count, seed, tmp_path):
    harness.run(__name__, name, tmp_path, count=count, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in FORMATS])
def test_files_that_reach_every_branch(name, tmp_path):
    harness.run_guided(__name__, name, tmp_path, runs=5000)
