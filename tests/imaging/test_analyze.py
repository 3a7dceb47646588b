"""Analyze 7.5 files: read where somebody says how the axes run."""

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import analyze, volume


def write(folder, values, *, order="<", kind=nib.AnalyzeImage, change=lambda header: None):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_zooms((0.5, 0.75, 2.0, 1.0)[: values.ndim])
    change(header)
    path = folder / "a.hdr"
    path.write_bytes(header.binaryblock)
    path.with_suffix(".img").write_bytes(
        values.astype(values.dtype.newbyteorder(order)).tobytes("F")
    )
    return path


@pytest.fixture
def values(rng):
    return rng.integers(0, 255, (3, 4, 5)).astype(np.int16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_voxels_and_sizes_are_those_that_nibabel_reads(tmp_path, values, dtype, order):
    path = write(tmp_path, values.astype(dtype), order=order)
    array, geometry = volume.read_image(path, analyze_axes="LPS")
    np.testing.assert_array_equal(array, np.asarray(nib.load(path).dataobj).T)
    assert geometry.spacing_mm == (2.0, 0.75, 0.5) and geometry.dtype == dtype
    label, _ = volume.read_label(path, analyze_axes="LPS")
    np.testing.assert_array_equal(label, array)


@pytest.mark.parametrize("axes", ["LAS", "RAS", "LPI", "PIR", "SAL"])
def test_the_axes_run_as_one_says(tmp_path, values, axes):
    array, geometry = analyze.read_analyze(write(tmp_path, values), axes)
    assert geometry.axcodes == axes
    np.testing.assert_array_equal(geometry.from_lps(array), values)
    centre = geometry.affine @ [*((np.array(values.shape) - 1) / 2), 1]
    np.testing.assert_allclose(centre[:3], 0, atol=1e-12)


def test_without_a_word_left_and_right_are_not_guessed(tmp_path, values):
    path = write(tmp_path, values)
    for axes in (None, "LA", "LRS", "LAX", "las"):
        with pytest.raises(DataError, match="a.hdr: is an Analyze 7.5 file.*Convert it to .nii.gz"):
            volume.read_image(path, analyze_axes=axes)


def test_four_and_two_dimensions(tmp_path, rng):
    values = rng.integers(0, 255, (3, 4, 5, 2)).astype(np.uint8)
    array, geometry = analyze.read_analyze(write(tmp_path, values), "LPS")
    np.testing.assert_array_equal(array, values.transpose(2, 1, 0, 3))
    assert analyze.read_analyze(write(tmp_path, values[..., :1]), "LPS")[0].shape == (5, 4, 3)
    assert analyze.read_analyze(write(tmp_path, values[..., 0, 0]), "LPS")[0].shape == (1, 4, 3)


def test_a_scale_of_spm_is_said(tmp_path, values, caplog):
    def scaled(header):
        header["scl_slope"] = 2.5

    path = write(tmp_path, values, kind=nib.Spm99AnalyzeImage, change=scaled)
    array, _ = analyze.read_analyze(path, "LPS")
    np.testing.assert_array_equal(array, values.T)
    assert f"{path}: holds a scale of intensities as SPM writes it (2.5)" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("pixdim", [0, 0.5, 0, 2, 0, 0, 0, 0], r"a.hdr: its pixdim is \[0.5, 0.0, 2.0\]"),
        ("pixdim", [0, 0.5, np.nan, 2, 0, 0, 0, 0], "a.hdr: its pixdim is"),
        ("pixdim", [0, 0.5, 1, 1e30, 0, 0, 0, 0], "a.hdr: its (voxels|affine)"),
        ("dim", [9, 3, 4, 5, 1, 1, 1, 1], "a.hdr: its dim is"),
        ("dim", [3, 3, 0, 5, 1, 1, 1, 1], "a.hdr: its dim is"),
        ("dim", [3, 3, 4, 6, 1, 1, 1, 1], "a.img: has 120 bytes, but .*a.hdr promises 144"),
        ("dim", [4, 30000, 30000, 30000, 30000, 1, 1, 1], "a.img: has 120 bytes"),
        ("vox_offset", 8, "a.img: has 120 bytes, but .* promises 128"),
        ("vox_offset", -8, "a.hdr: its vox_offset is -8"),
        ("vox_offset", np.nan, "a.hdr: its vox_offset is nan"),
        ("datatype", 128, "a.hdr: voxels are of type"),
        ("datatype", 32, "a.hdr: voxels are of type complex64"),
        ("datatype", 77, "a.hdr: "),
    ],
)
def test_faulty_headers_are_named(tmp_path, values, field, value, says):
    def change(header):
        header[field] = value

    with pytest.raises(DataError, match=says):
        analyze.read_analyze(write(tmp_path, values, change=change), "LPS")


def test_missing_and_other_files_are_named(tmp_path, values, shared_data):
    path = write(tmp_path, values)
    path.with_suffix(".img").unlink()
    with pytest.raises(DataError, match="a.img: there is no such file; .*a.hdr is the header"):
        analyze.read_analyze(path, "LPS")
    path.with_suffix(".img").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="a.img: lies outside"):
        analyze.read_analyze(path, "LPS")
    path.write_bytes(b"x" * 400)
    with pytest.raises(DataError, match="a.hdr: is not an Analyze 7.5 header"):
        analyze.read_analyze(path, "LPS")
    with pytest.raises(DataError, match="nifti1.hdr: is the header of a pair of files"):
        volume.read_image(shared_data / "odd" / "nibabel" / "nifti1.hdr")
    with pytest.raises(DataError, match="analyze.hdr: is an Analyze 7.5 file, which does not say"):
        volume.read_image(shared_data / "odd" / "nibabel" / "analyze.hdr")
