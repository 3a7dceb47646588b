"""What is one grid: differences in mm at the farthest voxel, and what is said of odd headers."""

import dataclasses
import logging
import math
import re

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import grid, metaimage, nifti

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (20, 16, 12)


def turned(degrees, axis=2):
    """A rotation about one axis of the world."""
    angle, matrix = math.radians(degrees), np.eye(4)
    i, j = (k for k in range(3) if k != axis)
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[j, i] = math.sin(angle)
    matrix[i, j] = -matrix[j, i]
    return matrix


def nifti_file(
    path, affine, *, sform=1, qform=1, of_qform=None, pixdim=None, units="mm", shape=SHAPE
):
    """A file whose forms are as said, however they contradict each other."""
    image = nib.Nifti1Image(np.ones(shape, np.uint8), None)
    header = image.header
    header.set_qform(affine if of_qform is None else of_qform, qform)
    header.set_sform(affine, sform)
    header.set_xyzt_units(units)
    header["vox_offset"] = 352
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    path.write_bytes(header.binaryblock + bytes(4) + bytes(math.prod(shape)))
    return path


def geometry(path, affine, **how):
    return nifti.read_nifti(nifti_file(path, affine, **how))[1]


def test_a_difference_is_that_of_the_farthest_voxel():
    corner = math.hypot(SHAPE[0] - 1, SHAPE[1] - 1)  # from the axis of the turn
    for degrees in (0.01, 1, 170):
        found = grid.displacement_mm(LPS, turned(degrees) @ LPS, SHAPE)
        assert found == pytest.approx(2 * corner * math.sin(math.radians(degrees) / 2))
    shifted = LPS.copy()
    shifted[:3, 3] = 3, 4, 12
    assert grid.displacement_mm(LPS, shifted, SHAPE) == 13


@pytest.mark.parametrize("size", [0.01, 1.0, 8.0])
def test_a_twentieth_of_a_voxel_is_accepted_and_the_option_accepts_more(tmp_path, size):
    affine = LPS @ np.diag([size, 2 * size, 3 * size, 1])
    expected = geometry(tmp_path / "image.nii", affine)
    for part, good in ((0.045, True), (0.055, False), (0.914, False)):
        moved = affine.copy()
        moved[1, 3] += part * size
        found = geometry(tmp_path / "label.nii", moved)
        why = grid.difference(expected, found)
        assert (why == "") == good
        if not good:
            mm = float(re.search(r"farthest voxel ([\d.]+) mm from where .*image.nii", why)[1])
            assert mm == pytest.approx(part * size, rel=0.01)
            option = float(re.search(r"config.data.grid_tolerance_mm=([\d.]+) accepts", why)[1])
            assert part * size <= option <= 1.2 * part * size
            grid.check_same(expected, found, option)
            with pytest.raises(DataError, match="label.nii: .* all files of a case"):
                grid.check_same(expected, found, 0.9 * part * size)


def test_no_option_is_offered_to_look_no_more(tmp_path):
    expected, far = geometry(tmp_path / "image.nii", LPS), LPS.copy()
    for apart, offered in ((0.99, True), (1.01, False), (1010.0, False)):  # voxels of 1 mm
        far[1, 3] = LPS[1, 3] + apart
        why = grid.difference(expected, geometry(tmp_path / "label.nii", far))
        assert "mm are accepted" in why and (grid.OPTION in why) == offered
        assert ("lies somewhere else" in why) != offered
    sheared = LPS.copy()
    sheared[0, 2] = 3000.0
    with pytest.raises(DataError, match="orthogonal grid$"):
        grid.check_orthogonal(geometry(tmp_path / "image.nii", sheared))


def test_a_label_that_lost_its_rotation_or_is_of_another_shape(tmp_path):
    expected = geometry(tmp_path / "image.nii", turned(30) @ LPS)
    with pytest.raises(DataError, match=r"label.nii: .* 12.5 mm from .*image.nii"):
        grid.check_same(expected, geometry(tmp_path / "label.nii", LPS))
    other = geometry(tmp_path / "label.nii", LPS, shape=(20, 16, 13))
    with pytest.raises(DataError, match=r"has shape \(20, 16, 13\), but .*image.nii has"):
        grid.check_same(expected, other, 1e6)
    sizes = geometry(tmp_path / "label.nii", turned(30) @ LPS @ np.diag([1, 1.5, 1, 1]))
    with pytest.raises(DataError, match=r"voxels of 1 x 1.5 x 1 mm instead of 1 x 1 x 1"):
        grid.check_same(expected, sizes)


def test_sheared_axes_are_refused_with_the_shift_and_the_option(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.02
    sheared = geometry(tmp_path / "a.nii", affine, qform=0)
    with pytest.raises(DataError, match="a.nii: its axes are sheared: .* 0.1[0-9]+ mm") as error:
        grid.check_orthogonal(sheared)
    grid.check_orthogonal(sheared, float(str(error.value).rpartition("=")[2]))
    for degrees in (0, 10, 45, 90):
        for axis in range(3):
            grid.check_orthogonal(geometry(tmp_path / "a.nii", turned(degrees, axis) @ LPS))


def said(caplog, path, **how):
    """Warnings of two readings: once each."""
    nifti_file(path, how.pop("affine", LPS), **how)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            volume, found = nifti.read_nifti(path)
    return caplog.messages, volume, found


def test_a_pixdim_beside_another_sform_is_said_and_not_written(tmp_path, caplog):
    for qform in (0, 1):
        path = tmp_path / f"{qform}.nii"
        affine = np.diag([1.1, 1.1, 1.1, 1])
        warned, volume, found = said(caplog, path, affine=affine, qform=qform, pixdim=(1, 1, 1))
        (text,) = warned
        assert (
            f"{path}: its sform has voxels of 1.1 x 1.1 x 1.1 mm, its pixdim of 1 x 1 x 1" in text
        )
        assert found.spacing_mm == (1.1, 1.1, 1.1)
        back = nib.load(nifti.write_nifti(tmp_path / "b.nii", volume, found))
        for form in (back.get_sform(), back.get_qform(), back.affine):
            np.testing.assert_allclose(form, affine, atol=1e-6)
        assert back.header.get_zooms() == pytest.approx((1.1, 1.1, 1.1))
        assert back.header["qform_code"] == back.header["sform_code"] == 1


def test_a_qform_elsewhere_is_said_in_mm_and_kept(tmp_path, caplog):
    other = LPS.copy()
    other[0, 3] = 7
    warned, volume, found = said(caplog, tmp_path / "a.nii", of_qform=other)
    (text,) = warned
    assert "a.nii: its qform puts the farthest voxel 7 mm from where its sform has it" in text
    np.testing.assert_array_equal(found.affine, LPS)
    back = nib.load(nifti.write_nifti(tmp_path / "b.nii", volume, found))
    np.testing.assert_array_equal(back.get_qform(), other)
    np.testing.assert_array_equal(back.get_sform(), LPS)


def test_no_place_at_all_is_said_of_patients_only(tmp_path, caplog):
    warned, _, _ = said(caplog, tmp_path / "a.nii", sform=0, qform=0)
    (text,) = warned
    assert "a.nii: has neither a qform nor an sform" in text and "to the left" in text
    caplog.clear()
    nifti.read_nifti(nifti_file(tmp_path / "film.nii", LPS, sform=0, qform=0), reorient=False)
    assert not caplog.messages
    warned, _, _ = said(caplog, tmp_path / "good.nii", affine=turned(33, 1) @ LPS)
    assert not warned


@pytest.mark.parametrize(("units", "scale"), [("micron", 1000), ("meter", 0.001), (0, 1)])
def test_units_are_lengths(tmp_path, units, scale):
    """The same grid in another unit is the same grid, and is written in that unit."""
    affine = turned(20, 0) @ LPS @ np.diag([0.5, 0.6, 0.7, 1])
    affine[:3, 3] = 3, -4, 5
    expected = geometry(tmp_path / "mm.nii", affine)
    path = nifti_file(
        tmp_path / "other.nii", np.diag([scale, scale, scale, 1]) @ affine, units=units
    )
    volume, found = nifti.read_nifti(path)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert found.spacing_mm == pytest.approx((0.7, 0.6, 0.5))
    grid.check_same(expected, found)
    back = nib.load(nifti.write_nifti(tmp_path / "back.nii", volume, found))
    np.testing.assert_array_equal(back.affine, nib.load(path).affine)
    assert back.header["xyzt_units"] == nib.load(path).header["xyzt_units"]
    wrong = bytearray(path.read_bytes())
    wrong[123] = 5
    path.write_bytes(wrong)
    with pytest.raises(DataError, match="other.nii: its unit of length is 5"):
        nifti.read_nifti(path)


def test_affines_that_cannot_be(tmp_path):
    for change, says in (
        ({(0, 0): math.nan}, "not invertible"),
        ({(2, 2): 0.0}, "not invertible"),
        ({(0, 1): -1.0, (1, 0): -1.0}, "not invertible"),
        ({(0, 0): 1e9}, r"1e\+09 x 1 x 1 mm"),
        ({(1, 3): 1e30}, "from 1e-06 to"),
    ):
        affine = LPS.copy()
        for place, value in change.items():
            affine[place] = value
        with pytest.raises(DataError, match=f"^{tmp_path}/a.nii: (?s:.)*{says}"):
            geometry(tmp_path / "a.nii", affine, of_qform=LPS)
    for pixdim in ((0, 1, 1), (1, math.nan, 1), (1, 1, 0), (1, -1, 1), (1, 1, math.inf)):
        with pytest.raises(DataError, match="a.nii: its header gives a pixel size of "):
            geometry(tmp_path / "a.nii", LPS, sform=0, pixdim=pixdim)


CORNERS = [(0, 0, 0), (19, 0, 0), (0, 15, 0), (0, 0, 11), (19, 15, 11)]


@pytest.mark.parametrize("degrees", [0, 17])
@pytest.mark.parametrize("write", ["nifti", "mhd"])
def test_a_second_reader_opens_what_is_written_at_the_same_place(tmp_path, write, degrees):
    """SimpleITK, for all 48 orientations; its world is LPS+."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: no second reader")
    for axcodes in (a + b + c for a in "LRAPSI" for b in "LRAPSI" for c in "LRAPSI"):
        if len({"LRAPSI".index(code) // 2 for code in axcodes}) < 3:
            continue
        orientation = nib.orientations.axcodes2ornt(axcodes)
        affine = np.eye(4)
        for axis, (world, sign) in enumerate(orientation):
            affine[:3, axis] = 0
            affine[int(world), axis] = sign * (0.7, 0.9, 2.5)[axis]
        affine[:3, 3] = 31, -42, 53
        affine = turned(degrees, 0) @ turned(degrees, 2) @ affine
        volume, found = nifti.read_nifti(nifti_file(tmp_path / "a.nii", affine))
        volume = np.arange(volume.size, dtype=np.int16).reshape(volume.shape)
        if write == "nifti":
            path = nifti.write_nifti(tmp_path / "b.nii.gz", volume, found, np.int16)
        else:
            path = metaimage.write_mhd(tmp_path / "b.mhd", volume, found, np.int16)
        opened = sitk.ReadImage(str(path))
        assert opened.GetSize() == SHAPE
        assert opened.GetSpacing() == pytest.approx((0.7, 0.9, 2.5), rel=1e-6)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(opened).T, found.from_lps(volume))
        for corner in CORNERS:
            place = found.affine @ [*corner, 1]
            where = opened.TransformContinuousIndexToPhysicalPoint(corner)
            np.testing.assert_allclose(where, place[:3] * [-1, -1, 1], atol=1e-3)


def test_a_second_reader_opens_a_sheared_grid_within_the_accepted_shift(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: no second reader")
    affine = np.eye(4)
    affine[0, 1] = 0.02
    path = nifti_file(tmp_path / "a.nii", affine, qform=0)
    volume, found = nifti.read_nifti(path)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    opened = sitk.ReadImage(str(nifti.write_nifti(tmp_path / "b.nii", volume, found)))
    grid.check_orthogonal(found, 0.2)
    for corner in CORNERS:
        where = np.array(opened.TransformContinuousIndexToPhysicalPoint(corner)) * [-1, -1, 1]
        assert np.linalg.norm(where - (found.affine @ [*corner, 1])[:3]) <= 0.2
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").affine, affine, atol=1e-6)


def test_a_grid_is_the_same_in_either_format(tmp_path):
    volume, found = nifti.read_nifti(nifti_file(tmp_path / "a.nii", turned(20) @ LPS))
    found = dataclasses.replace(found, oriented=False)
    disk = np.zeros(found.shape_zyx, np.uint8)
    _, other = metaimage.read_mhd(metaimage.write_mhd(tmp_path / "b.mhd", disk, found))
    grid.check_same(found, other)
