"""Labels of BraTS as they are written."""

import dataclasses
import gzip

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.challenges.brats.challenge import BraTS
from crossdim_jax.imaging import nifti
from tests.brats_folders import plain, rewrite


def raw_header(path):
    """The header's own bytes: nibabel takes intensity scaling out of the headers that it loads."""
    opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        return nib.Nifti1Header(file.read(348))


@pytest.mark.parametrize("label", [None, np.uint8, np.int64, np.float64])
@pytest.mark.parametrize("image", [np.uint8, np.int16, np.uint16, np.int64, ">i2", np.float32])
def test_labels_are_written_in_the_smallest_type(tmp_path, write_case, image, label):
    write_case(tmp_path, "a", ("flair",))
    challenge = plain("2015", ("flair",))
    [files] = challenge.cases(tmp_path, labelled=True)
    source = nib.load(files.images[0])
    dtype = np.dtype(image)
    header = nib.Nifti1Header(endianness=">" if dtype.byteorder == ">" else "<")
    header.set_data_dtype(dtype)
    volume = np.asanyarray(source.dataobj).astype(dtype)
    nib.save(nib.Nifti1Image(volume, source.affine, header), files.images[0])
    if label is not None:
        rewrite(files.label, dtype=label)
    case = challenge.load(files if label is not None else dataclasses.replace(files, label=None))
    result = np.arange(case.image[..., 0].size, dtype=np.uint8).reshape(case.image.shape[:3]) % 5
    path = challenge.write(tmp_path / "out.nii.gz", result, case.geometry)
    back = nib.load(path)
    np.testing.assert_array_equal(back.affine, source.affine)
    assert back.header.endianness == "<" and np.asanyarray(back.dataobj).dtype == np.uint8
    np.testing.assert_array_equal(nifti.read_label(path)[0], result)
    header = raw_header(path)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)


def test_the_scaling_of_the_image_is_not_that_of_the_label(tmp_path, write_case):
    write_case(tmp_path, "a", ("flair",))
    challenge = plain("2015", ("flair",))
    [files] = challenge.cases(tmp_path, labelled=False)
    scaled = nib.Nifti1Image(np.linspace(1, 2, 210).reshape(7, 6, 5), nib.load(files.label).affine)
    scaled.set_data_dtype(np.int16)
    nib.save(scaled, files.images[0])
    assert raw_header(files.images[0])["scl_slope"] != 1
    case = challenge.load(dataclasses.replace(files, label=None))
    path = challenge.write(tmp_path / "out.nii", np.full((5, 6, 7), 4, np.uint8), case.geometry)
    header = raw_header(path)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)
    assert header.get_data_dtype() == np.uint8
    assert set(np.unique(np.asanyarray(nib.load(path).dataobj))) == {4}


def test_the_decathlons_predictions_are_3d_labels(tmp_path, write_msd):
    challenge = BraTS()
    [files] = challenge.cases(write_msd(tmp_path, ["BRATS_001"]), labelled=True)
    case = challenge.load(dataclasses.replace(files, label=None))
    path = challenge.write(tmp_path / "out.nii.gz", np.ones((5, 6, 7), np.uint8), case.geometry)
    assert nib.load(path).get_data_dtype() == np.uint8 and nib.load(path).shape == (7, 6, 5)


def test_a_real_label_is_written_on_its_own_grid(shared_data, tmp_path):
    challenge = BraTS()
    [files] = challenge.cases(shared_data / "brats2021", labelled=True)
    label, _ = nifti.read_label(files.label)
    case = challenge.load(dataclasses.replace(files, label=None))
    back = nib.load(challenge.write(tmp_path / "a.nii.gz", label, case.geometry))
    source = nib.load(files.label)
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(source.dataobj))
    np.testing.assert_array_equal(back.affine, nib.load(files.images[0]).affine)
