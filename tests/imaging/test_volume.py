"""One image in every format: the same voxels at the same places."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from crossdim_jax.errors import DataError
from crossdim_jax.imaging import dicom, grid, nifti, volume
from crossdim_jax.imaging.geometry import Geometry
from tests import dicom_files

SIZE = (4, 5, 6)  # i, j, k
SPACING = (0.7, 1.3, 2.5)
ORIGIN = (-31.0, 12.5, 104.25)
PLACED = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def turned(degrees):
    a, b = np.radians(degrees), np.radians(degrees / 3)
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    return np.array(about_z) @ about_x


# Axial, sagittal and coronal, each with axes that run backwards, and tilted.
DIRECTIONS = {
    "axial": np.eye(3),
    "flipped": np.diag([-1.0, -1, 1]),
    "left-handed": np.diag([1.0, 1, -1]),
    "sagittal": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": turned(17.0),
    "oblique sagittal": turned(-9.0) @ np.array([[0.0, 0, -1], [-1, 0, 0], [0, 1, 0]]),
}


def image(direction, values, *, vector=False):
    found = sitk.GetImageFromArray(values, isVector=vector)
    found.SetSpacing(SPACING)
    found.SetOrigin(ORIGIN)
    found.SetDirection(np.asarray(direction, float).ravel())
    return found


def values_at(array, geometry):
    """(n, 4 or more): place of each voxel in mm (LPS) and its values, in order of the values."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    places = (index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]) * [-1, -1, 1]
    places = geometry.to_lps(places).reshape(-1, 3)
    values = array.reshape(len(places), -1)
    order = np.lexsort(values.T)
    return np.hstack([places, values])[order]


def values_of(image):
    """The same of an image of SimpleITK, point by point."""
    rows = []
    for index in itertools.product(*map(range, image.GetSize())):
        value = np.atleast_1d(image[index])
        rows.append([*image.TransformIndexToPhysicalPoint(index), *value])
    rows = np.array(rows, float)
    return rows[np.lexsort(rows[:, 3:].T)]


def counted(rng, dtype=np.int16):
    return rng.permutation(np.prod(SIZE)).reshape(SIZE[::-1]).astype(dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("suffix", PLACED)
def test_every_format_gives_one_array_at_one_place(tmp_path, rng, suffix, direction):
    written = image(DIRECTIONS[direction], counted(rng))
    sitk.WriteImage(written, str(tmp_path / f"a{suffix}"), suffix not in (".nii", ".nii.gz"))
    sitk.WriteImage(written, str(tmp_path / "reference.nii.gz"))
    array, geometry = volume.read_image(tmp_path / f"a{suffix}")
    expected, of_nifti = nifti.read_nifti(tmp_path / "reference.nii.gz")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_allclose(values_at(array, geometry), values_of(written), atol=1e-4)
    assert not grid.difference(of_nifti, geometry)
    assert geometry.spacing_mm == pytest.approx(of_nifti.spacing_mm)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("suffix", PLACED)
def test_a_label_map_lies_where_its_image_does_in_every_program(tmp_path, rng, suffix, direction):
    written = image(DIRECTIONS[direction], counted(rng))
    sitk.WriteImage(written, str(tmp_path / "image.nrrd"))
    array, geometry = volume.read_image(tmp_path / "image.nrrd")
    path = volume.write_label(tmp_path / "out" / f"a{suffix}", array, geometry)
    back = sitk.ReadImage(str(path))
    assert back.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(written))
    np.testing.assert_allclose(values_of(back), values_of(written), atol=1e-4)
    again, of_label = volume.read_label(path)
    np.testing.assert_array_equal(again, array)
    grid.check_same(geometry, of_label)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("direction", ["axial", "oblique sagittal"])
def test_channels_are_the_last_axis(tmp_path, rng, suffix, direction):
    colours = rng.permutation(3 * np.prod(SIZE)).reshape(*SIZE[::-1], 3).astype(np.int16)
    written = image(DIRECTIONS[direction], colours, vector=True)
    sitk.WriteImage(written, str(tmp_path / f"a{suffix}"))
    array, geometry = volume.read_image(tmp_path / f"a{suffix}")
    assert array.shape == (*geometry.shape_zyx, 3)
    np.testing.assert_allclose(values_at(array, geometry), values_of(written), atol=1e-4)
    with pytest.raises(DataError, match=f"a{suffix}: has 3 values in each voxel"):
        volume.read_label(tmp_path / f"a{suffix}")


def test_one_file_for_each_channel(tmp_path, rng):
    parts = [counted(rng), counted(rng)]
    for number, part in enumerate(parts):
        written = image(DIRECTIONS["sagittal"], part)
        sitk.WriteImage(written, str(tmp_path / f"a_000{number}.{('nrrd', 'mha')[number]}"))
    paths = sorted(tmp_path.iterdir())
    array, geometry = volume.read_image(paths)
    for number, path in enumerate(paths):
        np.testing.assert_array_equal(array[..., number], volume.read_image(path)[0])
    assert geometry.path == paths[0]
    np.testing.assert_array_equal(volume.read_image(paths[:1])[0], array[..., 0])
    moved = image(DIRECTIONS["sagittal"], parts[1])
    moved.SetOrigin((0, 0, 0))
    sitk.WriteImage(moved, str(paths[1]))
    with pytest.raises(DataError, match=r"a_0001.mha: its affine puts.*a_0000.nrrd"):
        volume.read_image(paths)
    assert volume.read_image(paths, tolerance_mm=1e3)[0].shape == array.shape


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_two_dimensions_are_one_slice_as_on_disk(tmp_path, rng, suffix):
    values = rng.integers(0, 99, (5, 7)).astype(np.int16)
    written = sitk.GetImageFromArray(values)
    written.SetSpacing((0.5, 0.25))
    sitk.WriteImage(written, str(tmp_path / f"a{suffix}"))
    array, geometry = volume.read_image(tmp_path / f"a{suffix}")
    assert array.shape == geometry.shape_zyx == (1, 5, 7)
    assert geometry.spacing_mm[1:] == (0.25, 0.5)
    np.testing.assert_array_equal(array[0], values)
    back = volume.write_label(tmp_path / f"b{suffix}", array, geometry)
    np.testing.assert_array_equal(volume.read_label(back)[0], array)
    grid.check_same(geometry, volume.read_label(back)[1])


@pytest.mark.parametrize("suffix", volume.WRITERS)
def test_values_of_label_maps_are_kept(tmp_path, rng, suffix):
    geometry = Geometry.from_affine("a", (7, 5, 1), np.diag([-1.0, -1, 1, 1]), np.uint8)
    for most, dtype in ((1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)):
        label = rng.integers(0, most, geometry.shape_zyx)
        label[0, 2, 3] = most
        for given in (label, label.astype(np.float32)):
            read, _ = volume.read_label(
                volume.write_label(tmp_path / f"a{suffix}", given, geometry)
            )
            assert read.dtype == dtype
            np.testing.assert_array_equal(read, label)
    for wrong, text in ((-1, "-1"), (65536, "65536"), (0.5, "0.5"), (np.nan, "nan")):
        label = np.full(geometry.shape_zyx, wrong)
        with pytest.raises(DataError, match=f"a{suffix}: 35 voxels are not whole.*first is {text}"):
            volume.write_label(tmp_path / f"a{suffix}", label, geometry)
    with pytest.raises(DataError, match=rf"a{suffix}: the volume has shape \(5, 7\)"):
        volume.write_label(tmp_path / f"a{suffix}", np.zeros((5, 7), np.uint8), geometry)


def test_a_folder_is_a_dicom_series(tmp_path, rng):
    stored = rng.integers(0, 200, (3, 6, 7))
    paths = dicom_files.write(tmp_path / "series", stored)
    expected, series = dicom.read_series(paths)
    for given in (tmp_path / "series", paths):
        array, geometry = volume.read_image(given)
        np.testing.assert_array_equal(array, expected)
        np.testing.assert_array_equal(geometry.affine, series.geometry.affine)
    label, _ = volume.read_label(tmp_path / "series")
    np.testing.assert_array_equal(label, stored)
    assert label.dtype == np.uint8
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="a.nii.gz: is no DICOM file by its name"):
        volume.read_image(tmp_path / "mixed")


def test_names_end_in_what_is_read():
    for name, suffix in (
        ("a_0000.nii.gz", ".nii.gz"),
        ("a.b.NII", ".NII"),
        ("x/y.mha", ".mha"),
        ("a.seg.nrrd", ".nrrd"),
        ("a.gz", ""),
        ("a.raw", ""),
        ("a", ""),
    ):
        assert volume.suffix_of(name) == suffix
    assert {suffix for suffix in volume.WRITERS} <= set(volume.SUFFIXES)


def test_unknown_names_are_told_the_known_ones(tmp_path):
    (tmp_path / "a.mgz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a.mgz: its ending.*known: .nii.gz, .nii, .mha.*DICOM"):
        volume.read_image(tmp_path / "a.mgz")
    with pytest.raises(DataError, match=r"b.nrrd: there is no such file"):
        volume.read_image(tmp_path / "b.nrrd")
    with pytest.raises(DataError, match="at least one file"):
        volume.read_image([])
    for name in ("a.mgz", "a.jpg", "a.hdr"):
        with pytest.raises(DataError, match=rf"{name}: label maps are not written.*known: .nii.gz"):
            geometry = Geometry.from_affine("a", (1, 1, 1), np.eye(4), np.uint8)
            volume.write_label(tmp_path / name, np.zeros((1, 1, 1)), geometry)


def test_all_files_of_an_image_are_known(tmp_path, rng):
    written = image(np.eye(3), counted(rng))
    for suffix, others in (
        *((".nrrd", []), (".mha", []), (".nii.gz", [])),
        *((".nhdr", ["a.raw"]), (".mhd", ["a.raw"])),
    ):
        sitk.WriteImage(written, str(tmp_path / f"a{suffix}"))
        expected = [tmp_path / f"a{suffix}", *(tmp_path / other for other in others)]
        assert list(volume.files_of(tmp_path / f"a{suffix}")) == expected
    (tmp_path / "b.json").write_text('{"spacing": [1, 2, 3]}')
    picture = tmp_path / "b_0000.png"
    assert volume.files_of(picture) == (picture, tmp_path / "b.json")
    series = dicom_files.write(tmp_path / "series", np.zeros((3, 4, 5)))
    assert list(volume.files_of(tmp_path / "series")) == series


def test_real_nrrd_files_are_those_that_itk_reads(shared_data):
    for name in ("brain1_image", "brain1_label"):
        path = shared_data / "pyradiomics" / f"{name}.nrrd"
        array, geometry = volume.read_image(path)
        expected = sitk.ReadImage(str(path))
        assert geometry.axcodes == "LAS" and geometry.spacing_mm == (6.5, 0.78125, 0.78125)
        turned = sitk.GetArrayFromImage(sitk.DICOMOrient(expected, "LPS"))
        np.testing.assert_array_equal(array, turned)
    label, of_label = volume.read_label(path)
    assert label.dtype == np.uint8 and set(np.unique(label)) == {0, 1}
    grid.check_same(geometry, of_label)


def test_real_label_maps_come_back_bit_by_bit(shared_data, tmp_path):
    for path in (
        shared_data / "sct_spinal_cord" / "t2s_uncropped_gmseg_manual.nii.gz",
        shared_data / "ixi_dlmuse" / "IXI012-HH-1211-T1_ds_DLMUSE.nii.gz",
        shared_data / "pyradiomics" / "brain1_label.nrrd",
    ):
        label, geometry = volume.read_label(path)
        for suffix in PLACED:
            back = volume.write_label(tmp_path / f"a{suffix}", label, geometry)
            again, of_label = volume.read_label(back)
            np.testing.assert_array_equal(again, label)
            grid.check_same(geometry, of_label)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".png", ".tif", ".jpg"])
def test_an_axis_that_no_label_map_could_have_is_refused(tmp_path, suffix):
    written = sitk.GetImageFromArray(np.zeros((2, 40_000), np.uint8))
    sitk.WriteImage(written, str(tmp_path / f"a{suffix}"))
    with pytest.raises(DataError, match=f"a{suffix}: has 40000 x 2 x 1 voxels; at most 32767"):
        volume.read_image(tmp_path / f"a{suffix}")
